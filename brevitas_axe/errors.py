"""Every exception that a user of this package can meet.

Each one is raised with a single sentence that names the layer (or the file) and the way out.
"""


class AxeError(Exception):
    """Base of all errors raised on purpose by brevitas_axe."""


class MissingInputQuantizer(AxeError):
    """A layer has an accumulator budget, but its input is not quantized to integers."""


class UnquantizedLayer(AxeError):
    """A layer that computes dot products has no integer weight quantizer."""


class UnsupportedLayer(AxeError):
    """A layer or quantizer of a kind whose accumulator cannot be bounded here."""


class NonFiniteValues(AxeError):
    """Weights, activations or statistics contain NaN or infinity."""


class EmptyCalibration(AxeError):
    """The calibration data yields no batch, or too little to continue."""


class AccumulatorTooNarrow(AxeError):
    """The accumulator bit width leaves no usable integer weight, or is out of range."""


class InvalidTile(AxeError):
    """The tile size does not fit the layer."""


class InvalidPlan(AxeError):
    """A plan, or its JSON file, does not fit the schema or the model."""


class InvalidOption(AxeError):
    """An argument is outside what the function accepts."""


class NotEnoughMemory(AxeError):
    """The machine has too little memory for the calibration data or a layer."""


class NotEnoughDisk(AxeError):
    """A file system has too little room for what a run will write."""


class InvalidModelFile(AxeError):
    """An ONNX file is missing, corrupted, unsafe or not QONNX."""


class InvalidState(AxeError):
    """A saved state is corrupted or belongs to another run."""


class ExportRefused(AxeError):
    """The model cannot be exported without being wrong or refused downstream."""


class NotProven(AxeError):
    """A certificate was required, but the proof failed."""
