"""The guarantee holds at every step of anybody's loop, and begins where PTQ ended."""

from __future__ import annotations

import copy
import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from brevitas_axe.export import export_qonnx
from brevitas_axe.model.apply.weights import apply_plan
from brevitas_axe.model.quantizers import (
    Int8WeightPerChannelFixedPointAXE,
    Int8WeightPerChannelFloatAXE,
    Int8WeightPerTensorFixedPointAXE,
    Int8WeightPerTensorFloatAXE,
)
from brevitas_axe.proof.certificate import certify, certify_file
from brevitas_axe.run.finetune import ep_init
from brevitas_axe.run.quantize import quantize
from tests.run.finetune.nets import (
    NETS,
    SHAPES,
    WIDTH,
    all_integers,
    batches,
    conv_net,
    same,
    steps,
    uniform,
)

QUANTIZERS = [
    Int8WeightPerChannelFloatAXE,
    Int8WeightPerTensorFloatAXE,
    Int8WeightPerChannelFixedPointAXE,
    Int8WeightPerTensorFixedPointAXE,
]


def widths(model: nn.Module, kind: str, plan=None) -> list[int]:
    """Proven widths of all integer layers; fails where one is not proven."""
    x = batches(kind, 1)[0][0]
    width = WIDTH if plan is None else None
    exclude = () if kind == "conv" else ("Block.forward",)
    certificate = certify(model, width, plan=plan, exclude=exclude, args=(x,)).require()
    return [entry.width or 0 for entry in certificate.judged]


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_every_step_is_certified(kind, quantizer):
    model = NETS[kind](quantizer)
    before = all_integers(model)
    for _ in steps(model, kind, 20, rate=0.1):
        assert max(widths(model, kind)) <= WIDTH
    assert not same(before, all_integers(model))


@pytest.mark.parametrize("kind", NETS)
def test_the_exported_file_is_certified_at_the_end(kind, tmp_path: Path):
    model = NETS[kind]()
    for _ in steps(model, kind, 20, rate=0.1):
        pass
    x = batches(kind, 1)[0][0]
    expected = all_integers(model)
    export_qonnx(model.eval(), x, tmp_path / "model.onnx", target="qonnx")
    found = certify_file(tmp_path / "model.onnx", WIDTH)
    quantized = [entry for entry in found.entries if entry.layer in expected]
    assert len(quantized) == len(expected)
    assert all(entry.fits for entry in quantized)


@pytest.mark.parametrize("kind", NETS)
def test_tiles_are_held_as_well(kind):
    model = NETS[kind]()
    plan = uniform(model, accumulator=10, tile=8)
    apply_plan(model, plan)
    for _ in steps(model, kind, 10, rate=0.1):
        assert max(widths(model, kind, plan)) <= 10


@pytest.mark.parametrize("width", [12, 10])
def test_the_first_training_forward_has_the_integers_of_ptq(width):
    torch.manual_seed(0)
    data = batches("conv")
    plain = nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4)
    )
    solved = quantize(plain, data, accumulator_bit_width=width, progress=False).model
    expected = all_integers(solved)
    solved.train()
    with torch.no_grad():
        solved(data[0][0])
    assert same(all_integers(solved), expected)
    output = solved.eval()(data[0][0])
    optimizer = torch.optim.SGD(solved.parameters(), lr=0.0)
    F.cross_entropy(solved.train()(data[0][0]), data[0][1]).backward()
    optimizer.step()
    assert torch.equal(solved.eval()(data[0][0]), output)
    assert max(widths(solved, "conv")) <= width


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_integers_alone(dtype):
    model = conv_net().train()
    x, y = batches("conv", 1)[0]
    expected = all_integers(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16)
    for _ in range(3):
        with torch.autocast("cpu", dtype):
            assert same(all_integers(model), expected)
            loss = F.cross_entropy(model(x).float(), y)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        expected = all_integers(model)
        # Not inside autocast: it rounds the activations, of which the certifier then says so.
        assert max(widths(model, "conv")) <= WIDTH


@pytest.mark.parametrize("kind", NETS)
def test_gradient_checkpointing_gives_the_same_gradients(kind):
    plain = NETS[kind]().train()
    saving = copy.deepcopy(plain)
    x, y = batches(kind, 1)[0]
    F.cross_entropy(plain(x), y).backward()
    F.cross_entropy(checkpoint(saving, x, use_reentrant=False), y).backward()
    for (name, one), other in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), name


def test_an_averaged_copy_is_certified_at_every_step():
    model = conv_net()
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.7))
    for _ in steps(model, "conv", 8, rate=0.1):
        averaged.update_parameters(model)
        assert max(widths(averaged.module, "conv")) <= WIDTH
    assert not same(all_integers(averaged.module), all_integers(model))


def load_and_compare(path: str, queue) -> None:
    saved = torch.load(path, weights_only=True)
    model = conv_net()
    model.load_state_dict(saved["model"])
    output = model.eval()(saved["x"])
    queue.put((same(all_integers(model), saved["integers"]), torch.equal(output, saved["output"])))


def test_another_process_loads_the_same_integers_and_output(tmp_path: Path):
    model = conv_net()
    for _ in steps(model, "conv", 5, rate=0.1):
        pass
    x = batches("conv", 1)[0][0]
    content = {"model": model.state_dict(), "x": x, "integers": all_integers(model)}
    torch.save({**content, "output": model.eval()(x).detach()}, tmp_path / "trained.pt")
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=load_and_compare, args=(str(tmp_path / "trained.pt"), queue))
    process.start()
    assert queue.get(timeout=120) == (True, True)
    process.join()


def train_in_parallel(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model = conv_net()
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(parallel.parameters(), 0.05)
    proven = []
    for x, y in batches("conv", 4, seed=10 + rank):
        optimizer.zero_grad()
        F.cross_entropy(parallel(x), y).backward()
        optimizer.step()
        proven.append(max(widths(model, "conv")))
    torch.save((all_integers(model), proven), f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")
def test_two_processes_agree_and_are_certified(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=train_in_parallel, args=(rank, str(tmp_path))) for rank in (0, 1)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(180)
        assert worker.exitcode == 0
    (one, first), (two, second) = (
        torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)
    )
    assert same(one, two)
    assert max(first + second) <= WIDTH


@pytest.mark.filterwarnings("ignore")  # torch.compile's own, about what it cannot trace
def test_a_compiled_model_trains_and_is_certified():
    torch._dynamo.reset()
    model = conv_net()
    compiled = torch.compile(model, backend="aot_eager")
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    compiled.train()
    for x, y in batches("conv", 2):
        optimizer.zero_grad()
        F.cross_entropy(compiled(x), y).backward()
        optimizer.step()
        assert max(widths(model, "conv")) <= WIDTH


@pytest.mark.parametrize("quantizer", ["a2q", "a2q+"])
@pytest.mark.parametrize("kind", NETS)
def test_a2q_is_certified_in_the_same_way(kind, quantizer, tmp_path: Path):
    model, x = NETS[kind](), torch.rand(8, *SHAPES[kind])
    # A2Q needs room: its norm counts both signs, and rounds towards 0.
    apply_plan(model, uniform(model, accumulator=16), (x,), quantizer=quantizer)
    ep_init(model, (x,))
    plan = uniform(model, accumulator=16)
    for _ in steps(model, kind, 10, rate=0.02):
        assert max(widths(model, kind, plan)) <= 16
    expected: dict[str, Tensor] = all_integers(model)
    export_qonnx(model.eval(), x, tmp_path / "model.onnx", target="qonnx")
    found = certify_file(tmp_path / "model.onnx", 16)
    assert sum(entry.fits for entry in found.entries if entry.layer in expected) == len(expected)
