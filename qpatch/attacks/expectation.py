"""Views for attackers who know the defense: the mean over its randomness, and another straight-through estimator."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from qpatch.errors import InputError, ParameterError, one_of
from qpatch.quant.quantizers import PACTActivation, Quantizer
from qpatch.quant.ste import STE_KINDS


class Expectation(nn.Module):
    """The mean score of several passes through a network that draws lots (Athalye et al. 2018, section 4.2).

    An attack that steps along its gradient steps along a mean over `draws` passes, so one unlucky draw does not decide a
    step. Without randomness it is the network itself, `draws` times as slow.

    Args:
        view: in eval mode, such as `RandomPrecision` or `NoisyActivations`.
        draws: passes per call.

    Shapes: images (N, C, H, W) in [0, 1] → scores (N, classes), with a gradient.

    Raises:
        ParameterError: `draws` is not a positive int.
    """

    def __init__(self, view: nn.Module, draws: int = 4):
        super().__init__()
        if not isinstance(draws, int) or draws < 1:
            raise ParameterError(f"draws must be a positive int, got {draws!r}.")
        self.view, self.draws = view, draws
        self.train(view.training)

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([self.view(images) for _ in range(self.draws)]).mean(dim=0)


def with_estimator(view: nn.Module, ste: str) -> nn.Module:
    """A copy of a view that computes the same scores and sends gradients back through another estimator.

    Args:
        view: any network; without quantizers (float) the copy is just that.
        ste: "clipped" or "identity", see `qpatch.quant.ste`.

    Raises:
        ParameterError: an unknown estimator.
        InputError: PACT's activations, whose clipping is part of the network and not of an estimator.
    """
    one_of(ste, STE_KINDS, "straight-through estimator")
    twin = copy.deepcopy(view)
    for module in twin.modules():
        if isinstance(module, PACTActivation):
            raise InputError("PACT clips by itself; its gradient has no second estimator.")
        if isinstance(module, Quantizer):
            module.ste = ste
    return twin


def other_estimator(view: nn.Module) -> nn.Module:
    """`with_estimator` with the one that the view does not use; a float view keeps its only gradient.

    Raises:
        InputError: the quantizers of the view do not agree on one.
    """
    used = {module.ste for module in view.modules() if isinstance(module, Quantizer)}
    if len(used) > 1:
        raise InputError("the view mixes straight-through estimators; choose one with with_estimator(view, ste).")
    return with_estimator(view, "clipped" if used == {"identity"} else "identity")
