"""The zoo's patches: universal ones as PNG + JSON, image-specific ones as one sheet of 8-bit pixels per network.

Universal patches are made on training images only. An image-specific patch is made on the very image that it attacks,
so its sheet belongs to the fixed test subset `evaluation_subset`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from qpatch import data, store
from qpatch.attacks import GAP, LaVAN, Patch
from qpatch.attacks import base as attack_base
from qpatch.errors import one_of
from qpatch.zoo import networks
from qpatch.zoo.recipes import ENTRIES

FOLDER = Path(__file__).parent / "patches"
ATTACKS = {"LaVAN": LaVAN, "GAP": GAP}
FIT_IMAGES = 10_000  # training images that a universal patch is made on
EVALUATION_IMAGES = {"cifar10": 1_000, "shapes": 200}  # test images of every table, class-balanced
UNIVERSAL_STEPS, SPECIFIC_STEPS = 200, 40
OPTIONS = {"LaVAN": {"lr": 0.1, "batch": 64}, "GAP": {"lr": 0.05, "batch": 64}}  # of universal patches
SEEDS = 3
STRENGTH_STEPS = (25, 50, 100, 400, 800)
STRENGTH_SIZES = (4, 8, 10, 12)
STRENGTH_TARGETS = (0, 3, 6)


@dataclass(frozen=True)
class PatchEntry:
    """One patch of the zoo, or one sheet of image-specific patches.

    Attributes:
        network: zoo network that it is made on.
        bits: the width of the view that it is made on.
        attack: "LaVAN" or "GAP".
        seed: of the attack.
        scope: "universal" or "image-specific".
        size: side in pixels.
        steps: optimisation steps; None takes the zoo's default for the scope.
        target: class to show, or None.
        place: where it is trained to lie, see `sample_places`.
        restarts: independent starts, of which the best is kept.
    """

    network: str
    bits: int
    attack: str = "LaVAN"
    seed: int = 0
    scope: str = "universal"
    size: int = 6
    steps: int | None = None
    target: int | None = None
    place: str = "random"
    restarts: int = 1

    def __post_init__(self):
        one_of(self.attack, ATTACKS, "attack")
        one_of(self.scope, ("universal", "image-specific"), "scope")

    @property
    def path(self) -> Path:
        """Where it lies in the package, without suffix."""
        name = f"b{self.bits}-{self.attack.lower()}-s{self.seed}"
        if self.scope != "universal":
            name += "-specific"
        for tag, value, default in (("size", self.size, 6), ("steps", self.steps, None), ("target", self.target, None),
                                    ("place", self.place, "random"), ("restarts", self.restarts, 1)):  # fmt: skip
            name += "" if value == default else f"-{tag}{value}"
        return FOLDER / self.network / name


def evaluation_subset(test: data.Dataset) -> Tensor:
    """Indices of the test images that every table is measured on: class-balanced, always the same."""
    return data.balanced_subset(test, EVALUATION_IMAGES[test.name], seed=0)


def load_patch(
    entry: PatchEntry,
    dataset: str = "cifar10",
    *,
    retrain: bool = False,
    progress: Callable[[int, int, float], None] | None = None,
) -> Patch:
    """A universal patch: the shipped one, or one made now and kept in the store.

    Args:
        entry: which patch.
        dataset: "cifar10" (shipped) or "shapes" (made on the spot).
        retrain: make it anew from the (retrained, if that is in the store) network.
        progress: see `PatchAttack`.

    Raises:
        StoreError: a shipped patch is damaged.
        DataError: the patch must be made and CIFAR-10 is not to be had.
    """
    if dataset == "cifar10" and not retrain and entry.path.with_suffix(".png").exists():
        return Patch.load(entry.path)
    tensors, card = store.fetch("patches", _parts(entry, dataset, retrain), lambda: _make(entry, dataset, retrain, progress))
    return Patch(tensors["pixels"].float() / 255, tensors["mask"].float(), entry.target, card["made_on"])


def load_specific(
    entry: PatchEntry,
    dataset: str = "cifar10",
    *,
    retrain: bool = False,
    progress: Callable[[int, int, float], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """A sheet of image-specific patches for the evaluation subset.

    Returns:
        pixels float32 (N, 3, h, w) on the 8-bit lattice, and places int64 (N, 2).
    """
    path = entry.path.with_suffix(".safetensors")
    if dataset == "cifar10" and not retrain and path.exists():
        tensors, _ = store.load_tensors(path)
    else:
        make = lambda: _make(entry, dataset, retrain, progress)  # noqa: E731
        tensors, _ = store.fetch("patches", _parts(entry, dataset, retrain), make)
    return tensors["pixels"].float() / 255, tensors["places"].long()


def shipped_entries() -> list[PatchEntry]:
    """Everything that the package ships: the transfer matrices of notebooks 20 and 21, and studies of patch strength."""
    sources = [(name, bits) for name in ("ptq", "joint") for bits in ENTRIES[name].trained]
    sources = [("float", 32)] + [source for source in sources if source != ("ptq", 32)]
    sources += [(f"{kind}-{bits}", bits) for kind in ("qat", "indep") for bits in (8, 5, 4, 2)]
    sources += [(f"float-s{seed}", 32) for seed in (1, 2, 3, 4)]
    matrix = [
        PatchEntry(name, bits, attack, seed, scope)
        for name, bits in sources
        for attack, scope in (("LaVAN", "universal"), ("GAP", "universal"), ("LaVAN", "image-specific"))
        for seed in range(SEEDS if scope == "universal" else 1)
    ]
    specific_gap = [PatchEntry(name, 32, "GAP", 0, "image-specific") for name in ("float", "joint")]
    strength = [PatchEntry("float", 32, attack, steps=steps) for attack in ATTACKS for steps in STRENGTH_STEPS]
    strength += [PatchEntry("float", 32, attack, restarts=4) for attack in ATTACKS]
    sizes = [PatchEntry("float", 32, size=size) for size in STRENGTH_SIZES]
    targeted = [PatchEntry("float", 32, "GAP", target=target) for target in STRENGTH_TARGETS]
    return matrix + specific_gap + strength + sizes + targeted


def ship(entry: PatchEntry) -> None:
    """Make the patch from the shipped network and write it into the package."""
    tensors, card = store.fetch("patches", _parts(entry, "cifar10", False), lambda: _make(entry, "cifar10", False, None))
    if entry.scope == "universal":
        pixels, mask = tensors["pixels"].float() / 255, tensors["mask"].float()
        Patch(pixels, mask, entry.target, card["made_on"]).save(entry.path)
    else:
        store.save_tensors(entry.path.with_suffix(".safetensors"), tensors, {"made_on": card["made_on"]})


def _parts(entry: PatchEntry, dataset: str, retrain: bool) -> dict:
    net = networks.load(entry.network, dataset, retrain=retrain)
    view = net.at(entry.bits)  # an unknown width is refused here, before any work
    weights = {name: tensor for name, tensor in view.state_dict().items()}
    return {
        "entry": asdict(entry),
        "data": data.load(dataset, "train").fingerprint,
        "network": store.tensors_fingerprint(weights),
        "evaluated_on": EVALUATION_IMAGES[dataset],
        "source": store.source_fingerprint(attack_base, ATTACKS[entry.attack], _make) + str(OPTIONS[entry.attack]),
    }


def _make(entry: PatchEntry, dataset: str, retrain: bool, progress) -> tuple[dict[str, Tensor], dict]:
    view = networks.load(entry.network, dataset, retrain=retrain).at(entry.bits)
    universal = entry.scope == "universal"
    steps = entry.steps or (UNIVERSAL_STEPS if universal else SPECIFIC_STEPS)
    if dataset == "shapes":  # a smoke run shows that everything works, not how well
        steps = min(steps, 20 if universal else 5)
    options = OPTIONS[entry.attack] if universal else {"lr": 0.1}
    attack = ATTACKS[entry.attack](
        view, entry.size, target=entry.target, place=entry.place, steps=steps, seed=entry.seed,
        restarts=entry.restarts, progress=progress, **options,
    )  # fmt: skip
    origin = {"network": entry.network, "bits": entry.bits, "dataset": dataset}
    if universal:
        train = data.load(dataset, "train")
        images, labels = train.take(data.balanced_subset(train, min(FIT_IMAGES, len(train) // 10 * 10), seed=0))
        patch = attack.fit(images, labels)
        tensors = {"pixels": _bytes(patch.pixels), "mask": patch.mask.to(torch.uint8)}
        return tensors, {"made_on": {**patch.made_on, **origin}}
    test = data.load(dataset, "test")
    images, labels = test.take(evaluation_subset(test))
    pixels, places = attack.fit_each(images, labels)
    return {"pixels": _bytes(pixels), "places": places.to(torch.uint8)}, {"made_on": {**attack.made_on(), **origin}}


def _bytes(pixels: Tensor) -> Tensor:
    return (pixels * 255).round().to(torch.uint8)
