"""One float operation of a network on its way to a .tflite."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(eq=False)
class Node:
    """One float operation on N×C×H×W or N×C tensors.

    Attributes:
        kind: "input", "conv", "linear", "add", "average", "max", "pad", "slice", "flatten", "relu" or "affine"
            (a factor and a summand per channel: BatchNorm, normalisation).
        inputs: the nodes that it reads.
        weight, bias: float32; of "affine" the factor and the summand, (C,).
        activation: "NONE", "RELU" or "RELU6", applied last.
        options: of the kind.
        shape: of the output, without N.
    """

    kind: str
    inputs: list[Node]
    weight: Tensor | None = None
    bias: Tensor | None = None
    activation: str = "NONE"
    options: dict[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = ()
