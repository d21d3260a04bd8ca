"""A trained vision transformer on CIFAR-10, the linear layers of its blocks quantized.

Judged on 1,000 images. Model and images are in the folder that BREVITAS_AXE_DATA names; see
benchmarks/vision_transformer.py.
"""

from __future__ import annotations

from whole_way import benchmark, whole_way

vision_transformer = benchmark("vision_transformer")


def build():
    return vision_transformer.Classifier().eval()


def data():
    return [*vision_transformer.images_of("train")[0][:128].split(32)]


def accuracy(model):
    images, labels = vision_transformer.images_of("val")
    logits = vision_transformer.logits_of(model, images[:1000])
    return (logits.argmax(1) == labels[:1000]).float().mean()


if __name__ == "__main__":
    options = "--accumulator-bits 16 --weight-bits 4 --input-bits 8"
    whole_way(__file__, "vision transformer, CIFAR-10", options)
