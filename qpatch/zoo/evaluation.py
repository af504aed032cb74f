"""The fixed evaluation that every transfer table of this project uses: images, places, controls, and one row format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property

import pandas as pd
import torch
import torchattacks
from torch import Tensor, nn

from qpatch import data
from qpatch.attacks import make_mask, sample_places
from qpatch.attacks.base import frozen
from qpatch.measure import pixel_rows, specific_rows, transfer_rows
from qpatch.quant import PARTS, WIDTHS, Policy, isolate, post_training_quantize
from qpatch.zoo.calibration import calibration_images
from qpatch.zoo.families import family, family_patches, family_specific
from qpatch.zoo.networks import load
from qpatch.zoo.patches import PatchEntry, evaluation_subset, load_patch

CONTROLS = ["asr_noise", "asr_grey", "asr_photo"]
_PHOTOS = 100  # training images from which control photographs are taken


class Evaluation:
    """The same test images, the same places and the same controls for every network and every patch.

    Args:
        dataset: "cifar10" or "shapes".
        bits: widths at which patches are made and shown.
        seeds: universal patches per attack and source width.
        seed: of the places and of the controls.
        retrain: make networks and patches anew instead of loading the zoo's.

    Attributes:
        train, test: the data sets.
        images, labels: the class-balanced test subset (`evaluation_subset`), float32 in [0, 1] and int64.

    Example:
        >>> evaluation = Evaluation("cifar10")
        >>> rows = evaluation.universal("joint", "LaVAN")
    """

    def __init__(
        self, dataset: str, bits: Iterable[int] = WIDTHS, seeds: int = 3, seed: int = 0, retrain: bool = False
    ):
        self.dataset, self.bits, self.seeds, self.seed, self.retrain = dataset, tuple(bits), seeds, seed, retrain
        self.train, self.test = data.load(dataset, "train"), data.load(dataset, "test")
        self.images, self.labels = self.test.take(evaluation_subset(self.test))
        self._views: dict[str, dict[int, nn.Module]] = {}

    @cached_property
    def photos(self) -> tuple[Tensor, Tensor]:
        """Training images and labels for the photograph control."""
        return self.train.take(data.balanced_subset(self.train, _PHOTOS))

    def places(self, size: int | tuple[int, int] = 6, kind: str = "random") -> Tensor:
        """Where a patch of this size lies in each image: int64 (N, 2), the same at every call."""
        generator = torch.Generator().manual_seed(self.seed)
        return sample_places(kind, len(self.images), self.images.shape[-2:], size, generator)

    def views(self, training: str) -> dict[int, nn.Module]:
        """Width → view of one of the four families, see `qpatch.zoo.families`."""
        if training not in self._views:
            self._views[training] = family(training, self.dataset, bits=self.bits, retrain=self.retrain)
        return self._views[training]

    def patch(self, network: str, bits: int, attack: str = "LaVAN", seed: int = 0, **choice):
        """One universal patch of the zoo; `choice` as in `PatchEntry`."""
        return load_patch(PatchEntry(network, bits, attack, seed, **choice), self.dataset, retrain=self.retrain)

    def universal(self, training: str, attack: str) -> pd.DataFrame:
        """Universal patches of every source width and seed on every view: `transfer_rows` with its origin."""
        options = {"bits": self.bits, "retrain": self.retrain}
        patches = family_patches(training, attack, self.seeds, self.dataset, **options)
        rows = transfer_rows(
            self.views(training), patches, self.images, self.labels, self.places(), photos=self.photos
        )
        return self._with_origin(rows, training, attack, "universal", 6)

    def specific(self, training: str, attack: str) -> pd.DataFrame:
        """Image-specific patches: LaVAN's of every source width, GAP's of the float view only."""
        options = {"bits": self.bits if attack == "LaVAN" else (32,), "retrain": self.retrain}
        sheets = family_specific(training, attack, 1, self.dataset, **options)
        mask = make_mask("square", (6, 6))
        rows = specific_rows(self.views(training), sheets, mask, self.images, self.labels, photos=self.photos)
        return self._with_origin(rows, training, attack, "image-specific", 6)

    def pixel(self, training: str, n: int, eps: float = 4 / 255, steps: int = 10) -> pd.DataFrame:
        """PGD (Madry et al. 2018, torchattacks) on every source width: noise on all pixels instead of a patch.

        Args:
            n: number of images, spread evenly over the evaluation subset.
            eps: largest change of a pixel, in units of the [0, 1] range; a step is eps / 4.
        """
        chosen = torch.linspace(0, len(self.images) - 1, min(n, len(self.images))).long()
        images, labels, views, attacked = self.images[chosen], self.labels[chosen], self.views(training), {}
        for source in self.bits:
            with frozen(views[source]):
                attack = torchattacks.PGD(views[source], eps=eps, alpha=eps / 4, steps=steps, random_start=False)
                attacked[source, 0] = attack(images, labels).detach()
        return self._with_origin(pixel_rows(views, attacked, images, labels, eps=eps), training, "PGD", "image-specific", 0)

    def study(self, views: Mapping[int, nn.Module], attack: str = "LaVAN", **choice) -> pd.DataFrame:
        """One float-made patch (seed 0) of another strength or size on some views; `choice` as in `PatchEntry`."""
        made = self.patch("float", 32, attack, **choice)
        places = self.places(made.size)
        rows = transfer_rows(views, {(32, 0): made}, self.images, self.labels, places, photos=self.photos)
        rows = rows.assign(attack=attack, control=rows[CONTROLS].max(axis=1), **choice)
        return rows.rename(columns={"asr": "value", "ci_low": "low", "ci_high": "high"})

    def parts(self, attack: str = "LaVAN") -> pd.DataFrame:
        """Float-made patches on the post-training quantized float network, taken apart by `qpatch.quant.isolate`.

        Both ways to choose an activation range are compared: least squared error ("mse") and largest value ("max").

        Returns:
            The columns of `transfer_rows`, and `range` and `part`.
        """
        patches = {(32, seed): self.patch("float", 32, attack, seed) for seed in range(self.seeds)}
        model = load("float", self.dataset, retrain=self.retrain).at(32)
        low, tables = [width for width in self.bits if width != 32], []
        for choice in ("mse", "max"):
            net = post_training_quantize(model, calibration_images(self.train), low, Policy(range=choice))
            for part in PARTS:
                views = {width: isolate(net.at(width), part) for width in low}
                rows = transfer_rows(
                    views, patches, self.images, self.labels, self.places(), photos=self.photos
                )
                tables.append(rows.assign(range=choice, part=part))
        return pd.concat(tables, ignore_index=True)

    def _with_origin(self, rows: pd.DataFrame, training: str, attack: str, scope: str, size: int) -> pd.DataFrame:
        origin = {"dataset": self.dataset, "model": "resnet8", "training": training, "attack": attack, "scope": scope,
                  "patch_size": size}  # fmt: skip
        for position, (name, value) in enumerate(origin.items()):
            rows.insert(position, name, value)
        return rows


def strongest_control(rows: pd.DataFrame) -> pd.Series:
    """The largest of the three control rates in each row."""
    return rows[CONTROLS].max(axis=1)
