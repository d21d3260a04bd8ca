"""What a batch costs and how good a model is."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from brevitas_axe.errors import EmptyCalibration, InvalidOption
from brevitas_axe.methods.sensitivity.metrics import labels_of
from brevitas_axe.run.finetune import accuracy, distillation
from brevitas_axe.run.finetune.losses import label_loss, mean_loss, run

LOGITS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def test_cross_entropy_takes_any_number_of_leading_dimensions():
    expected = F.cross_entropy(LOGITS, LABELS)
    assert label_loss(LOGITS, (None, LABELS)) == expected
    assert label_loss(LOGITS.view(2, 3, 3), (None, LABELS.view(2, 3))) == expected


def test_distillation_between_labels_and_teacher():
    class Teacher(nn.Module):
        def forward(self, x):
            return x

    batch = (LOGITS, LABELS)
    labels_only = distillation(Teacher(), weight=0.0)
    assert torch.allclose(labels_only(LOGITS * 2, batch), label_loss(LOGITS * 2, batch))
    follow = distillation(Teacher(), weight=1.0)
    assert float(follow(LOGITS, batch)) == pytest.approx(0, abs=1e-6)
    assert float(follow(-LOGITS, batch)) > 0.1
    assert float(follow(-LOGITS, LOGITS)) == float(follow(-LOGITS, batch))  # needs no labels
    with pytest.raises(InvalidOption, match=r"\[0, 1\]"):
        distillation(Teacher(), weight=2.0)


def test_pixels_of_images_of_classes_are_predictions():
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, 4, 5, generator=generator)
    labels = torch.randint(3, (2, 4, 5), generator=generator)
    assert torch.allclose(label_loss(images, (None, labels)), F.cross_entropy(images, labels))
    follow = distillation(nn.Identity(), weight=1.0, temperature=3.0)
    mine, real = ((x / 3).log_softmax(1) for x in (-images, images))
    expected = 9 * (real.exp() * (real - mine)).sum(1).mean()
    assert torch.allclose(follow(-images, images), expected)
    right = F.one_hot(labels, 3).movedim(-1, 1).float()
    assert accuracy(nn.Identity(), [(right, labels)]) == 1.0
    with pytest.raises(InvalidOption, match=r"labels of shape \[2, 4\] do not fit"):
        label_loss(images, (None, labels[:, :, 0]))
    signals = images[:, :, 0]  # [batch, classes, length], as of a 1-D net
    expected = F.cross_entropy(signals, labels[:, 0])
    assert torch.allclose(label_loss(signals, (None, labels[:, 0])), expected)


def test_scores_run_in_evaluation_mode_and_leave_the_mode_alone():
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.9)).train()
    model[0].weight.data, model[0].bias.data = torch.eye(3), torch.zeros(3)
    batch = (F.one_hot(LABELS).float(), LABELS)
    assert accuracy(model, [batch, batch]) == 1.0
    assert mean_loss(model, [batch], label_loss) < 0.6
    assert model.training
    with pytest.raises(EmptyCalibration, match="no batch"):
        accuracy(model, [])


def test_batches_of_every_kind():
    model = nn.Linear(3, 2)
    assert run(model, LOGITS).shape == (6, 2)
    assert run(model, {"input": LOGITS}).shape == (6, 2)
    assert run(model, [LOGITS, LABELS]).shape == (6, 2)
    with pytest.raises(InvalidOption, match="no labels"):
        labels_of({"input": LOGITS})
