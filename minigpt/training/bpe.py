"""Learning a vocabulary of byte pairs from a text; the `tokenizers` library does the counting."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence

from minigpt.support.checks import listed, whole
from minigpt.support.errors import MinigptError
from minigpt.support.wording import counted
from minigpt.tokenizer import Tokenizer, check_text
from minigpt.tokenizer_settings import END_OF_TEXT

LARGEST = 2**20  # tokens to learn
LONGEST = 128  # bytes of a word that are counted together


def train_bpe(
    texts: Iterable[str], vocab_size: int, specials: Sequence[str] = (END_OF_TEXT,)
) -> Tokenizer:
    """Learn merges from `texts` (Sennrich et al. 2016): join the commonest pair, and again.

    Ids are laid out as GPT-2's: 256 bytes, then merges, then specials. The same texts give the same
    tokenizer; few texts may give fewer than `vocab_size` tokens.

    Words of more than `LONGEST` bytes, such as a genome without a white space, are cut into pieces
    of that length before pairs are counted, for the time of a merge grows with the square of a
    word's length. So no token is longer. On a terminal a bar shows how far it is.

    Raises:
        MinigptError: when the `tokenizers` library is missing, or an argument cannot be used.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise MinigptError(
            "training a tokenizer needs the tokenizers library: pip install 'minigpt[train]'"
        ) from error
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise MinigptError(
            f"texts is one {type(texts).__name__}, needed several: pass a list of texts"
        )
    specials = [check_text(text) for text in listed(specials, "specials", "a list of texts")]
    bytes_and_specials = f"256 bytes and {counted(len(specials), 'special token')} come first"
    whole("vocab_size", vocab_size, 256 + len(specials), LARGEST, bytes_and_specials)
    byte_level = tokenizers.pre_tokenizers.ByteLevel  # cuts text by the same pattern as above
    words = byte_level(add_prefix_space=False)
    pieces = tokenizers.Regex(f".{{1,{LONGEST}}}")
    short = tokenizers.pre_tokenizers.Split(pieces, "isolated")
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([words, short])
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size - len(specials),
        initial_alphabet=byte_level.alphabet(),
        show_progress=sys.stderr.isatty(),
    )
    bpe.train_from_iterator((check_text(text) for text in texts), trainer)
    bpe.pre_tokenizer = words  # the cuts were for learning only
    content = json.loads(bpe.to_str())
    vocab = content["model"]["vocab"]
    for text in specials:
        if text in vocab or not text:
            raise MinigptError(f"{text!r} cannot be a special token: it is empty or taken")
        content["added_tokens"].append({"content": text, "id": len(vocab), "special": True})
        vocab[text] = len(vocab)
    return Tokenizer.from_tokenizer_json(content, "the trained vocabulary")
