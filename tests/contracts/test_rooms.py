"""What holds for every method of every room: how it is written, what it says, and its tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from brevitas_axe.errors import InvalidOption
from brevitas_axe.registry import ROOMS, catalogue, method, option_texts, spec_of

TESTS = Path(__file__).parents[1]
PACKAGE = TESTS.parent / "brevitas_axe"
EVERY = [(room, name) for room, found in catalogue().items() for name in found]
every_method = pytest.mark.parametrize(("room", "name"), EVERY)
every_room = pytest.mark.parametrize("room", ROOMS)


@every_method
def test_a_method_is_written_as_it_is_read(room, name) -> None:
    found = catalogue()[room][name]
    assert spec_of(room, found) == name
    assert method(room, name) is found
    assert method(room, found) is found
    everything = ",".join(f"{key}={text}" for key, text in option_texts(found).items())
    assert method(room, f"{name}:{everything}") == found


@every_method
def test_an_option_that_is_none_is_refused(room, name) -> None:
    assert "no_such_option" not in option_texts(method(room, name))
    with pytest.raises(InvalidOption, match=f"'no_such_option=1' is no option of '{name}'"):
        method(room, f"{name}:no_such_option=1")


@every_method
def test_facts_are_complete(room, name) -> None:
    facts = method(room, name).facts
    assert all((facts.kind, facts.granularity, facts.signal, facts.export, facts.source))


@every_method
def test_a_method_has_tests_of_its_own(room, name) -> None:
    if (PACKAGE / "methods" / room / f"{name}.py").is_file():
        assert (TESTS / "methods" / room / f"test_{name}.py").is_file()


@every_room
def test_a_room_has_a_protocol_and_a_contract(room) -> None:
    protocol = PACKAGE / "methods" / room / "protocol.py"
    assert protocol.is_file(), f"{room} says nowhere what a method of it is"
    assert "Protocol" in protocol.read_text(encoding="utf-8")
    assert (TESTS / "contracts" / f"test_{room}.py").is_file()
