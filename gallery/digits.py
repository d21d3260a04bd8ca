"""A small residual net on scikit-learn's digits, trained here in seconds, for FINN."""

from __future__ import annotations

from whole_way import whole_way

from brevitas_axe.applications import quickstart

TRAINING, _, TEST = quickstart.digits(seed=0)


def build():
    return quickstart.train(TRAINING, seed=0, progress=False)


def data():
    return [TRAINING.images[:512]]


def accuracy(model):
    return quickstart.accuracy(model, TEST)


if __name__ == "__main__":
    finn = "--weight-bits 4 --input-bits 3 --model-input-bits 3"
    whole_way(__file__, "small residual net, digits", "--accumulator-bits 8", finn=finn)
