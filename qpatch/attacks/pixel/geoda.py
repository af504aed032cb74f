"""GeoDA (Rahmati et al. 2020): estimate the boundary's normal from labels of noisy images, then step along it. Run by ART.

torchattacks has none. Three changes leave the arithmetic as it is. ART multiplies the noise with a stored basis of all
products of two cosine waves, which takes longer than the network and stops with numpy 2; here the noise is multiplied
along rows and then along columns. ART saves that basis in the working folder; here nothing is saved. And ART looks for a
noisy start for ever; here it gives up after `init_tries`, like paper C's version of it.
"""

from __future__ import annotations

import numpy as np
import torch
from art.attacks.evasion import GeoDA
from torch import Tensor, nn

from qpatch.attacks.pixel.base import BATCH, PixelAttack, query_classifier


class _GeoDA(GeoDA):
    """ART's GeoDA for one image, with a separable basis and a bounded start."""

    init_tries = 100

    def generate(self, x, y):
        y = np.eye(self.estimator.nb_classes)[y]
        self.clip_min, self.clip_max = self.estimator.clip_values
        self.sub_basis = cosine_waves(self.sub_dim, x.shape[2])
        start = self._find_random_adversarial(x, y)
        if start is None:
            return x
        edge, normal = self._binary_search(x, y, start, tol=self.bin_search_tol), np.zeros_like(x)
        for step in range(self.iterate):
            normal = normal + self._black_grad_batch(edge, self.q_opt_iter[step], BATCH, y)[0]
            edge = self._binary_search(x, y, self._go_to_boundary(x, y, normal), tol=self.bin_search_tol)
        return np.clip(edge, self.clip_min, self.clip_max).astype(np.float32)

    def _find_random_adversarial(self, x, y):
        for number in range(self.init_tries):
            noise = 0.02 * number * np.random.normal(size=x.shape).astype(np.float32)
            tried = np.clip(x + noise, self.clip_min, self.clip_max)
            if self._is_adversarial(tried, y):
                return tried
        return None

    def _sub_noise(self, num_noises, basis):
        shape = (num_noises, self.nb_channels, self.sub_dim, self.sub_dim)
        waves = np.random.normal(size=shape).astype(np.float32) * (self.clip_max - self.clip_min)
        return basis.T @ waves @ basis


def cosine_waves(number: int, size: int) -> np.ndarray:
    """The first `number` waves of the cosine transform on `size` pixels, float32 (number, size).

    With more waves than pixels, as for paper C's 75 on 32, the waves are those of the longer transform cut to `size`;
    noise made of them is then white: the "subspace" is the whole space.
    """
    length = max(number, size)
    wave, pixel = np.arange(number)[:, None], np.arange(size)[None]
    height = np.where(wave == 0, np.sqrt(1 / length), np.sqrt(2 / length))
    return (height * np.cos((2 * pixel + 1) * wave * np.pi / (2 * length))).astype(np.float32)


def geoda(net: nn.Module, images: Tensor, labels: Tensor, *, tolerance: float, sub_dim: int, queries: int, sigma: float,
          init_tries: int) -> Tensor:  # fmt: skip
    """`queries` noisy images of size `sigma` give normals, `tolerance` ends the search along each, in [0, 1] units."""
    attack = _GeoDA(query_classifier(net, images), norm=2, sub_dim=sub_dim, max_iter=queries, bin_search_tol=tolerance,
                    sigma=sigma, verbose=False)  # fmt: skip
    attack.init_tries = init_tries
    made = [attack.generate(image[None], label[None]) for image, label in zip(images.cpu().numpy(), labels.cpu().numpy())]
    return torch.from_numpy(np.concatenate(made))


ATTACK = PixelAttack("GeoDA", "GeoDA", "L2", "query", "labels", "ART", geoda, one_by_one=True)
