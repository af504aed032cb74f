"""A .tflite file as plain data: tensors, integer operations, one input, one output."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

RANGES = {"int4": (-8, 7), "int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767)}
_NUMPY = {"int4": np.int8, "float32": np.float32}


@dataclass(frozen=True, eq=False)
class Tensor:
    """One tensor of the file; quantized values are real = scale · (code − zero).

    Attributes:
        name: as in the file.
        shape: NHWC for images, output × height × width × input for convolution weights.
        dtype: "int8", "int16", "float32", ...; "int4" is stored packed, two codes per byte.
        scale: float32, one value, or one per index of `axis`; empty where the tensor is not quantized.
        zero: int64, as many as scales.
        axis: the dimension that `scale` runs along.
        data: the constant's values, in its own shape ("int4" as int8), or None for an activation.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    zero: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    axis: int = 0
    data: np.ndarray | None = None

    @property
    def step(self) -> float:
        """The scale of an activation, as the real number that its float32 holds."""
        return float(self.scale[0])

    @property
    def offset(self) -> int:
        """The zero point of an activation."""
        return int(self.zero[0])

    @property
    def range(self) -> tuple[int, int]:
        """Smallest and largest code of the type."""
        return RANGES[self.dtype]


@dataclass(frozen=True, eq=False)
class Op:
    """One operation: its TFLite name, the tensors it reads and the one it writes (by index), and its options."""

    kind: str
    inputs: tuple[int, ...]
    output: int
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Graph:
    """A network: tensors, operations in order of execution, index of the input and of the output tensor."""

    tensors: tuple[Tensor, ...]
    ops: tuple[Op, ...]
    input: int
    output: int

    @property
    def scores(self) -> int:
        """Index of the tensor with the class scores: the input of a final SOFTMAX, or the output."""
        return self.ops[-1].inputs[0] if self.ops and self.ops[-1].kind == "SOFTMAX" else self.output

    @property
    def precision(self) -> str:
        """"int8", "int16" or "float": the type of the activations."""
        kinds = {self.tensors[op.output].dtype for op in self.ops}
        if "int16" in kinds:
            return "int16"
        return "int8" if kinds & {"int8", "uint8"} else "float"


def numpy_type(dtype: str) -> np.dtype:
    """The numpy type that holds a tensor of this type, unpacked."""
    return np.dtype(_NUMPY.get(dtype, dtype))
