"""What the documents for contributors say is so: examples run, and names exist."""

from __future__ import annotations

import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from brevitas_axe import registry
from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods import cost
from brevitas_axe.methods.cost import LayerShape
from brevitas_axe.plan import LayerPrecision
from brevitas_axe.registry import ROOMS, Facts, method, methods

ROOT = Path(__file__).parents[1]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def block(document: str, start: str) -> str:
    """The code block that begins with a line; there is one."""
    blocks = re.findall(r"^```\w+\n(.*?)^```$", document, re.MULTILINE | re.DOTALL)
    [found] = [text for text in blocks if text.startswith(start)]
    return found


FILE = block(ARCHITECTURE, "# traffic.py\n")
USE = block(ARCHITECTURE, "from brevitas_axe import LayerPrecision\n")


@pytest.fixture(params=["entry point", "file of the room"])
def registered(request, tmp_path, monkeypatch):
    """The example of the document, registered in one of the two ways."""
    folder = tmp_path / "my_package"
    folder.mkdir()
    (folder / "traffic.py").write_text(FILE, encoding="utf-8")
    registry.installed.cache_clear()
    if request.param == "entry point":
        (folder / "__init__.py").touch()
        monkeypatch.syspath_prepend(str(tmp_path))
        declared = block(ARCHITECTURE, "[project.entry-points")
        [(group, name, value)] = re.findall(
            r'\[project\.entry-points\."(.+)"\]\n(\w+) = "(.+)"\n', declared
        )
        entry = EntryPoint(name, value, group)
        monkeypatch.setattr(
            registry, "entry_points", lambda group: [entry] if group == entry.group else []
        )
    else:
        monkeypatch.setattr(cost, "__path__", [*cost.__path__, str(folder)])
    yield
    registry.installed.cache_clear()
    for name in ("my_package", "my_package.traffic", "brevitas_axe.methods.cost.traffic"):
        sys.modules.pop(name, None)
    vars(cost).pop("traffic", None)


@pytest.mark.usefixtures("registered")
def test_the_example_of_a_method_runs_as_printed() -> None:
    exec(compile(USE, "docs/architecture.md", "exec"), {})
    assert isinstance(methods("cost")["traffic"].facts, Facts)
    with pytest.raises(InvalidOption, match="at least one position, not 0"):
        method("cost", "traffic:reuse=0")


@pytest.mark.usefixtures("registered")
def test_the_example_keeps_the_promises_of_its_room() -> None:
    shape = LayerShape("fc", "dense", inputs=8, outputs=3, vectors=7)
    found = [
        method("cost", "traffic:reuse=2")(shape, LayerPrecision(weight=bits, input=4))
        for bits in (2, 3, 8)
    ]
    assert found == sorted(found)
    assert found[0] == 4 * 24 * 2


def test_the_example_is_gone_without_its_registration() -> None:
    assert "traffic" not in methods("cost")


def test_every_room_is_described_in_the_order_of_a_run() -> None:
    rooms = ARCHITECTURE.split("### Room by room")[1]
    assert tuple(re.findall(r"^\| `(\w+)` \|", rooms, re.MULTILINE)) == ROOMS


def test_terms_are_sorted_and_their_names_exist() -> None:
    rows = re.findall(r"^\| ([^|]+) \| `(\w+)` \| (.+) \|$", GLOSSARY, re.MULTILINE)
    terms = [term for term, _, _ in rows]
    assert len(rows) == len(re.findall(r"^\| ", GLOSSARY, re.MULTILINE)) - 2
    assert terms == sorted(terms, key=str.casefold)
    sources = (path.read_text("utf-8") for path in (ROOT / "brevitas_axe").rglob("*.py"))
    words = set(re.findall(r"\w+", "\n".join(sources)))
    assert not {name for _, name, _ in rows} - words


@pytest.mark.parametrize("name", ["docs/architecture.md", "docs/glossary.md", "CONTRIBUTING.md"])
def test_links_and_paths_exist(name: str) -> None:
    path = ROOT / name
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or (path.parent / target).exists(), target
    for written in re.findall(r"\b(?:brevitas_axe|tests|benchmarks|docs)/[\w/]+\.(?:py|md)", text):
        invented = {"brevitas_axe/methods/cost/traffic.py"}
        placeholder = "ROOM" in written or "NAME" in written
        assert written in invented or placeholder or (ROOT / written).exists(), written
