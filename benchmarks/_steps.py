"""What several benchmarks do: networks without training, procedural images, bare steps."""

from __future__ import annotations

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qpatch.models  # noqa: F401  (registers our networks with timm)
from qpatch.attacks.base import frozen
from qpatch.quant import MultiBit, post_training_quantize
from qpatch.training import Batch, CrossEntropy


def images_and_labels(count: int, side: int, classes: int = 10) -> tuple[Tensor, Tensor]:
    """Random ones: no time here depends on what an image shows."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, side, side, generator=generator), torch.randint(classes, (count,), generator=generator)


def float_network(name: str) -> nn.Module:
    """One of timm's networks with random weights, ten classes, in eval mode, channels last."""
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=10).eval().to(memory_format=torch.channels_last)


def multi_bit(name: str, images: Tensor, bits: tuple[int, ...]) -> MultiBit:
    """The same network at several widths, calibrated on the images."""
    return post_training_quantize(float_network(name), images, bits).to(memory_format=torch.channels_last)


def raw_patch_steps(net: nn.Module, images: Tensor, labels: Tensor, batch: int, steps: int) -> None:
    """Forward, and backward to the input with frozen weights: what no patch step can do without."""
    with frozen(net):
        for _, part, truth in zip(range(steps), _around(images, batch), _around(labels, batch)):
            inputs = part.clone().requires_grad_()
            torch.autograd.grad(F.cross_entropy(net(inputs), truth), inputs)


def _around(values: Tensor, batch: int):
    while True:
        yield from values.split(batch)


class TrainingStep:
    """One step of training as in `qpatch.training.train`, on one batch, again and again.

    Args:
        net: a multi-bit network. loss: see `qpatch.training.Loss`.
    """

    def __init__(self, net: MultiBit, loss, batch: Batch):
        self.net, self.loss, self.batch = net.train(), loss, batch
        self.optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, nesterov=True)

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(self.net, self.batch, 0).backward()
        self.optimizer.step()


def width_step(net: MultiBit, batch: Batch, *bits: int, bf16: bool = False) -> TrainingStep:
    """A step of plain training at these widths: 32 alone is float training, one other width is QAT."""
    return TrainingStep(net, CrossEntropy(bits, bf16=bf16), batch)
