"""Builds the lessons in other languages: `python notebooks/translate.py [--check] [LESSON]`.

A translation is a catalogue, `notebooks/LANGUAGE/LESSON.md`: for every Markdown cell of the English
lesson its name, a hash of the English text, and the text in the other language:

    <!-- title 0a1b2c3d -->
    # 2. …

Code and outputs are copied from the English lesson, so they are the same in every language, but for
the hints of exercises: `notebooks/LANGUAGE/messages.md` has a line `English => translation` for
each of them, and both the checks and what they have printed are written anew with it. When an
English text changes, its hash does, and the translation is refused until somebody has read both and
written the new hash. Three things are filled in:

- `{code}`: the code of the English cell (a solution), with the comments translated that the entry
  named `comments` lists, a line `English => translation` for each;
- links are written as in the English lesson; they lead to the lesson in the reader's language
  where there is one;
- a line below the title, in English too, leads to the other languages;
- the first code cell, in English too, is the same in every lesson but for the language.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))  # the package, where nothing has been installed

from minigpt.study.spoken import PHRASES  # noqa: E402

LANGUAGES = {"": "English", "vi": "Tiếng Việt", "ko": "한국어"}  # by folder
SWITCH = "languages"  # the name of the cell that leads to the other languages
BEGIN = "begin"  # the name of the first code cell, and what it says
FIRST_CODE = """\
try:
    from minigpt.study import lessons
except ModuleNotFoundError:  # as on a hosted notebook
    from pathlib import Path

    here = Path.cwd()
    places = [*here.glob("minigpt-*.whl"), *(p for p in here.parents if (p / "minigpt").is_dir())]
    if not places:
        raise ModuleNotFoundError(
            "minigpt is not installed: put its wheel (`make wheel`) beside this notebook"
        ) from None
    print(f"minigpt is not installed here: installing it from {places[0]}")
    %pip install --quiet "{places[0]}[plots]"
    from minigpt.study import lessons

lessons.speak("LANGUAGE")"""
COMMENTS = "comments"
MESSAGES = "messages.md"

ENTRY = re.compile(r"^<!-- ([a-z][a-z0-9-]+)(?: ([0-9a-f]{8}))? -->\n", re.MULTILINE)
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)")
REMARK = re.compile(r'(?<=# ).*$|(?<=""").*(?="""$)', re.MULTILINE)  # a comment or a docstring
MESSAGE = re.compile(r"[a-z]{2,}[^\n]* [^\n]*[a-z]")  # a text in a check that somebody reads
HINT = re.compile(r"^not yet: (.*)$", re.MULTILINE)
FIELD = re.compile(r"\{[^}]*\}")
SHAPE = re.compile(r"[A-Z0-9, ()]+")  # a comment that needs no translation

Cell = dict[str, Any]
Notebook = dict[str, Any]
Catalogue = dict[str, tuple[str, str]]  # the hash and the text, by the name of the cell


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 when every translation is complete and up to date, 1 when one is not."""
    parser = argparse.ArgumentParser(description="Build the lessons in other languages.")
    parser.add_argument("--check", action="store_true", help="say what is wrong, write nothing")
    parser.add_argument("lessons", nargs="*", type=Path, help="default: all of notebooks/*.ipynb")
    options = parser.parse_args(arguments)
    found: list[str] = []
    for lesson in options.lessons or sorted(FOLDER.glob("*.ipynb")):
        found += stale(lesson) if options.check else write(lesson)
    print("".join(f"{problem}\n" for problem in found), end="")
    return int(bool(found))


def write(lesson: Path) -> list[str]:
    """Build all translations of a lesson; returns what is wrong with their catalogues.

    A text that has only become out of date is kept, for an old translation says more to its reader
    than none; one that is missing is shown in English.
    """
    for path, notebook in built(lesson).items():
        path.write_text(dump(notebook), encoding="utf-8")
    return list(problems(lesson))


def stale(lesson: Path) -> list[str]:
    """What is wrong with the catalogues of a lesson, and notebooks that they would not make."""
    other = [
        f"{path.relative_to(lesson.parent)}: not what translate.py makes; run it"
        for path, notebook in built(lesson).items()
        if not path.exists() or path.read_text(encoding="utf-8") != dump(notebook)
    ]
    return [*problems(lesson), *other]


def catalogues(lesson: Path) -> dict[str, Path]:
    """The catalogues of a lesson by their language."""
    paths = {code: lesson.parent / code / f"{lesson.stem}.md" for code in LANGUAGES if code}
    return {code: path for code, path in paths.items() if path.exists()}


def built(lesson: Path) -> dict[Path, Notebook]:
    """The lesson in every language that it has, English first, by the file it belongs in."""
    original, translations = load(lesson), catalogues(lesson)
    english = [cell for cell in original["cells"] if cell["id"] not in (SWITCH, BEGIN)]
    notebooks = {}
    for language in ("", *translations):
        cells = english
        if language:
            catalogue = read(translations[language])
            said = phrases(lesson, language)
            cells = [translated(cell, catalogue, lesson, language) for cell in english]
            cells = [speaking(cell, said) if is_check(cell) else cell for cell in cells]
        head = [cells[0], begin(language)]
        if translations:
            text = switch(lesson, language, ("", *translations))
            leads = {"cell_type": "markdown", "id": SWITCH, "metadata": {}, "source": [text]}
            head.insert(1, leads)
        path = lesson.parent / language / lesson.name
        notebooks[path] = {**original, "cells": numbered([*head, *cells[1:]])}
    return notebooks


def begin(language: str) -> Cell:
    """The first code cell of every lesson: installs the package where it is missing."""
    source = FIRST_CODE.replace("LANGUAGE", language or "en").splitlines(keepends=True)
    return {"cell_type": "code", "id": BEGIN, "metadata": {}, "outputs": [], "source": source}


def numbered(cells: Sequence[Cell]) -> list[Cell]:
    """The cells as if they had been run in this order."""
    fresh, count = [], 0
    for cell in cells:
        if cell["cell_type"] == "code":
            count += 1
            outputs = [
                {**output, "execution_count": count} if "execution_count" in output else output
                for output in cell["outputs"]
            ]
            cell = {**cell, "execution_count": count, "outputs": outputs}
        fresh.append(cell)
    return fresh


def translated(cell: Cell, catalogue: Catalogue, lesson: Path, language: str) -> Cell:
    if cell["cell_type"] != "markdown" or cell["id"] not in catalogue:
        return cell
    text = catalogue[cell["id"]][1]
    if code := CODE.search(source(cell)):
        remarks = dictionary(catalogue)
        text = text.replace(
            "{code}", REMARK.sub(lambda remark: remarks.get(remark[0], remark[0]), code[1])
        )

    def link(found: re.Match[str]) -> str:
        target = found[1]
        if "://" in target or target in translated_lessons:
            return found[0]
        return f"](../{target}"

    pages = list((lesson.parent / language).glob("*.md"))
    translated_lessons = {f"{path.stem}.ipynb" for path in pages} | {path.name for path in pages}
    return {**cell, "source": LINK.sub(link, text).splitlines(keepends=True)}


def speaking(check: Cell, said: dict[str, str]) -> Cell:
    """A check whose hints are translated, those in its code and those it has printed."""
    lines = source(check).encode().splitlines(keepends=True)
    starts = [sum(map(len, lines[:n])) for n in range(len(lines))]
    code = b"".join(lines)
    for node in reversed(texts(source(check))):  # from the end, so that places before stay
        if template(node) in said:
            begin = starts[node.lineno - 1] + node.col_offset
            end = starts[node.end_lineno - 1] + node.end_col_offset
            kind = "f" if isinstance(node, ast.JoinedStr) else ""
            quoted = said[template(node)]
            if not kind:
                quoted = quoted.replace("\\", "\\\\").replace('"', '\\"')
            code = code[:begin] + f'{kind}"{quoted}"'.encode() + code[end:]
    outputs = []
    for output in check["outputs"]:
        shown = "".join(output.get("text", ""))
        shown = HINT.sub(lambda hint: told(hint[1], said), shown).replace("right!", said["right!"])
        outputs.append({**output, "text": shown.splitlines(keepends=True)})
    return {**check, "source": code.decode().splitlines(keepends=True), "outputs": outputs}


def told(hint: str, said: dict[str, str]) -> str:
    """What a check says in another language; one that is not known is left in English."""
    return said["not yet: {hint}"].format(hint=said.get(hint, hint))


def texts(code: str) -> list[ast.Constant | ast.JoinedStr]:
    """All strings in Python code, in order; the parts of an f-string are not counted again."""
    found: list[ast.Constant | ast.JoinedStr] = []

    def visit(node: ast.AST) -> None:
        text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if text or isinstance(node, ast.JoinedStr):
            found.append(node)
            return
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(code))
    return sorted(found, key=lambda node: (node.lineno, node.col_offset))


def template(text: ast.expr) -> str:
    """A string as it is written in one piece, an f-string with its {fields}."""
    if isinstance(text, ast.Constant):
        return text.value
    if isinstance(text, ast.JoinedStr):
        return "".join(map(template, text.values))
    assert isinstance(text, ast.FormattedValue)
    how = f"!{chr(text.conversion)}" if text.conversion > 0 else ""
    how += f":{template(text.format_spec)}" if text.format_spec else ""
    return f"{{{ast.unparse(text.value)}{how}}}"


def hints(check: Cell) -> list[str]:
    """What a check may say."""
    return [text for text in map(template, texts(source(check))) if MESSAGE.search(text)]


def is_check(cell: Cell) -> bool:
    return "check" in cell.get("metadata", {}).get("tags", [])


def phrases(lesson: Path, language: str) -> dict[str, str]:
    """The hints of all lessons in a language, by what they are in English."""
    path = lesson.parent / language / MESSAGES
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    own = dict(line.split(" => ", 1) for line in lines if " => " in line)
    return {**PHRASES[language], **own}


def switch(lesson: Path, here: str, languages: Sequence[str]) -> str:
    """The line that leads to the other languages."""
    up = "../" if here else ""
    return " · ".join(
        f"**{LANGUAGES[code]}**"
        if code == here
        else f"[{LANGUAGES[code]}]({up}{f'{code}/' if code else ''}{lesson.name})"
        for code in languages
    )


def problems(lesson: Path) -> Iterator[str]:
    """Where a catalogue does not say what the English lesson says now."""
    english = load(lesson)["cells"]
    cells = {
        cell["id"]: source(cell)
        for cell in english
        if cell["cell_type"] == "markdown" and cell["id"] != SWITCH
    }
    asked = [hint for cell in english if is_check(cell) for hint in hints(cell)]
    for language, path in catalogues(lesson).items():
        catalogue, where = read(path), f"{language}/{path.name}"
        said = phrases(lesson, language)
        for hint in dict.fromkeys(asked):
            if hint not in said:
                yield f"{language}/{MESSAGES} does not say what {hint!r} is"
            elif sorted(FIELD.findall(hint)) != sorted(FIELD.findall(said[hint])):
                yield f"{language}/{MESSAGES} does not have the fields of {hint!r}"
        for name in catalogue.keys() - cells.keys() - {COMMENTS}:
            yield f"{where}: {name} is no Markdown cell of the lesson"
        for name, english in cells.items():
            if name not in catalogue:
                yield f"{where}: {name} is missing: <!-- {name} {mark(english)} -->"
                continue
            seen, text = catalogue[name]
            if seen != mark(english):
                yield (
                    f"{where}: {name} has changed in English; translate it again, then write "
                    f"{mark(english)} in place of {seen or 'nothing'}"
                )
            if sorted(LINK.findall(text)) != sorted(LINK.findall(english)):
                yield f"{where}: {name} does not have the links of the English text"
            code = CODE.search(english)
            if ("{code}" in text) != bool(code):
                yield f"{where}: {name} and the English text do not both have {{code}}"
            for remark in REMARK.findall(code[1]) if code else ():
                if remark not in dictionary(catalogue) and not SHAPE.fullmatch(remark):
                    yield f"{where}: {COMMENTS} does not say what {remark!r} in {name} is"


def read(path: Path) -> Catalogue:
    """The hash and the text of every cell of a catalogue."""
    _, *parts = ENTRY.split(path.read_text(encoding="utf-8"))
    entries = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    return {name: (seen or "", text.strip("\n")) for name, seen, text in entries}


def dictionary(catalogue: Catalogue) -> dict[str, str]:
    """The translations of comments in solutions."""
    lines = catalogue.get(COMMENTS, ("", ""))[1].splitlines()
    return dict(line.split(" => ", 1) for line in lines if line)


def mark(text: str) -> str:
    """Changes when the text does."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def source(cell: Cell) -> str:
    return "".join(cell["source"])


def load(path: Path) -> Notebook:
    return json.loads(path.read_text(encoding="utf-8"))


def dump(notebook: Notebook) -> str:
    """As nbformat writes it, so that a rebuilt lesson differs in what has changed only."""
    return json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.exit(main())
