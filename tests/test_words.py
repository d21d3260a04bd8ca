"""Docstrings, comments and messages use the field's terms, as docs/glossary.md has them."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(p for f in ("brevitas_axe", "benchmarks") for p in (ROOT / f).rglob("*.py"))

# Word → the term to use. Only words that are never right in this package stand here.
REFUSED = {
    r"sleep(s|ing)?|asleep|awake|wakes?": "suspended, resumed",
    r"bless(es|ed)?": "marked as exact",
    r"tenants?": "method",
    r"drawers?": "file, package",
    r"the house": "package",
    r"doors?": "target, function",
    r"pushes|pushed|pushing": "gradient",
    r"bargains?": "move",
    r"bit(es|ing)": "binds, exceeds",
    r"vouch(es|ed)?": "check, trust",
    r"riddles?": "question",
    r"runners?-up": "next best",
    r"kin": "similar models",
    r"lets? slip": "exceeds by its tolerance",
    r"without a word": "silently, without an error",
    r"we|us|our job|let's": "the package, or the passive",
}
PATTERN = re.compile("|".join(rf"(?P<w{i}>\b(?:{w})\b)" for i, w in enumerate(REFUSED)), re.I)
# Python 3.12 and later split f-strings into tokens of their own.
TEXTS = (tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING))
# Names that mean something else than the thing that they once stood for.
REFUSED_NAMES = {"reach": "input_range", "hold": "project", "moving": "runtime_zero_points"}


def words_of(source: str) -> Iterator[tuple[int, str]]:
    """(line, text) of every comment and every string, names of keys and patterns left out."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
        elif token.type in TEXTS and " " in token.string:
            for offset, line in enumerate(token.string.splitlines()):
                yield token.start[0] + offset, line


def refused_in(source: str) -> list[str]:
    """One sentence for every refused word and name in a module."""
    found = []
    for line, text in words_of(source):
        for match in PATTERN.finditer(text):
            term = list(REFUSED.values())[int(str(match.lastgroup)[1:])]
            found.append(f"line {line}: '{match.group()}'; say: {term}")
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME and token.string in REFUSED_NAMES:
            better = REFUSED_NAMES[token.string]
            found.append(f"line {token.start[0]}: the name '{token.string}'; say: {better}")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_words_are_those_of_the_field(path: Path) -> None:
    assert not refused_in(path.read_text(encoding="utf-8"))


def test_refused_words_are_found() -> None:
    source = 'reach = 1  # the forward sleeps here\nmessage = "f(x) bites"\n'
    assert len(refused_in(source)) == 3
