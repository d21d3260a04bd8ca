"""Work is done once, in parallel, and survives a kill."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import joblib
import numpy as np
import pytest
import torch
from distributed import Client, LocalCluster
from joblib.parallel import BACKENDS, ThreadingBackend

from brevitas_axe.errors import InvalidState, NonFiniteValues
from brevitas_axe.methods.sensitivity import Trials, make_choices, score
from brevitas_axe.model.prepare import as_batches, to_brevitas
from tests.model.test_prepare import X, conv_net

WORK = [(str(n), (n,)) for n in range(5)]


def square(n: int) -> list[float]:
    return [float(n * n)]


def test_known_work_is_not_done_again(tmp_path) -> None:
    first = Trials("f", tmp_path)
    assert first.map(square, WORK[:3]) == [[0.0], [1.0], [4.0]]
    second = Trials("f", tmp_path, workers=2)
    assert second.map(square, WORK) == [[float(n * n)] for n in range(5)]
    assert second.run_count == 2
    assert Trials("other", tmp_path).map(square, WORK[:1]) == [[0.0]]


def test_a_line_cut_short_is_done_again(tmp_path) -> None:
    Trials("f", tmp_path).map(square, WORK)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-4])
    again = Trials("f", tmp_path)
    assert again.map(square, WORK) == [[float(n * n)] for n in range(5)]
    assert again.run_count == 1
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 5


def test_a_broken_file_is_named(tmp_path) -> None:
    Trials("f", tmp_path).map(square, WORK)
    (path,) = tmp_path.iterdir()
    path.write_text("nonsense\n")
    with pytest.raises(InvalidState, match="delete it"):
        Trials("f", tmp_path)


@pytest.mark.parametrize(("old", "new"), [("4.0", "9.0"), ('"2"', '"3"'), (']", ', '", ')])
def test_a_changed_record_is_noticed(tmp_path, old, new) -> None:
    Trials("f", tmp_path).map(square, WORK)
    (path,) = tmp_path.iterdir()
    text = path.read_text()
    path.write_text(text.replace(old, new, 1) if old in text else text[:5] + "x" + text[5:])
    with pytest.raises(InvalidState, match="delete it"):
        Trials("f", tmp_path)


def test_nan_is_not_kept(tmp_path) -> None:
    with pytest.raises(NonFiniteValues, match="trial '0'"):
        Trials("f", tmp_path).map(lambda n: float("nan"), WORK[:1])
    assert not Trials("f", tmp_path).knows("0")


class AllAtOnce(ThreadingBackend):
    """Like Ray's backend, it has no generators."""

    supports_return_generator = False


def test_a_backend_may_give_all_results_at_once(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(BACKENDS, "all_at_once", AllAtOnce)
    with joblib.parallel_config(backend="all_at_once"):
        assert Trials("f", tmp_path, workers=2).map(square, WORK) == [
            [float(n * n)] for n in range(5)
        ]
        assert Trials(workers=2).run(square, [(2,), (3,)]) == [[4.0], [9.0]]
    assert Trials("f", tmp_path).knows("4")


def works_elsewhere() -> None:
    """Every trial runs in another process than this one."""
    found = Trials(workers=2).map(os.getpid, [(str(n), ()) for n in range(4)])
    assert os.getpid() not in found


@pytest.fixture
def cluster() -> Iterator[None]:
    """Two worker processes of Dask, for joblib's backend of that name."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as workers,
        Client(workers),
    ):
        yield


def scored_twice(backend: str) -> None:
    """The same scores from one worker and from two."""
    model = to_brevitas(conv_net().eval(), as_batches([X]))
    choices = make_choices(model, (X[:1],), weight=(2, 4))
    alone = score(model, [X], choices, "measured")
    with joblib.parallel_config(backend=backend):
        together = score(model, [X], choices, "measured", workers=2)
    for name in choices.layers:
        assert np.allclose(alone.harm[name], together.harm[name], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("backend", ["threading", "loky"])
def test_two_workers_give_what_one_gives(backend) -> None:
    scored_twice(backend)


def test_processes_are_others() -> None:
    with joblib.parallel_config(backend="loky"):
        works_elsewhere()


@pytest.mark.slow
# Dask's scheduler, here in this process, unpickles the model, and Brevitas's tracer warns.
@pytest.mark.filterwarnings("ignore:`treespec.children_specs` is deprecated:FutureWarning")
def test_so_does_a_cluster_with_nothing_changed(cluster) -> None:
    with joblib.parallel_config(backend="dask"):
        works_elsewhere()
    scored_twice("dask")


def test_a_changed_weight_is_scored_anew(tmp_path) -> None:
    model = to_brevitas(conv_net().eval(), as_batches([X]))
    choices = make_choices(model, (X[:1],), weight=(2, 4))
    score(model, [X], choices, "pmpq", state=tmp_path)
    with torch.no_grad():
        next(model.parameters()).flatten()[0] += 0.5
    score(model, [X], choices, "pmpq", state=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
