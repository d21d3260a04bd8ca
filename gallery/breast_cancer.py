"""A multilayer perceptron on scikit-learn's breast cancer data, trained here, for FINN."""

from __future__ import annotations

import torch
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import MinMaxScaler
from torch import Tensor, nn
from whole_way import whole_way


def split() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features from 0 to 1 to train on and to judge by, [N, 30], and their classes likewise."""
    features, classes = load_breast_cancer(return_X_y=True)
    first, rest, *classes = train_test_split(features, classes, test_size=0.4, random_state=0)
    scaler = MinMaxScaler(clip=True).fit(first)
    first, rest = (torch.tensor(scaler.transform(x), dtype=torch.float32) for x in (first, rest))
    return first, rest, torch.tensor(classes[0]), torch.tensor(classes[1])


TRAINING, TEST, TRAINING_CLASSES, TEST_CLASSES = split()


def build():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 2)
        model = nn.Sequential(*layers)
        optimizer = torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.01)
        for _ in range(200):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(TRAINING), TRAINING_CLASSES).backward()
            optimizer.step()
    return model.eval()


def data():
    return [TRAINING]


def accuracy(model):
    return (model(TEST).argmax(1) == TEST_CLASSES).float().mean()


if __name__ == "__main__":
    finn = "--weight-bits 3 --input-bits 3 --model-input-bits 4"
    whole_way(__file__, "MLP, breast cancer", "--accumulator-bits 8", finn=finn)
