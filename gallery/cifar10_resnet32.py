"""A trained ResNet-32 on CIFAR-10, every layer quantized, first and last too.

Judged on 1,000 images. Weights and images are in the folder that BREVITAS_AXE_DATA names; see
benchmarks/resnet32.py.
"""

from __future__ import annotations

from safetensors.torch import load_file
from whole_way import benchmark, whole_way

resnet32 = benchmark("resnet32")


def build():
    model = resnet32.ResNet32()
    model.load_state_dict(load_file(resnet32.DATA / "resnet32_cifar10.safetensors"))
    return model.eval()


def data():
    return [*resnet32.read_images("train", 128)[0].split(64)]


def accuracy(model):
    return resnet32.accuracy(model, *resnet32.read_images("val", 1000))


if __name__ == "__main__":
    options = "--accumulator-bits 14 --weight-bits 4 --input-bits 4 --quality fast"
    whole_way(__file__, "ResNet-32, CIFAR-10", options)
