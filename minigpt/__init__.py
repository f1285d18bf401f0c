"""GPT-2 you can read, with a KV cache whose logits equal the uncached ones, bit for bit.

Names are loaded when they are first used, so that `import minigpt` takes no time and only what is
used brings PyTorch along.
"""

TYPE_CHECKING = False  # type checkers take it for true; `typing` has it too, and is slow to import
if TYPE_CHECKING:  # for them and for editors; the table below says the same to Python
    from minigpt.cache.kvcache import KVCache
    from minigpt.checkpoint.caches import load_cache, save_cache
    from minigpt.config import GPTConfig
    from minigpt.generation.batch import generate_batch
    from minigpt.generation.beam import Beam, beam_search
    from minigpt.generation.continuation import generate, stream
    from minigpt.generation.decoding import Generation
    from minigpt.generation.engine import Engine
    from minigpt.generation.request import Request
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
    "Engine",
    "GPTConfig",
    "Generation",
    "KVCache",
    "MinigptError",
    "Report",
    "Request",
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
    "load_cache",
    "save_cache",
    "score",
    "stream",
    "stream_text",
    "verify",
]

_HOMES = {
    "GPT": "minigpt.model",
    "Beam": "minigpt.generation.beam",
    "Engine": "minigpt.generation.engine",
    "GPTConfig": "minigpt.config",
    "Generation": "minigpt.generation.decoding",
    "KVCache": "minigpt.cache.kvcache",
    "MinigptError": "minigpt.support.errors",
    "Report": "minigpt.study.verification",
    "Request": "minigpt.generation.request",
    "Sampler": "minigpt.generation.sampling",
    "Score": "minigpt.study.likelihood",
    "StopStrings": "minigpt.generation.stops",
    "TextStream": "minigpt.generation.text",
    "TokenLogProb": "minigpt.generation.sampling",
    "Tokenizer": "minigpt.tokenizer",
    "beam_search": "minigpt.generation.beam",
    "compare_caches": "minigpt.study.comparison",
    "generate": "minigpt.generation.continuation",
    "generate_batch": "minigpt.generation.batch",
    "load_cache": "minigpt.checkpoint.caches",
    "save_cache": "minigpt.checkpoint.caches",
    "score": "minigpt.study.likelihood",
    "stream": "minigpt.generation.continuation",
    "stream_text": "minigpt.generation.text",
    "verify": "minigpt.study.verification",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'minigpt' has no attribute {name!r}")
    from importlib import import_module

    found = getattr(import_module(_HOMES[name]), name)
    globals()[name] = found  # the next use finds it without asking here
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
