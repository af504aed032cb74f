"""The networks of the patch defenses under universal patches, image by image: what ships instead of an hour of attacks.

Every network meets patches made on itself (white-box) and patches made on the undefended network (surrogate), in every
setting of `qpatch.zoo.scenarios`, at every width. `python -m qpatch.zoo patched` makes it again, patch by patch; an
interrupted run goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from qpatch import data, store
from qpatch.attacks import make_mask, paste, sample_places
from qpatch.attacks import base as attack_base
from qpatch.attacks.controls import noise_pixels, photo_pixels
from qpatch.defenses import dwq
from qpatch.measure.stats import wilson
from qpatch.measure.success import predict
from qpatch.quant import WIDTHS
from qpatch.zoo import networks, scenarios
from qpatch.zoo.bits import pack, unpack
from qpatch.zoo.patches import FIT_IMAGES, OPTIONS, UNIVERSAL_STEPS, evaluation_subset
from qpatch.zoo.scenarios import ATTACKS, SETTINGS, SURROGATE, Shot, attacked_view, deployed_views

FOLDER = Path(__file__).parent / "patched"
CONTROLS = ("noise", "grey", "photo")
_SMOKE_STEPS = 4  # of a patch on procedural images: a smoke run shows that everything works, not how well
_PHOTOS = 100  # training images from which control photographs are taken


@dataclass(frozen=True, eq=False)
class Patched:
    """Who is fooled by which patch.

    Attributes:
        network: of the zoo.
        label: int64 (N,), the true classes of `evaluation_subset`.
        right: bool (W, N): the clean image is classified correctly; W widths in the order of `WIDTHS`.
        hits: (access, shot) → bool (W, N): the image leaves its class, or goes to the target. Access is "own" for
            patches made on this network, "surrogate" for those made on the undefended one.
        controls: (setting, control) → bool (W, N): the same for patches that nobody optimised.
        card: where it comes from.
    """

    network: str
    label: Tensor
    right: Tensor
    hits: dict[tuple[str, Shot], Tensor]
    controls: dict[tuple[str, str], Tensor]
    card: dict

    def counts(self, setting: str) -> Tensor:
        """bool (W, N): the images on which success is counted: right when clean, and not of the target class."""
        target = SETTINGS[setting].target
        return self.right if target is None else self.right & (self.label != target)

    @cached_property
    def rows(self) -> pd.DataFrame:
        """One row per patch and width.

        Returns:
            network, access, attack, kind, setting, source, target_bits, seed, n, asr, ci_low, ci_high (Wilson),
            asr_noise, asr_grey, asr_photo, clean_accuracy, patch_size.
        """
        found = []
        for (access, shot), hits in self.hits.items():
            counts = self.counts(shot.setting)
            for number, width in enumerate(WIDTHS):
                n, fooled = int(counts[number].sum()), int((counts & hits)[number].sum())
                low, high = wilson(fooled, n)
                floor = {f"asr_{name}": _rate(self.controls[shot.setting, name], counts, number) for name in CONTROLS}
                found.append({
                    "network": self.network, "access": access, "attack": shot.attack, "kind": shot.kind,
                    "setting": shot.setting, "source": shot.source, "target_bits": width, "seed": shot.seed, "n": n,
                    "asr": fooled / n if n else np.nan, "ci_low": low, "ci_high": high, **floor,
                    "clean_accuracy": float(self.right[number].float().mean()),
                    "patch_size": SETTINGS[shot.setting].size,
                })  # fmt: skip
        return pd.DataFrame(found)


def load_runs(
    names: Iterable[str], dataset: str = "cifar10", *, seeds: int = scenarios.SEEDS, retrain: bool = False,
    progress: Callable[[str], None] | None = None,
) -> tuple[dict[str, Patched], list[str]]:  # fmt: skip
    """The results of the undefended network and of some others, see `scenarios.ready`.

    Returns:
        name → results, the undefended network first; and the names that do not ship yet.

    Raises:
        DataError: the undefended network itself has no results.
    """
    there, missing = scenarios.ready(names, FOLDER, "patched", dataset, retrain)
    return {name: load_patched(name, dataset, seeds=seeds, retrain=retrain, progress=progress) for name in there}, missing


def load_patched(
    network: str, dataset: str = "cifar10", *, seeds: int = scenarios.SEEDS, retrain: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Patched:  # fmt: skip
    """The results of a network: the shipped ones, or ones made now and kept in the store.

    Args:
        network: of the zoo, with all widths.
        dataset: "cifar10" (ships) or "shapes".
        seeds: patches of each kind; fewer than the shipped run gives its first ones.
        retrain: train network and surrogate anew, and attack them now.
        progress: gets a line now and then.

    Raises:
        ParameterError: no such network. StoreError: a shipped file is damaged.
    """
    if dataset == "cifar10" and not retrain and _path(network).exists():
        tensors, made = store.load_tensors(_path(network))
        if made["seeds"] >= seeds:
            return _patched(network, tensors, made, seeds)
    parts = {
        "networks": [_fingerprint(name, dataset, retrain) for name in (network, SURROGATE)], "seeds": seeds,
        "data": data.load(dataset, "test").fingerprint, "steps": _steps(dataset),
        "source": store.source_fingerprint(attack_base, *ATTACKS.values(), scenarios, dwq, judged, shown, _make),
    }  # fmt: skip
    made = store.fetch("judged", parts, lambda: _make(network, dataset, seeds, retrain, progress))
    return _patched(network, *made, seeds)


def made_patches(
    network: str, dataset: str = "cifar10", *, seeds: int = scenarios.SEEDS, retrain: bool = False,
    progress: Callable[[str], None] | None = None,
) -> dict[Shot, Tensor]:  # fmt: skip
    """The universal patches that were made on a network: shot → float32 (C, h, w) on the 8-bit lattice."""
    if dataset == "cifar10" and not retrain and _path(network).exists():
        tensors, made = store.load_tensors(_path(network))
        shots = [Shot(**shot) for shot in made["own"]]
        found = {shot: tensors[f"pixels/{number}"].float() / 255 for number, shot in enumerate(shots)}
        return {shot: pixels for shot, pixels in found.items() if shot.seed < seeds}
    views = deployed_views(network, dataset, retrain)
    fingerprint = _fingerprint(network, dataset, retrain)
    shots, found, train = _own(network, seeds), {}, data.load(dataset, "train")
    images, steps = _fit_images(train), _steps(dataset)
    for number, shot in enumerate(shots, start=1):
        parts = {
            "shot": asdict(shot), "setting": list(SETTINGS[shot.setting]), "network": fingerprint,
            "data": train.fingerprint, "options": OPTIONS[shot.attack], "steps": steps,
            "source": store.source_fingerprint(attack_base, ATTACKS[shot.attack], _fit, dwq.RandomPrecision),
        }  # fmt: skip
        tensors, _ = store.fetch("patched", parts, lambda: _fit(views, shot, steps, *images))
        found[shot] = tensors["pixels"].float() / 255
        if progress and number % 6 == 0:
            progress(f"{network}: patch {number} of {len(shots)}")
    return found


def shown(shot: Shot, pixels: Tensor, images: Tensor, seed: int = 0) -> Tensor:
    """The images with the patch at its places, which are the same for every network and every patch of a setting."""
    size, place, _ = SETTINGS[shot.setting]
    places = sample_places(place, len(images), images.shape[-2:], size, torch.Generator().manual_seed(seed))
    return paste(images, pixels, make_mask("square", size), places)


def judged(views: Mapping[int, nn.Module], shot: Shot, pixels: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    """Whom a patch fools: bool (W, N), widths in the order of `WIDTHS`, at the places of `shown`."""
    return _hits(views, shown(shot, pixels, images), labels, SETTINGS[shot.setting].target)


def remade(
    network: str, shot: Shot, dataset: str = "cifar10", *, steps: int | None = None, retrain: bool = False
) -> Tensor:
    """A patch of `made_patches` made once more, now; with None as long as the stored one was."""
    views, train = deployed_views(network, dataset, retrain), data.load(dataset, "train")
    return _fit(views, shot, steps or _steps(dataset), *_fit_images(train))[0]["pixels"].float() / 255


def ship(network: str) -> None:
    """Attack a network of the package on CIFAR-10 and write the results into the package."""
    store.save_tensors(_path(network), *_make(network, "cifar10", scenarios.SEEDS_OF.get(network, scenarios.SEEDS), False, store.say))


def _own(network: str, seeds: int) -> list[Shot]:
    """What is made on a network: on the undefended one the surrogate's patches as well."""
    wanted = scenarios.own_shots(seeds) + (scenarios.surrogate_shots(seeds) if network == SURROGATE else [])
    return list(dict.fromkeys(wanted))


def _fingerprint(network: str, dataset: str, retrain: bool) -> str:
    return store.tensors_fingerprint(networks.load(network, dataset, retrain=retrain).state_dict())


def _steps(dataset: str) -> int:
    return UNIVERSAL_STEPS if dataset != "shapes" else _SMOKE_STEPS


def _fit_images(train: data.Dataset) -> tuple[Tensor, Tensor]:
    return train.take(data.balanced_subset(train, min(FIT_IMAGES, len(train) // 10 * 10), seed=0))


def _path(network: str) -> Path:
    return FOLDER / f"{network}.safetensors"


def _fit(views, shot: Shot, steps: int, images: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], dict]:
    size, place, target = SETTINGS[shot.setting]
    view = attacked_view(views, shot.source, shot.seed)
    attack = ATTACKS[shot.attack](view, size, target=target, place=place, steps=steps, seed=shot.seed, **OPTIONS[shot.attack])
    return {"pixels": (attack.fit(images, labels).pixels * 255).round().to(torch.uint8)}, {}


def _make(network: str, dataset: str, seeds: int, retrain: bool, progress) -> tuple[dict[str, Tensor], dict]:
    started = time.perf_counter()
    own = made_patches(network, dataset, seeds=seeds, retrain=retrain, progress=progress)
    foreign = made_patches(SURROGATE, dataset, seeds=seeds, retrain=retrain, progress=progress)
    foreign = {shot: foreign[shot] for shot in scenarios.surrogate_shots(seeds)} if network != SURROGATE else {}
    views, test = deployed_views(network, dataset, retrain), data.load(dataset, "test")
    images, labels = test.take(evaluation_subset(test))
    photos = _photos(dataset)
    right = torch.stack([predict(views[width], images) == labels for width in WIDTHS])
    tensors = {"label": labels.to(torch.uint8), "right": pack(right)}
    for access, patches in (("own", own), ("surrogate", foreign)):
        for number, (shot, pixels) in enumerate(patches.items()):
            tensors[f"{access}/{number}"] = pack(judged(views, shot, pixels, images, labels))
            if access == "own":
                tensors[f"pixels/{number}"] = (pixels * 255).round().to(torch.uint8)
        if progress:
            progress(f"{network}: {len(patches)} {access} patches judged")
    for setting, (size, _, target) in SETTINGS.items():
        pixels = {"noise": noise_pixels(len(images), 3, size), "grey": torch.full((3, size, size), 0.5),
                  "photo": photo_pixels(len(images), *photos, target, size)}  # fmt: skip
        for name in CONTROLS:
            patched = shown(Shot("LaVAN", setting, "32", 0), pixels[name], images)
            tensors[f"control/{setting}/{name}"] = pack(_hits(views, patched, labels, target))
    return tensors, {
        "network": network, "dataset": dataset, "seeds": seeds, "images": len(images),
        "own": [asdict(shot) for shot in own], "surrogate": [asdict(shot) for shot in foreign],
        "attack": {"steps": _steps(dataset), "options": OPTIONS, "images": FIT_IMAGES},
        "fingerprint": _fingerprint(network, dataset, retrain), "data": test.fingerprint,
        "seconds": round(time.perf_counter() - started, 1), "commit": networks._commit(),
    }  # fmt: skip


def _photos(dataset: str) -> tuple[Tensor, Tensor]:
    train = data.load(dataset, "train")
    return train.take(data.balanced_subset(train, _PHOTOS))


def _hits(views, patched: Tensor, labels: Tensor, target: int | None) -> Tensor:
    classes = torch.stack([predict(views[width], patched) for width in WIDTHS])
    return classes != labels if target is None else classes == target


def _patched(network: str, tensors: dict[str, Tensor], made: dict, seeds: int) -> Patched:
    n, hits = len(tensors["label"]), {}
    for access in ("own", "surrogate"):
        for number, shot in enumerate(Shot(**shot) for shot in made[access]):
            if shot.seed < seeds:
                hits[access, shot] = unpack(tensors[f"{access}/{number}"], n)
    controls = {(setting, name): unpack(tensors[f"control/{setting}/{name}"], n) for setting in SETTINGS for name in CONTROLS}
    return Patched(network, tensors["label"].long(), unpack(tensors["right"], n), hits, controls, made)


def _rate(hits: Tensor, counts: Tensor, number: int) -> float:
    n = int(counts[number].sum())
    return int((counts & hits)[number].sum()) / n if n else float("nan")
