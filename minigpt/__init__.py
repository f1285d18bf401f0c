"""GPT-2 you can read, with a KV cache whose logits equal the uncached ones, bit for bit."""

from minigpt.batch import generate_batch
from minigpt.beam import Beam, beam_search
from minigpt.cache import KVCache
from minigpt.cache_compare import compare_caches
from minigpt.config import GPTConfig
from minigpt.errors import MinigptError
from minigpt.generate import Generation, generate, stream
from minigpt.model import GPT
from minigpt.sampling import Sampler, TokenLogProb
from minigpt.score import Score, score
from minigpt.stops import StopStrings
from minigpt.text import TextStream, stream_text
from minigpt.tokenizer import Tokenizer
from minigpt.verify import Report, verify

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
