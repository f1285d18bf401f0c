"""GPT-2 you can read, with a KV cache whose logits equal the uncached ones, bit for bit."""

from minigpt.cache.base import KVCache
from minigpt.config import GPTConfig
from minigpt.generation.batch import generate_batch
from minigpt.generation.beam import Beam, beam_search
from minigpt.generation.continuation import generate, stream
from minigpt.generation.decoding import Generation
from minigpt.generation.sampling import Sampler, TokenLogProb
from minigpt.generation.stops import StopStrings
from minigpt.generation.text import TextStream, stream_text
from minigpt.model import GPT
from minigpt.study.comparison import compare_caches
from minigpt.study.likelihood import Score, score
from minigpt.study.verification import Report, verify
from minigpt.support.errors import MinigptError
from minigpt.tokenizer import Tokenizer

__version__ = "0.1.0"

__all__ = [
    "GPT",
    "Beam",
    "GPTConfig",
    "Generation",
    "KVCache",
    "MinigptError",
    "Report",
    "Sampler",
    "Score",
    "StopStrings",
    "TextStream",
    "TokenLogProb",
    "Tokenizer",
    "beam_search",
    "compare_caches",
    "generate",
    "generate_batch",
    "score",
    "stream",
    "stream_text",
    "verify",
]
