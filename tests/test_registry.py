"""Files register under their own names, entry points beside them, nobody twice."""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import EntryPoint

import pytest

from brevitas_axe import registry
from brevitas_axe.errors import InvalidOption
from brevitas_axe.registry import chosen, registered

GROUP = "brevitas_axe.room"


@pytest.fixture
def room(tmp_path, monkeypatch):
    """A room with two methods and a tool."""
    folder = tmp_path / "some_room"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "second.py").write_text("second = 2\n")
    (folder / "first.py").write_text("first = 1\nother = 3\n")
    (folder / "tool.py").write_text("helper = 4\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("some_room")
    for name in [name for name in sys.modules if name.startswith("some_room")]:
        del sys.modules[name]


@pytest.fixture
def install(monkeypatch):
    """Makes other packages' entry points appear."""
    registry.installed.cache_clear()

    def with_entries(*pairs: tuple[str, str]) -> None:
        entries = [EntryPoint(name, value, GROUP) for name, value in pairs]
        monkeypatch.setattr(
            registry, "entry_points", lambda group: entries if group == GROUP else []
        )

    yield with_entries
    registry.installed.cache_clear()


def test_a_file_registers_the_object_of_its_own_name(room) -> None:
    assert registered(GROUP, room) == {"first": 1, "second": 2}
    assert list(registered(GROUP, room)) == ["first", "second"]


def test_entry_points_come_after_the_files(room, install) -> None:
    install(("zeta", "math:pi"), ("alpha", "math:tau"))
    assert list(registered(GROUP, room)) == ["first", "second", "alpha", "zeta"]
    assert chosen(GROUP, room, "zeta") == pytest.approx(3.14159, abs=1e-4)
    assert "zeta" not in registered("brevitas_axe.elsewhere", room)


def test_entry_points_are_looked_up_once(room, install, monkeypatch) -> None:
    install(("zeta", "math:pi"))
    assert "zeta" in registered(GROUP, room)

    def again(group: str) -> list:
        raise AssertionError(f"{group} was looked up again")

    monkeypatch.setattr(registry, "entry_points", again)
    assert "zeta" in registered(GROUP, room)


@pytest.mark.parametrize("pairs", [[("first", "math:pi")], [("a", "math:pi"), ("a", "math:e")]])
def test_a_second_method_of_one_name_is_refused(room, install, pairs) -> None:
    install(*pairs)
    with pytest.raises(InvalidOption, match=f"'{pairs[0][0]}' .* is registered twice"):
        registered(GROUP, room)


@pytest.mark.parametrize("value", ["no_such_package:x", "math:no_such_name"])
def test_an_entry_point_that_cannot_be_loaded_is_named(room, install, value) -> None:
    install(("broken", value))
    with pytest.raises(InvalidOption, match=f"'broken' \\({value}\\) .* cannot be loaded"):
        registered(GROUP, room)


def test_an_unknown_name_lists_the_known(room) -> None:
    with pytest.raises(InvalidOption, match=r"'third' is not registered .*: first, second"):
        chosen(GROUP, room, "third")
