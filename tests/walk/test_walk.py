"""From a model to the emulator, step by step, and nothing lost on the way."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from brevitas_axe import (
    allocate,
    certify,
    certify_file,
    check_finn,
    emulate,
    export_layers,
    export_qonnx,
    finetune,
    load,
    quantize,
    save,
)
from brevitas_axe.model.layers import find_layers
from brevitas_axe.model.rewrites import tensors_in
from brevitas_axe.run.finetune import distillation
from tests.run.tiny import batches, tiny
from tests.walk.nets import BUILDERS, Untraceable, data, labels, seeded

P = 16
# "prepared" is made of the plain convolutional net.
_OF = {build.__name__: build for build in BUILDERS} | {"prepared": BUILDERS[0]}


@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
def test_a_model_walks_through_every_step(build, tmp_path: Path) -> None:
    source = _OF[build.__name__]
    x, y = data(source), labels(source)
    with warnings.catch_warnings():
        if build is Untraceable:
            warnings.filterwarnings("ignore", ".*layer by layer", UserWarning)
        model = seeded(build)
        widths = {"weight": [3, 4], "input": [4, 6], "accumulator": [P]}
        found = allocate(model, [x], {"bops": 1e9}, widths)
        result = quantize(model, [x], found.plan, quality="fast", progress=False)
    assert result.certificate.require()
    for name, planned in found.plan.layers.items():
        assert (result.plan[name].weight, result.plan[name].accumulator) == (planned.weight, P)
    tuned = finetune(result, [(x, y)], epochs=1, progress=False)
    assert certify(tuned.model, plan=tuned.plan, exclude=tuned.exclude, args=(x,)).ok
    own = Untraceable if build is Untraceable else None
    loaded = load(save(tuned, tmp_path / "model"), own)
    file = tmp_path / "model.onnx"
    export_qonnx(loaded.model, x[:1], file, target="qonnx")
    certificate = certify_file(file, plan=loaded.plan)
    assert certificate.ok
    claimed = {e.layer: (e.minimum, e.maximum, e.width) for e in loaded.certificate.judged}
    assert {e.layer: (e.minimum, e.maximum, e.width) for e in certificate.judged} == claimed
    check_finn(file, notes=True)
    emulated = emulate(file, x[:1].numpy(), plan=loaded.plan)
    assert not any(emulated.overflow_counts.values())
    [expected] = tensors_in(loaded.model(x[:1]))
    assert np.allclose(emulated.output, expected.detach().numpy(), atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "vit"])
def test_a_transformer_walks_through_its_steps(kind, tmp_path: Path) -> None:
    model, calibration = tiny(kind).eval(), batches(kind)
    result = quantize(model, calibration, accumulator_bit_width=P, quality="fast", progress=False)
    assert result.certificate.require()

    def loss(output, batch):
        return output.last_hidden_state.square().mean()

    follow = loss if kind == "vit" else distillation(model, weight=1.0)
    tuned = finetune(result, calibration, epochs=1, loss=follow, progress=False)
    loaded = load(save(tuned, tmp_path / "model"))
    assert loaded.certificate == tuned.certificate
    layers = find_layers(loaded.model)
    names = list(loaded.plan.layers)[:2]
    for name, file in export_layers(loaded.model, tmp_path / "layers", names).items():
        assert certify_file(file, accumulator_bit_width=P).ok
        vector = np.zeros((1, layers[name].in_features), np.float32)
        assert not any(emulate(file, vector, P).overflow_counts.values())
