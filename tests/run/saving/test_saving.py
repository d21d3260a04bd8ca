"""What is saved comes back with the same integers and the same proof, or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from brevitas import nn as qnn
from brevitas.inject import ExtendedInjector
from brevitas.quant import Int32Bias
from brevitas.quant.base import IntQuant, MaxStatsScaling
from brevitas.quant.solver import WeightQuantSolver
from torch import nn

import brevitas_axe
from brevitas_axe import (
    BlocksResult,
    FinetuneResult,
    Plan,
    QuantizeResult,
    apply_plan,
    certify,
    finetune,
    load,
    quantize,
    save,
)
from brevitas_axe.errors import InvalidOption, InvalidState
from brevitas_axe.model.layers import find_layers, integer_weight
from brevitas_axe.plan import LayerPrecision
from tests.run.finetune.test_checkpoint import shared
from tests.run.tiny import batches, tiny
from tests.walk.nets import Build, Residual, Untraceable, data, labels, mlp, qat, seeded

FAST = {"progress": False, "quality": "fast"}


def solved(build: Build = Residual) -> QuantizeResult:
    return quantize(seeded(build), [data(build)], accumulator_bit_width=16, **FAST)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save(solved(), tmp_path_factory.mktemp("saved") / "net")


def copied(folder: Path, place: Path) -> Path:
    place.mkdir()
    for path in folder.iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    return place


def assert_same(one: nn.Module, other: nn.Module) -> None:
    mine, others = (find_layers(m, tile_scales=True) for m in (one, other))
    assert list(mine) == list(others)
    for name, layer in mine.items():
        assert torch.equal(layer.quant_weight().value, others[name].quant_weight().value), name
    states = one.state_dict(), other.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_everything_of_a_result_comes_back(folder) -> None:
    result, loaded = solved(), load(folder)
    assert type(loaded) is type(result)
    for name in ("plan", "recipe", "certificate", "exclude", "assumptions"):
        assert getattr(loaded, name) == getattr(result, name), name
    assert isinstance(loaded, QuantizeResult)
    assert [e["name"] for e in loaded.layers] == [e["name"] for e in result.layers]
    assert_same(result.model, loaded.model)
    x = data(Residual)
    assert torch.equal(result.model(x), loaded.model(x))
    assert type(loaded.model).__name__ == type(result.model).__name__


def test_shared_quantizers_stay_shared_also_when_the_loaded_model_loads(folder) -> None:
    loaded = load(folder)
    before = shared(solved().model)
    assert before
    assert shared(loaded.model) == before
    loaded.model.load_state_dict(solved().model.state_dict())
    assert shared(loaded.model) == before


def test_another_process_gets_the_same(folder) -> None:
    code = (
        "import sys, brevitas_axe, torch\n"
        "from tests.walk.nets import Residual, data\n"
        "result = brevitas_axe.load(sys.argv[1])\n"
        "assert result.certificate.ok\n"
        "print(result.model(data(Residual)).flatten().tolist())\n"
    )
    root = Path(brevitas_axe.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(folder)],
        capture_output=True,
        text=True,
        cwd=root,
        check=True,
    )
    expected = solved().model(data(Residual)).flatten().tolist()
    assert json.loads(done.stdout.splitlines()[-1]) == expected


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", {"rotate": True, "smooth": 0.5, "activations": "per_token", "tile_size": 16}),
        ("gpt2", {}),
        ("vit", {"tile_scales": True, "tile_size": 16}),
        ("llama", {"recipe": brevitas_axe.Recipe(split="channel_split")}),
    ],
)
def test_transformers_are_built_from_the_folder_alone(kind, options, tmp_path) -> None:
    options = {"accumulator_bit_width": 16, **FAST, **options}
    result = quantize(tiny(kind).eval(), batches(kind), **options)
    loaded = load(save(result, tmp_path / "model"))
    assert isinstance(loaded, BlocksResult)
    assert isinstance(result, BlocksResult)
    assert loaded.floats == result.floats
    assert loaded.certificate == result.certificate
    assert_same(result.model, loaded.model)


def test_transformers_itself_gives_no_float_model(tmp_path) -> None:
    from transformers import AutoModelForCausalLM

    result = quantize(tiny("llama").eval(), batches("llama"), accumulator_bit_width=16, **FAST)
    with pytest.raises(InvalidOption, match=r"brevitas_axe\.save"):
        result.model.save_pretrained(tmp_path / "theirs")  # type: ignore[operator]
    assert not (tmp_path / "theirs").exists()
    save(result, tmp_path / "ours")
    with pytest.raises(InvalidOption, match=r"brevitas_axe\.load"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["quantization_config"] == {"quant_method": "brevitas_axe"}
    # Where nobody registered us, there are no weights under a name that transformers reads.
    assert not list((tmp_path / "ours").glob("*.safetensors"))


def test_a_class_of_ones_own_comes_from_the_model_that_is_given(tmp_path) -> None:
    with pytest.warns(UserWarning, match="layer by layer"):
        result = solved(Untraceable)
    folder = save(result, tmp_path / "net")
    for model in (Untraceable(), Untraceable, "tests.walk.nets:Untraceable"):
        assert_same(result.model, load(folder, model).model)
    given = Untraceable()
    weights = given.first.weight.clone()
    load(folder, given)
    assert torch.equal(given.first.weight, weights)
    with pytest.raises(InvalidOption, match="your own class Untraceable; give load"):
        load(folder)
    with pytest.raises(InvalidOption, match="Untraceable, and yours is a Residual"):
        load(folder, Residual)
    with pytest.raises(InvalidOption, match=r"package\.module:function"):
        load(folder, "nowhere")
    with pytest.raises(InvalidOption, match="returns one, not int"):
        load(folder, lambda: 3)  # type: ignore[arg-type]


class CommonQuant(ExtendedInjector):
    """As the examples of Brevitas write their quantizers."""

    bit_width = 4
    narrow_range = True


class OwnWeights(CommonQuant, IntQuant, MaxStatsScaling, WeightQuantSolver):
    scaling_per_output_type = "tensor"
    restrict_scaling_type = "fp"
    signed = True


class OwnNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inp = qnn.QuantIdentity(bit_width=8, return_quant_tensor=True)
        self.fc = qnn.QuantLinear(10, 3, bias=True, weight_quant=OwnWeights, bias_quant=Int32Bias)

    def forward(self, x):
        return self.fc(self.inp(x))


def test_a_model_with_quantizers_of_ones_own(tmp_path) -> None:
    model = seeded(OwnNet)
    model.train()
    model(data(mlp))
    result = quantize(model.eval(), [data(mlp)], accumulator_bit_width=16, **FAST)
    loaded = load(save(result, tmp_path / "net"), OwnNet)
    assert_same(result.model, loaded.model)
    injector: Any = find_layers(loaded.model)["fc"].weight_quant.quant_injector
    assert injector.bit_width == 4
    assert injector.proxy_module is find_layers(loaded.model)["fc"].weight_quant


@pytest.mark.parametrize("quantizer", ["axe", "a2q", "a2q+"])
def test_trained_models_come_back_and_train_on(quantizer, tmp_path) -> None:
    model, batch = seeded(qat), (data(qat), labels(qat))
    plan = Plan.uniform(find_layers(model), LayerPrecision(accumulator=14))
    apply_plan(model, plan, args=(batch[0],), quantizer=quantizer)
    tuned = finetune(model, [batch], epochs=1, progress=False)
    loaded = load(save(tuned, tmp_path / "net"))
    assert isinstance(loaded, FinetuneResult)
    assert loaded.history == tuned.history
    assert loaded.best_epoch == 1
    assert_same(tuned.model, loaded.model) if quantizer == "axe" else None
    assert torch.equal(tuned.model(batch[0]), loaded.model(batch[0]))
    more = [finetune(start, [batch], epochs=1, progress=False) for start in (tuned, loaded)]
    assert torch.equal(more[0].model(batch[0]), more[1].model(batch[0]))


def test_ranges_of_other_widths_come_along(tmp_path) -> None:
    plan = Plan.uniform(["0", "2"], LayerPrecision(weight=4, input=5, accumulator=16))
    result = quantize(seeded(mlp), [data(mlp)], plan, **FAST)
    loaded = load(save(result, tmp_path / "net"))
    narrower = Plan.uniform(["0", "2"], LayerPrecision(weight=3, input=4, accumulator=16))
    for each in (result, loaded):
        apply_plan(each.model, narrower, args=(data(mlp),))
    assert torch.equal(result.model(data(mlp)), loaded.model(data(mlp)))


def test_every_file_is_checked(folder, tmp_path) -> None:
    for index, path in enumerate(sorted(folder.iterdir())):
        for damage in ("cut", "flipped", "gone"):
            broken = copied(folder, tmp_path / f"{index}-{damage}") / path.name
            content = path.read_bytes()
            if damage == "gone":
                broken.unlink()
            else:
                middle = len(content) // 2
                flipped = bytes([content[middle] ^ 1])
                end = b"" if damage == "cut" else flipped + content[middle + 1 :]
                broken.write_bytes(content[:middle] + end)
            # A digest in the manifest that was changed belongs to another file.
            named = None if path.name == "manifest.json" else path.name.replace(".", r"\.")
            with pytest.raises(InvalidState, match=named):
                load(broken.parent)


def test_a_foreign_folder_is_refused(tmp_path) -> None:
    with pytest.raises(InvalidState, match="no folder that"):
        load(tmp_path)
    with pytest.raises(InvalidState, match="no folder that"):
        load(tmp_path / "nowhere")
    (tmp_path / "photo.png").write_text("x")
    with pytest.raises(InvalidOption, match="holds other files"):
        save(solved(mlp), tmp_path)
    with pytest.raises(InvalidOption, match="is a file"):
        save(solved(mlp), tmp_path / "photo.png")
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


def test_other_integers_are_not_believed(folder, tmp_path) -> None:
    from brevitas_axe.run.saving.folder import _digest

    place = copied(folder, tmp_path / "other")
    tensors = safetensors.torch.load_file(place / "model.tensors")
    weight = next(key for key in tensors if key.endswith("head.weight"))
    tensors[weight] = -tensors[weight]
    safetensors.torch.save_file(tensors, place / "model.tensors")
    manifest = json.loads((place / "manifest.json").read_text())
    manifest["files"]["model.tensors"] = _digest(place / "model.tensors")
    (place / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InvalidState, match="integers"):
        load(place)


def test_a_save_that_fails_leaves_what_was_there(folder, tmp_path, monkeypatch) -> None:
    from brevitas_axe.run.saving import save as module

    place = copied(folder, tmp_path / "net")
    before = {path.name: path.read_bytes() for path in place.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save(solved(mlp), place)
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


def test_a_save_over_another_replaces_it_whole(folder, tmp_path) -> None:
    place = copied(folder, tmp_path / "net")
    save(solved(mlp), place)
    assert list(load(place).plan.layers) == ["0", "2"]
    # The process may end between the two renames.
    place.rename(tmp_path / ".net.before")
    assert list(load(place).plan.layers) == ["0", "2"]


def test_what_cannot_be_kept_is_said_before_anything_is_written(tmp_path) -> None:
    result = solved(mlp)
    result.model.get_submodule("0").register_forward_hook(lambda *_: None)
    with pytest.raises(InvalidOption, match="layer '0' has a forward hook"):
        save(result, tmp_path / "net")
    with pytest.raises(InvalidOption, match="save takes what"):
        save(result.model, tmp_path / "net")  # type: ignore[arg-type]
    other = solved(mlp)
    other.model.get_submodule("0").weight.data.zero_()  # type: ignore[union-attr]
    with pytest.raises(InvalidOption, match="no longer what"):
        save(other, tmp_path / "net")
    assert not list(tmp_path.iterdir())


def test_offloaded_blocks_are_read_from_the_disk(tmp_path) -> None:
    widths = {"accumulator_bit_width": 16, **FAST}
    kept = brevitas_axe.quantize_blocks(tiny("llama").eval(), batches("llama"), **widths)
    moved = brevitas_axe.quantize_blocks(
        tiny("llama").eval(), batches("llama"), offload=tmp_path / "blocks", **widths
    )
    loaded = load(save(moved, tmp_path / "net"))
    assert_same(kept.model, loaded.model)
    x = batches("llama")[0]
    assert certify(loaded.model, plan=loaded.plan, exclude=kept.floats, args=(x,)).ok


def test_integers_are_those_of_the_layers(folder) -> None:
    loaded = load(folder)
    again = solved()
    for name, layer in find_layers(loaded.model).items():
        mine = integer_weight(name, layer)[0]
        assert torch.equal(mine, integer_weight(name, find_layers(again.model)[name])[0])


class Embedding(nn.Module):
    """A sentence encoder with a mean over tokens that is written by hand, outside its blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = tiny("bert")

    def forward(self, tokens):
        shares = (tokens > 0).float().unsqueeze(1)
        return (shares @ self.bert(tokens).last_hidden_state).squeeze(1) / shares.sum(-1)


def test_products_beside_the_blocks_are_named_and_no_reason_to_refuse_a_result(tmp_path) -> None:
    model, data = Embedding().eval(), batches("bert")
    result = quantize(model, data, accumulator_bit_width=16, **FAST)
    assert isinstance(result, BlocksResult)
    assert "Embedding.forward" in result.floats
    loaded = load(save(result, tmp_path / "model"), Embedding())
    assert isinstance(loaded, BlocksResult)
    assert loaded.floats == result.floats
    assert torch.equal(loaded.model(data[0]), result.model(data[0]))
    again = finetune(
        loaded, data, epochs=1, loss=lambda output, _: output.square().mean(), progress=False
    )
    assert again.certificate.ok
