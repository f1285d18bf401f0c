"""GPT-2 you can read, with a KV cache whose logits equal the uncached ones, bit for bit."""

from minigpt.cache import KVCache
from minigpt.config import GPTConfig
from minigpt.errors import MinigptError
from minigpt.generate import Generation, generate, stream
from minigpt.model import GPT
from minigpt.tokenizer import Tokenizer
from minigpt.verify import Report, verify

__version__ = "0.1.0"

__all__ = [
    "GPT",
    "GPTConfig",
    "Generation",
    "KVCache",
    "MinigptError",
    "Report",
    "Tokenizer",
    "generate",
    "stream",
    "verify",
]
