"""How long a certificate of large layers takes beside reading their weights once in int64.

    python benchmarks/certificate_speed.py [--matrices 14] [--rows 14336] [--inputs 4096]

Reading is what Brevitas does to give a layer's integers: `quant_weight().int()`, as int64, and one
sum over them. Both are measured in CPU time in one process, on one thread, matrix by matrix.
"""

from __future__ import annotations

import argparse
import time
import warnings

import torch
from brevitas import nn as qnn
from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloat
from torch import nn

from brevitas_axe.proof.certificate import certify


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--matrices", type=int, default=14)
    parser.add_argument("--rows", type=int, default=14336)
    parser.add_argument("--inputs", type=int, default=4096)
    parser.add_argument("--tile", type=int)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    quantizers = {"weight_quant": Int8WeightPerChannelFloat, "weight_bit_width": 4}
    x = torch.randn(1, options.inputs)
    reading = proving = 0.0
    for _ in range(options.matrices):
        layer = qnn.QuantLinear(options.inputs, options.rows, bias=False, **quantizers)
        model = nn.Sequential(
            qnn.QuantIdentity(Int8ActPerTensorFloat, return_quant_tensor=True), layer
        ).eval()
        with torch.no_grad():
            model(x)
            start = time.process_time()
            layer.quant_weight().int(float_datatype=False).to(torch.int64).sum()
            read = time.process_time()
            assert certify(model, 32, options.tile, args=x).ok
            reading, proving = reading + read - start, proving + time.process_time() - read
    ratio = proving / reading
    print(f"reading {reading:.2f} s, certificates {proving:.2f} s, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
