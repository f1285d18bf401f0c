"""Who is who in a story: reads one, and says what changed on the way.

A rabbit that ends as a bear, a kite that is found as a drum, a name that nobody introduced, a word
that is none: each is one sentence in the list that `changes` returns. It reads English by patterns
and by the lists of `stories.txt`, words that are held out included; it knows nothing of what the
generator drew, so what a model writes and what a person writes are read alike.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cache

from minigpt.training.grammar import rule_texts, words

PRONOUNS = {"she": "she", "her": "she", "herself": "she", "he": "he", "him": "he", "his": "he"}
MOST = 2  # who is in a story: somebody, and who helps
LISTS = {
    "kind": ("animal", "person", "fabled", "royalty", "held_out_animals"),
    "object": ("thing", "treat", "held_out_objects"),
    "place": ("area", "held_out_places"),
    "name": ("girl", "boy", "held_out_names"),
    "colour": ("colour",),
}
_NO_ENGLISH = (
    "german",
    "vietnamese",
    "french",
    "spanish",
    "signs",
    "onset",
    "vowel",
    "coda",
    "ending",
)
_TO = "at|to|near|from|behind|over|under|beside|in|on|around|about|see|saw|of|is"
_OWNERS = "[Aa]n?|[Hh]is|[Hh]er|[Mm]y|[Yy]our|one|two"
_WORD = re.compile(r"[^\W\d_]+")


@cache
def vocabulary() -> dict[str, frozenset[str]]:
    """The words of each list of the grammar, and under "word" those of everything else in it."""
    found = {kind: frozenset(w for rule in rules for w in words(rule))
             for kind, rules in LISTS.items()}  # fmt: skip
    listed = {rule for rules in LISTS.values() for rule in rules} | set(_NO_ENGLISH)
    texts = [re.sub(r"<[^>]*>s?|\{\w+[:}]", " ", text) for rule, text in rule_texts().items()
             if rule not in listed]  # fmt: skip
    found["word"] = frozenset(word for text in texts for word in _WORD.findall(text.lower()))
    return found


@dataclass
class _Cast:
    """What has been read so far."""

    names: dict[str, str] = field(default_factory=dict)  # with the kind of each, once known
    kinds: dict[str, str] = field(default_factory=dict)  # with its adjective: the little fox
    objects: dict[str, str] = field(default_factory=dict)  # with the colour of each
    places: list[str] = field(default_factory=list)
    other: set[str] = field(default_factory=set)  # words that no list has, once introduced


def find_changes(story: str, typed: str = "") -> list[str]:
    """What does not stay as it was, in the order of reading; [] for a story that holds together.

    Args:
        story: the text, with its beginning.
        typed: the part of it that a person wrote, where anything may be introduced.
    """
    cast, said = _Cast(), []
    known = vocabulary()
    begins = re.match(r'[^.!?]*[.!?]"?', story)
    opening = max(len(typed), begins.end() if begins else len(story))
    name_at = {
        m.start(): m[0] for m in re.finditer(r"\b[A-Z][a-z]+\b", story) if _is_name(story, m)
    }
    for match in re.finditer(r"[^\W\d_]+", story):
        word, at = match[0], match.start()
        before, after = (
            f"\n{story}"[max(0, at - 60) : at + 1],
            story[match.end() : match.end() + 40],
        )
        free = at < opening
        if at in name_at:
            said += _name(cast, word, before, after, free)
        elif (lower := word.lower()) in known["kind"] or _unknown_kind(lower, before, after, cast):
            said += _kind(cast, lower, before, free)
        elif lower in known["object"]:
            said += _object(cast, lower, before, free)
        elif lower in known["place"]:
            said += _place(cast, lower, before, free)
        elif not _is_english(lower):
            said += _other(cast, lower, before, after, free)
    spoken_by_all = re.sub(r'"[^"]*"?', " ", story[len(typed) :])
    pronouns = Counter(PRONOUNS[w] for w in _WORD.findall(spoken_by_all.lower()) if w in PRONOUNS)
    if len(pronouns) > 1:
        said.append("she is he elsewhere")
    if len(cast.kinds) > MOST or len(cast.names) > MOST:
        who = cast.kinds if len(cast.kinds) > MOST else cast.names
        said.append(f"{len(who)} are in it: {', '.join(who)}")
    sentences = Counter(re.findall(r"[^.!?]{12,}[.!?]", story))
    said += [f"said {n} times: {text.strip()}" for text, n in sentences.items() if n > 2]
    return list(dict.fromkeys(said))


def _is_english(lower: str) -> bool:
    known = vocabulary()
    stems = {lower, lower.removesuffix("s"), lower.removesuffix("es")}
    return any(stem in known[kind] for stem in stems for kind in known if kind != "name")


def _is_name(story: str, match: re.Match[str]) -> bool:
    lower = match[0].lower()
    starts = re.search(r'(^|[.!?:]"? |[\n"]|\. )$', story[: match.start()]) is not None
    ordinary = vocabulary()["word"] | vocabulary()["colour"]
    return not (lower in ordinary or _is_english(lower)) or (
        not starts and match[0] not in ("I", "Sunday", "Monday", "Friday", "Mondays", "Fridays")
    )


def _name(cast: _Cast, name: str, before: str, after: str, free: bool) -> list[str]:
    introduced = re.search(r"(named|called|by the name of|friend|neighbour) $", before)
    kind = re.match(r" the ([a-z]+)|,? (?:was )?an? (?:[a-z]+ )*?([a-z]+)(?= who| and|[.,])", after)
    an = re.search(r"\b[Aa]n? (?:[a-z]+ )*?([a-z]+) (?:named|called|by the name of) $", before)
    now = an[1] if an else (kind[1] or kind[2]) if kind else ""
    if now not in vocabulary()["kind"] and (_is_english(now) or now in cast.objects):
        now = ""  # Mia was a little late. He gave Mia the kite.
    said = []
    if name not in cast.names:
        if not (free or introduced or (now and kind and kind[1])):
            said.append(f"{name} is a stranger")
        cast.names[name] = ""
    if now and cast.names[name] not in ("", now):
        said.append(f"{name} the {cast.names[name]} became a {now}")
    cast.names[name] = cast.names[name] or now
    return said


def _unknown_kind(lower: str, before: str, after: str, cast: _Cast) -> bool:
    if _is_english(lower) or lower in cast.places or lower in cast.objects:
        return False
    if re.search(r"\bIt was an? (\w+ )?$", before) and len(cast.kinds) >= MOST:
        return False  # both are known, so it is what one of them got
    owner = re.search(r"\b([A-Z][a-z]+) the $", before)
    return lower in cast.kinds or bool(
        re.match(r" (named|called|by the name of) ", after)
        or (owner and owner[1].lower() not in vocabulary()["word"])
        or re.search(r"\b(knew|, ) ?the (\w+ )?$|\b[A-Z][a-z]+ was an? (\w+ )?$", before)
        or re.search(
            r"\b(it was|there was|lived|met|asked|told|to|give|was only) an? (\w+ ){0,2}$",
            before,
            re.I,
        )
        or re.search(r"(\n|[.!?] )(The|A|An) ([a-z]+ )?$", before)
        or (
            re.search(r"\ban? (\w+ ){0,2}$", before, re.I)
            and re.match(
                r" (came|knocked|heard|laughed|only|wanted|had|was|lived|said|looked|woke)\b", after
            )
        )
    )


def _kind(cast: _Cast, kind: str, before: str, free: bool) -> list[str]:
    article = re.search(r"\b([Tt]he|[Aa]n?) ((?:(?!an? |the )[a-z]+ ){0,3})$", before)
    if not article:
        return []
    size = article[2].strip()
    new = kind not in cast.kinds
    if (
        new
        and article[1].lower() == "the"
        and not free
        and not re.search(r"[A-Z][a-z]+ the $", before)
    ):
        cast.kinds[kind] = size
        return [f"the {kind} is a stranger, beside {', '.join(cast.kinds)}"]
    was = cast.kinds.setdefault(kind, size)
    renamed = size and was and size not in (was, was.split()[-1]) and not size.endswith("est")
    if article[1] in ("the", "The") and renamed:
        return [f"the {was} {kind} became the {size} {kind}"]
    return []


def _object(cast: _Cast, thing: str, before: str, free: bool) -> list[str]:
    colours = "|".join(vocabulary()["colour"])
    found = re.search(rf"\b(\w+) (?:(?:{colours}|[a-z]+) )?$", before)
    colour = re.search(rf"\b({colours}) $", before)
    article = re.search(rf"\b({_OWNERS}|[Tt]he|this|some) (?:(?!an? |the )[a-z]+ ){{0,2}}$", before)
    if not (found and article):
        return []
    said = []
    owned = article[1].lower() in ("his", "her", "my", "your", "the", "this")
    first = article[1].lower() != "the" and not cast.objects
    if thing not in cast.objects and owned and not free and not first:
        others = f", beside {', '.join(cast.objects)}" if cast.objects else ""
        said.append(f"{article[1].lower()} {thing} was never mentioned{others}")
    was = cast.objects.setdefault(thing, "")
    if colour and was and colour[1] != was:
        said.append(f"the {was} {thing} became {colour[1]}")
    cast.objects[thing] = was or (colour[1] if colour else "")
    return said


def _place(cast: _Cast, place: str, before: str, free: bool) -> list[str]:
    if not re.search(r"\b[Tt]he (?:[a-z]+ )?$", before):
        return []
    if place in cast.places:
        return []
    cast.places.append(place)
    if len(cast.places) > 1 and not free:
        return [f"the {cast.places[0]} became the {place}"]
    return []


def _other(cast: _Cast, word: str, before: str, after: str, free: bool) -> list[str]:
    """A word that no list has: a place, or a thing that an article introduces."""
    if word in cast.places or word in cast.objects:
        return []
    stem = word.removesuffix("s")
    if stem in cast.other or stem in cast.objects or stem in cast.kinds:
        return []
    if re.search(rf"\b({_TO}) the $", before, re.I) and not (cast.places and not free):
        return _place(cast, word, before, free)
    if re.search(r"\b[Tt]he $", before) and cast.places and re.search(rf"\b({_TO}) the $", before):
        return [f"the {cast.places[0]} became the {word}"]
    introduced = re.search(rf"\b({_OWNERS}) (?:[a-z]+ ){{0,3}}$", before)
    if introduced or free:
        return _object(cast, word, before, free)
    cast.other.add(word)
    return [f"{word} is no word that was introduced"]
