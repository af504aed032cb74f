"""Paper C's own gradient measurement, reproduced with each of its properties switched on or off; and a control network.

The published script (QNN-Attacks/zero_density_estimated_grad.py in the authors' repository) takes (loss(x + 1e-5) −
loss(x − 1e-5)) / 2e-5 for every value x of an image, and counts the zeros. Three of its properties matter:

- *step*: on integer networks x is an element of an integer array, to which 1e-5 is added in place, so numpy cuts the
  result towards zero: 5 becomes 5 and 4, −5 becomes −4 and −5, 0 stays 0. One side moves by a whole input step or none
  does, and the difference is divided by 2e-5 all the same.
- *loss*: Keras' categorical cross-entropy of the network's output as it is. It divides the output by its sum over the
  classes and cuts it to [1e-7, 1 − 1e-7] (read in the source of Keras' backend). An integer network gives raw codes;
  those of int8, −128 to 127, sum to about −1024 over ten classes, so the "probability" is 0.125 − 0.25·p.
- *mean*: for the float network the loss is the mean over 1,000 images, of which one value of one image is moved.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from qpatch.checks import check_eval, check_images, check_labels
from qpatch.errors import InputError, one_of
from qpatch.measure.gradients import SMALLEST, moved, nudged, probabilities_of

STEP = 1e-5  # the script's, in units of whatever the array holds
LOSSES = ("dequantized", "as it is")


@dataclass(frozen=True)
class Grid:
    """Input and output grid of paper C's files: real = scale · (code − zero); `low` and `high` bound the codes."""

    scale: float
    zero: int
    low: int
    high: int
    output_scale: float
    output_zero: int

    def encode(self, images: Tensor) -> Tensor:
        """Images in [0, 1] to whole codes, halves up, as paper C does: float64."""
        return torch.floor(images.double() / self.scale + self.zero + 0.5).clamp(self.low, self.high)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes to images, float32."""
        return ((codes - self.zero) * self.scale).float()


GRIDS = {
    "int8": Grid(1 / 255, -128, -128, 127, 1 / 256, -128),
    "int16": Grid(1 / 32767, 0, -32768, 32767, 1 / 32768, 0),
}


class Gridded(nn.Module):
    """A control: the float network, with nothing but its input, its logits or its softmax output rounded to a grid.

    It is asked like a network of `qpatch.quant.tflite`: images in, dequantized probabilities out.

    Args:
        net: float network in eval mode, images in [0, 1] to logits.
        precision: whose grid, "int8" or "int16".
        inputs, outputs: whether the input and the softmax output are rounded.
        logit_step: grid of the logits; None does not round them.
    """

    def __init__(self, net: nn.Module, precision: str = "int8", inputs: bool = True, outputs: bool = True,
                 logit_step: float | None = None):  # fmt: skip
        super().__init__()
        self.net, self.precision = net, one_of(precision, GRIDS, "precision")
        self.grid, self.inputs, self.outputs, self.logit_step = GRIDS[precision], inputs, outputs, logit_step
        self.train(net.training)

    def received(self, images: Tensor) -> Tensor:
        """The images on the input grid."""
        return self.grid.decode(self.grid.encode(images)) if self.inputs else images

    def logits(self, images: Tensor) -> Tensor:
        """The float network's logits for the received images, rounded if that was wanted."""
        logits = self.net(self.received(images))
        return logits if self.logit_step is None else (logits / self.logit_step).round() * self.logit_step

    def codes(self, images: Tensor) -> Tensor:
        """Integer codes of the softmax output, int64."""
        codes = (self.logits(images).softmax(dim=1) / self.grid.output_scale + self.grid.output_zero).round()
        return codes.clamp(self.grid.low, self.grid.high).long()

    def forward(self, images: Tensor) -> Tensor:
        if not self.outputs:
            return self.logits(images).softmax(dim=1)
        return ((self.codes(images) - self.grid.output_zero) * self.grid.output_scale).float()


def keras_cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    """Keras' categorical cross-entropy with `from_logits=False`, whatever the outputs are: float32 (N,).

    Where the outputs of an image sum to zero, as those of two int8 classes do, it is constant, or nan for 0 / 0.
    """
    outputs = outputs.float()
    shares = (outputs / outputs.sum(dim=1, keepdim=True)).clamp(SMALLEST, 1 - SMALLEST)
    return -shares.gather(1, labels[:, None])[:, 0].log()


@torch.no_grad()
def script_differences(
    net: nn.Module, images: Tensor, labels: Tensor, at: Tensor, *, step: float | None = None, loss: str = "as it is",
    mean: tuple[Tensor, Tensor] | None = None, batch: int = 400,
) -> Tensor:  # fmt: skip
    """The published script's quotients, or some of its properties alone.

    Args:
        net: a float network of logits, or a deployed one of `qpatch.quant.tflite` with paper C's input grid.
        at: int64 (N, K), from `sample_values`.
        step: None for the script's 1e-5 (in place on integer arrays); or a step in [0, 1] units, taken on both sides.
        loss: "as it is": Keras' cross-entropy of raw codes (of float probabilities for a float network);
            "dequantized": Keras' cross-entropy of the dequantized probabilities.
        mean: other images and labels, over which the loss is averaged together with the moved image, in float32.

    Returns:
        float32 (N, K).

    Raises:
        InputError: malformed images, train mode, or a network with another input grid than paper C's.
    """
    check_eval(net)
    check_images(images, net)
    check_labels(labels, len(images))
    one_of(loss, LOSSES, "loss")
    others = None if mean is None else _losses(net, *mean, loss, batch).numpy()
    rows, size = [], max(1, batch // (2 * at.shape[1]))
    for index in torch.arange(len(images)).split(size):
        below, above = (_moved(net, images[index], at[index], sign, step) for sign in (-1, 1))
        own = labels[index].repeat_interleave(at.shape[1])
        low, high = _losses(net, torch.cat([below, above]), own.repeat(2), loss, batch).chunk(2)
        if others is not None:
            low, high = (_mean_with(part, others) for part in (low, high))
        rows.append(((high - low) / (2 * (step or STEP))).view(at[index].shape))
    return torch.cat(rows)


def _moved(net: nn.Module, images: Tensor, at: Tensor, sign: int, step: float | None) -> Tensor:
    precision = getattr(net, "precision", "float")
    if step is not None:
        return nudged(images, at, sign * step)
    if precision == "float":
        return moved(images, at, lambda values: values + sign * STEP)
    grid = GRIDS[precision]
    codes = grid.encode(images)
    if not torch.allclose(net.received(images), grid.decode(codes), atol=grid.scale / 4, rtol=0):
        raise InputError("the network's input grid is not paper C's (int8: 1/255, zero point −128; int16: 1/32767, 0).")
    return grid.decode(moved(codes, at, lambda values: (values + sign * STEP).trunc()))


def _losses(net: nn.Module, images: Tensor, labels: Tensor, loss: str, batch: int) -> Tensor:
    raw = loss == "as it is" and hasattr(net, "codes")
    outputs = [net.codes(part) if raw else probabilities_of(net, part) for part in images.split(batch)]
    return keras_cross_entropy(torch.cat(outputs).cpu(), labels)


def _mean_with(own: Tensor, others: np.ndarray) -> Tensor:
    """The float32 mean, as numpy takes it, of each own loss together with all the others."""
    table = np.broadcast_to(np.append(others, np.float32(0)), (len(own), len(others) + 1)).copy()
    table[:, -1] = own.numpy()
    return torch.from_numpy(table.mean(axis=1))
