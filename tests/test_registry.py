"""How methods are found, configured and written back, in a room made for this test."""

from __future__ import annotations

import importlib
import subprocess
import sys
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brevitas_axe import registry
from brevitas_axe.errors import InvalidOption
from brevitas_axe.registry import (
    Facts,
    catalogue,
    method,
    methods,
    option_names,
    option_texts,
    spec_of,
    with_options,
)

GROUP = "brevitas_axe.parlour"
FACTS = Facts("–", "layer", "nothing", "–", "ours")

METHOD = """
from dataclasses import dataclass
from brevitas_axe.registry import Facts

@dataclass(frozen=True)
class Method:
    weight: int = 1
    facts = Facts("–", "layer", "nothing", "–", "ours")

{name} = Method()
other = 3
"""


@pytest.fixture
def room(tmp_path, monkeypatch):
    """A room with two methods and a tool; its folder."""
    house = tmp_path / "house"
    folder = house / "parlour"
    folder.mkdir(parents=True)
    for package in (house, folder):
        (package / "__init__.py").write_text("")
    for name in ("second", "first"):
        (folder / f"{name}.py").write_text(METHOD.format(name=name))
    (folder / "tool.py").write_text("helper = 4\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "ROOMS", ("parlour",))
    monkeypatch.setattr(registry, "_METHODS", "house")
    importlib.invalidate_caches()
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "house"]:
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


# Loaded as "tests.test_registry:OF_OTHERS".
@dataclass(frozen=True)
class OfOthers:
    facts = FACTS


OF_OTHERS = OfOthers()
WITHOUT_FACTS = 3


def test_a_file_registers_the_object_of_its_own_name(room) -> None:
    found = methods("parlour")
    assert list(found) == ["first", "second"]
    assert found["first"] is importlib.import_module("house.parlour.first").first
    assert list(catalogue()) == ["parlour"]


def test_an_unknown_room_lists_the_rooms(room) -> None:
    with pytest.raises(InvalidOption, match="'attic' is no room of methods; there are: parlour"):
        methods("attic")


def test_entry_points_of_the_group_come_after_the_files(room, install) -> None:
    install(("zeta", "tests.test_registry:OF_OTHERS"), ("alpha", "tests.test_registry:OF_OTHERS"))
    assert list(methods("parlour")) == ["first", "second", "alpha", "zeta"]
    assert method("parlour", "zeta") == OF_OTHERS


def test_entry_points_are_looked_up_once(room, install, monkeypatch) -> None:
    install(("zeta", "tests.test_registry:OF_OTHERS"))
    assert "zeta" in methods("parlour")

    def again(group: str) -> list:
        raise AssertionError(f"{group} was looked up again")

    monkeypatch.setattr(registry, "entry_points", again)
    assert "zeta" in methods("parlour")


@pytest.mark.parametrize("names", [["first"], ["a", "a"]])
def test_a_second_method_of_one_name_is_refused(room, install, names) -> None:
    install(*((name, "tests.test_registry:OF_OTHERS") for name in names))
    with pytest.raises(InvalidOption, match=f"'{names[0]}' .* is registered twice in '{GROUP}'"):
        methods("parlour")


@pytest.mark.parametrize("value", ["no_such_package:x", "math:no_such_name"])
def test_an_entry_point_that_cannot_be_loaded_is_named(room, install, value) -> None:
    install(("broken", value))
    with pytest.raises(InvalidOption, match=f"'broken' \\({value}\\) .* cannot be loaded"):
        methods("parlour")


@pytest.mark.parametrize("name", ["WITHOUT_FACTS", "OfOthers", "methods"])
def test_what_has_no_facts_is_no_method(room, install, name) -> None:
    install(("odd", f"tests.test_registry:{name}"))
    with pytest.raises(InvalidOption, match="'odd' of the room 'parlour' is no method"):
        methods("parlour")


def test_nothing_of_a_file_s_name_is_a_method_by_accident(room) -> None:
    (room / "tool.py").write_text("def tool(): ...\n")
    with pytest.raises(InvalidOption, match="'tool' of the room 'parlour' is no method"):
        methods("parlour")


def test_an_unknown_name_lists_the_known(room) -> None:
    with pytest.raises(InvalidOption, match=r"'third' is not registered .*: first, second\."):
        method("parlour", "third")


def test_a_method_is_taken_as_it_is_and_nothing_else_is() -> None:
    assert method("allocate", OF_OTHERS) is OF_OTHERS
    with pytest.raises(InvalidOption, match="'int' of the room 'allocate' is no method"):
        method("allocate", 3)


@dataclass(frozen=True)
class Many:
    """An option of every type that can be written."""

    unit: str
    steps: int = 3
    share: float = 0.5
    exact: bool = False
    pattern: str = "attn"
    kind: Literal["row", "layer", 4] = "row"
    bits: tuple[int, ...] = (2, 4)
    limit: int | None = None
    either: int | str = 1
    function: Any = len
    facts = FACTS

    def __post_init__(self) -> None:
        if self.steps == 13:
            raise ValueError("not thirteen")


MANY = Many("bytes")


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ("", {}),
        ("steps=8", {"steps": 8}),
        ("share=1e-3,steps=-1", {"share": 1e-3, "steps": -1}),
        ("exact=true", {"exact": True}),
        ("exact=No", {"exact": False}),
        ("kind=layer", {"kind": "layer"}),
        ("kind=4", {"kind": 4}),
        ("bits=2;3;8", {"bits": (2, 3, 8)}),
        ("bits=2 3", {"bits": (2, 3)}),
        ("bits=", {"bits": ()}),
        ("limit=5", {"limit": 5}),
        ("limit=none", {"limit": None}),
        ("either=7", {"either": 7}),
        ("either=seven", {"either": "seven"}),
        ("pattern=", {"pattern": ""}),
        ("pattern=a{1,2}|b[,.]", {"pattern": "a{1,2}|b[,.]"}),
        ("pattern=a{1,2}|b=c:d, steps = 4", {"pattern": "a{1,2}|b=c:d", "steps": 4}),
    ],
)
def test_options_of_every_type(options, changes) -> None:
    assert with_options(MANY, "many", options) == replace(MANY, **changes)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("speed=3", "'speed=3' is no option of 'many'; it has: steps, share, exact, pattern"),
        ("steps", "'steps' is no option of 'many'"),
        ("unit=bits", "'unit=bits' is no option"),
        ("function=len", "'function=len' is no option"),
        ("steps=1,steps=2", "option 'steps' of 'many' is given twice"),
        ("steps=few", r"option 'steps' of 'many' is a number \(int\), not 'few'"),
        ("steps=1.5", r"option 'steps' of 'many' is a number \(int\), not '1.5'"),
        ("share=nan", r"option 'share' of 'many' is a number \(float\), not 'nan'"),
        ("exact=maybe", "option 'exact' of 'many' is true or false, not 'maybe'"),
        ("kind=column", "option 'kind' of 'many' is one of row, layer, 4, not 'column'"),
        ("bits=2;x", "option 'bits' of 'many' is a number"),
        ("limit=some", "option 'limit' of 'many' is a number"),
        ("steps=13", "'many:steps=13' cannot be used: not thirteen"),
    ],
)
def test_a_bad_option_is_one_sentence(options, says) -> None:
    with pytest.raises(InvalidOption, match=says) as raised:
        with_options(MANY, "many", options)
    message = str(raised.value)
    assert message.endswith(".")
    assert "\n" not in message


def test_options_are_fields_with_a_default_that_can_be_written() -> None:
    names = ["steps", "share", "exact", "pattern", "kind", "bits", "limit", "either"]
    assert option_names(MANY) == names
    assert option_texts(MANY)["limit"] == "none"
    with pytest.raises(InvalidOption, match="'x=1' is no option of 'of_others'; it has none"):
        with_options(OF_OTHERS, "of_others", "x=1")


@pytest.fixture
def with_many(room, install):
    install(("many", "tests.test_registry:MANY"))


written = st.fixed_dictionaries(
    {
        "steps": st.integers(-50, 12),
        "share": st.floats(allow_nan=False),
        "exact": st.booleans(),
        "pattern": st.text("ab=,;:|. ", max_size=8),
        "kind": st.sampled_from(["row", "layer", 4]),
        "bits": st.lists(st.integers(0, 9), max_size=3).map(tuple),
        "limit": st.none() | st.integers(),
        "either": st.integers(0, 3) | st.sampled_from(["none", "2", "x"]),
    }
)


@given(written)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read_again_or_refused(with_many, options) -> None:
    changed = replace(MANY, **options)
    try:
        spec = spec_of("parlour", changed)
    except InvalidOption:
        text = options["pattern"]
        lost = text != text.strip() or "=" in text or options["either"] == "2"
        assert lost, "only what a comma, a space or a number hides cannot be written"
    else:
        assert method("parlour", spec) == changed


def test_only_what_is_not_usual_is_written(with_many) -> None:
    assert spec_of("parlour", MANY) == "many"
    changed = replace(MANY, steps=1, bits=(1, 0), limit=0, exact=True)
    assert spec_of("parlour", changed) == "many:steps=1,exact=true,bits=1;0,limit=0"


def test_what_cannot_be_written_is_refused(with_many) -> None:
    for found in (replace(MANY, function=max), replace(MANY, unit="bits"), OF_OTHERS):
        with pytest.raises(InvalidOption, match="cannot be written as NAME:key=value"):
            spec_of("parlour", found)


@pytest.mark.parametrize(
    ("room_name", "spec"),
    [
        ("sensitivity", "augmented:probes=0"),
        ("sensitivity", "augmented:strength=-1"),
        ("sensitivity", "cmpq:variance=1.5"),
        ("sensitivity", "hutchinson:probes=0"),
        ("sensitivity", "importance:steps=0"),
        ("sensitivity", "local:rows=0"),
        ("sensitivity", "pmpq:share=-0.1"),
        ("allocate", "bisection:interactions=-1"),
        ("allocate", "clustering:clusters=0"),
        ("allocate", "ilp:gap=-1"),
        ("allocate", "search:trials=-1"),
        ("allocate", "search:seed=-1"),
        ("allocate", "shares:steps=-1"),
        ("caches", "kv_cache:bits=4;4"),
    ],
)
def test_numbers_that_mean_nothing_are_refused_at_once(room_name, spec) -> None:
    with pytest.raises(InvalidOption, match=r"must be|none twice"):
        method(room_name, spec)


def test_rooms_load_without_optional_packages() -> None:
    """What only some users install is imported where it is used, not with the room."""
    optional = (
        *("triton", "xgboost", "shtab", "transformers", "accelerate", "distributed", "dask"),
        *("tensorboard", "mlflow"),
    )
    blocked = "; ".join(f"sys.modules[{name!r}] = None" for name in optional)
    rooms = "from brevitas_axe.registry import ROOMS, methods; [methods(room) for room in ROOMS]"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"import sys; {blocked}; {rooms}"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
