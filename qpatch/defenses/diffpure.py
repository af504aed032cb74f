"""DiffPure (Nie et al. 2022): drown the attack in noise, and let a diffusion model denoise the image."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qpatch.checks import check_images
from qpatch.data import folders
from qpatch.errors import DataError, ParameterError

NoisePredictor = Callable[[Tensor, Tensor], Tensor]
"""Noisy images (N, C, H, W) in units of [−1, 1] and steps int64 (N,), 0 the least noisy → the noise in them."""

FOLDER = "ddpm-cifar10-32"
_NOT_RUN = "DiffPure was not run"
_HOW = (
    f"{_NOT_RUN}: put config.json and diffusion_pytorch_model.safetensors (143 MB) of the model google/{FOLDER} of the "
    f"Hugging Face hub into a folder {FOLDER} under QPATCH_DATA, and install the package diffusers."
)


@dataclass(frozen=True, eq=False)
class DiffPure:
    """x ↦ √ᾱ x + √(1 − ᾱ) ξ up to step t*, then back to step 0 along the reverse process, which has seen no attack.

    One step back: x ← (x − β ε̂(x, t) / √(1 − ᾱ)) / √(1 − β) + √β ξ, without noise in the last; this is the discrete
    form of the reverse stochastic differential equation that the source solves.

    The noise depends on `seed` and the shape of the batch only: equal calls give equal images. An attacker who averages
    over noise makes one defense per seed; judge with a seed that he has not seen.

    Attributes:
        predictor: see `NoisePredictor`; `load_predictor()` gives the one for CIFAR-10.
        depart: t*, number of steps forward. The source takes 0.1 of the way against L∞ noise on CIFAR-10, 100 of 1000.
        steps: length of the whole way. first, last: β of its first and last step, equally spaced between.
        seed: of all noise.
        batch: images per call of the predictor.

    Raises:
        ParameterError: a departure outside 1 to `steps`, or a schedule outside (0, 1).
        InputError (on call): malformed images.

    Source:
        Nie, Guo, Huang, Xiao, Vahdat, Anandkumar 2022, "Diffusion models for adversarial purification", section 3.
        There a score network in continuous time (`vp/cifar10_ddpmpp_deep_continuous`), here a discrete one of the same
        schedule, Ho, Jain, Abbeel 2020.

    Example:
        >>> cleaned = DiffPure(load_predictor())(images)   # float32 (N, 3, H, W) in [0, 1]
    """

    predictor: NoisePredictor
    depart: int = 100
    steps: int = 1000
    first: float = 1e-4
    last: float = 0.02
    seed: int = 0
    batch: int = 100

    def __post_init__(self):
        if not 1 <= self.depart <= self.steps:
            raise ParameterError(f"depart lies between 1 and {self.steps} steps, got {self.depart}.")
        if not 0 < self.first <= self.last < 1 or self.batch < 1:
            raise ParameterError(f"β must rise inside (0, 1) and batch be positive, got {self.first} to {self.last}.")

    @property
    def betas(self) -> Tensor:
        """β of every step, float32 (steps,)."""
        return torch.linspace(self.first, self.last, self.steps)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        check_images(images)
        generator = torch.Generator().manual_seed(self.seed)
        parts = [self.purify(2 * part - 1, generator) for part in images.split(self.batch)]
        return (torch.cat(parts) / 2 + 0.5).clamp_(0, 1)

    def purify(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Forward to step t* and back, in units of [−1, 1] and without a limit on the values: (N, C, H, W)."""
        betas = self.betas
        signal = (1 - betas.double()).cumprod(0).float()  # ᾱ
        draw = lambda: torch.randn(x.shape, generator=generator).to(x.device)  # noqa: E731
        top = signal[self.depart - 1]
        x = top.sqrt() * x + (1 - top).sqrt() * draw()
        for t in range(self.depart - 1, -1, -1):
            noise = self.predictor(x, torch.full((len(x),), t, device=x.device))
            x = (x - betas[t] / (1 - signal[t]).sqrt() * noise) / (1 - betas[t]).sqrt()
            if t:
                x = x + betas[t].sqrt() * draw()
        return x


def load_predictor(root: str | os.PathLike | None = None) -> NoisePredictor:
    """The noise predictor for CIFAR-10, run by the optional library `diffusers`.

    Args:
        root: where the model's folder lies, in place of QPATCH_DATA.

    Raises:
        DataError: no weights or no library; the message says what is missing and can stand in a table's cell.
    """
    files = ("config.json", "diffusion_pytorch_model.safetensors")
    folder = folders.find((FOLDER,), root, files, _HOW)
    try:
        from diffusers import UNet2DModel
    except ImportError as error:
        raise DataError(f"{_NOT_RUN}: the weights are there, the package is not; pip install diffusers.") from error
    net = UNet2DModel.from_pretrained(folder, use_safetensors=True).eval().requires_grad_(False)
    return lambda x, t: net(x, t).sample
