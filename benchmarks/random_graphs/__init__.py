"""Random QONNX graphs, and an oracle that executes them and adds up their products by itself.

Nothing here imports `brevitas_axe.proof`: what is claimed of a graph is compared with what qonnx
and ONNX Runtime compute, and with sums that this package forms in plain loops.
"""
