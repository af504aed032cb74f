"""Calibration: choose every activation range from a few images; post-training quantization in one call."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from qpatch.checks import check_images
from qpatch.quant.multibit import WIDTHS, MultiBit, Policy, QuantizedLayer

_SAMPLE = 100_000  # values kept per layer; more does not move the least-squares scale


def calibrate(net: MultiBit, images: Tensor, bits: Iterable[int] | None = None) -> MultiBit:
    """Set the range of every quantizer of the chosen widths from the weights and from `images`.

    The float network runs once; each layer's input is sampled, and every width takes its own range from the sample.

    Args:
        net: the network; changed in place and returned.
        images: float32 N×C×H×W in [0, 1], typically 256 to 1,000 training images.
        bits: widths to calibrate; all by default.

    Raises:
        InputError: images that do not fit, or that leave a layer's input constant at zero.
    """
    check_images(images, net)
    samples = _layer_inputs(net.at(32), images)
    for width in bits if bits is not None else net.bits:
        for name, layer in net.at(width).named_modules():
            if isinstance(layer, QuantizedLayer):
                layer.weight_quantizer.calibrate(layer._parameters["weight"])
                layer.input_quantizer.calibrate(samples[name])
    return net


def post_training_quantize(
    model: nn.Module, images: Tensor, bits: Iterable[int] = WIDTHS, policy: Policy = Policy()
) -> MultiBit:
    """Quantize a trained float network without training: BatchNorm statistics and weights stay as they are.

    Args:
        model: a trained float network in eval mode.
        images: calibration images, float32 N×C×H×W in [0, 1].
        bits: the widths wanted.
        policy: how to quantize.

    Returns:
        A `MultiBit` in eval mode.
    """
    return calibrate(MultiBit(model, bits, policy).eval(), images).eval()


def _layer_inputs(float_view: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """A fixed-size sample of what enters each convolution and linear layer, by layer name."""
    samples: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(0)

    def keep(name):
        def hook(_, inputs):
            values = inputs[0].detach().flatten()
            if values.numel() > _SAMPLE:
                chosen = torch.randint(values.numel(), (_SAMPLE,), generator=generator).to(values.device)
                values = torch.cat([values[chosen], values.amin()[None], values.amax()[None]])
            samples[name] = values

        return hook

    kinds = (nn.Conv1d, nn.Conv2d, nn.Linear)
    layers = [(name, layer) for name, layer in float_view.named_modules() if isinstance(layer, kinds)]
    hooks = [layer.register_forward_pre_hook(keep(name)) for name, layer in layers]
    was_training = float_view.training
    try:
        float_view.eval()
        with torch.no_grad():
            float_view(images)
    finally:
        float_view.train(was_training)
        for hook in hooks:
            hook.remove()
    return samples
