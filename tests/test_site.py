"""The site's pages are all in its table of contents, and its reference has every public name."""

from __future__ import annotations

import re
from pathlib import Path

import brevitas_axe
from brevitas_axe.registry import ROOMS

DOCS = Path(__file__).parents[1] / "docs"


def test_every_page_is_in_the_table_of_contents() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    trees = re.findall(r"^```\{toctree\}\n(.*?)^```$", index, re.MULTILINE | re.DOTALL)
    listed = [line for tree in trees for line in tree.splitlines() if re.fullmatch(r"\w+", line)]
    assert sorted(listed) == sorted(page.stem for page in DOCS.glob("*.md") if page.stem != "index")


def test_every_public_name_and_room_is_in_the_reference() -> None:
    reference = (DOCS / "api.md").read_text(encoding="utf-8")
    described = set(re.findall(r"\bbrevitas_axe\.(\w+)$", reference, re.MULTILINE))
    described |= set(re.findall(r"`(Int8\w+)`", reference))
    errors = {"AxeError"}  # with all others, from their module
    assert set(brevitas_axe.__all__) - errors <= described
    rooms = re.findall(r"brevitas_axe\.methods\.(\w+)\.protocol$", reference, re.MULTILINE)
    assert tuple(rooms) == ROOMS
