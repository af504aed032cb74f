"""Paper C's input defenses on its networks, and its attacks seen through them: predictions that ship.

Adversarial images are too large to ship, and some attacks take an hour. So what ships is what each defended network
says about each attacked image. `python -m qpatch.zoo cleaned` makes it again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from qpatch import store
from qpatch.attacks import pixel
from qpatch.attacks.pixel import ATTACKS, BATCH, published
from qpatch.defenses import JPEG, FeatureSqueezing, PixelDefend
from qpatch.defenses.feature_squeezing import reduce_bits
from qpatch.defenses.input import InputDefense
from qpatch.errors import one_of
from qpatch.measure.defended import defended_predictions, defended_rows
from qpatch.zoo import attacked, networks
from qpatch.zoo.deployed import PRECISIONS
from qpatch.zoo.pixelcnn import load_pixelcnn
from qpatch.zoo.tasks import TASKS

FOLDER = Path(__file__).parent / "cleaned"
IMAGES = {
    "DeepFool": 500, "CW-Linf": 500, "AutoAttack": 200, "Square-L2": 100, "Square-Linf": 100, "Boundary": 100, "GeoDA": 100,
}  # fmt: skip
"""The attacks that the paper's scripts show to its input defenses, and how many images of each ship."""


DEFENSES = ("none", "rounding", "feature squeezing", "JPEG", "PixelDefend", "PixelDefend, one pass")


def defenses(dataset: str = "cifar10", retrain: bool = False) -> dict[str, dict[str, InputDefense]]:
    """Name → precision → defense, with paper C's parameters: no defense and the rounding control first.

    "rounding" brings the image to bytes and does nothing else: it is what an int8 network does to any input. Feature
    squeezing has other parameters at each precision, see `FeatureSqueezing.published`. "PixelDefend, one pass" is
    what the released scripts run, see `PixelDefend`.

    Args:
        dataset: "cifar10", or "shapes" with a small PixelCNN that is trained on the spot.
        retrain: train the PixelCNN anew.
    """
    net, everywhere = load_pixelcnn(dataset, retrain=retrain), partial(dict.fromkeys, PRECISIONS)
    found = (
        everywhere(torch.clone),
        everywhere(partial(reduce_bits, bits=8)),
        {precision: FeatureSqueezing.published("cifar10", precision) for precision in PRECISIONS},
        everywhere(JPEG()),
        everywhere(PixelDefend(net)),
        everywhere(PixelDefend(net, given="received")),
    )
    return dict(zip(DEFENSES, found))


@dataclass(frozen=True)
class CleanedEntry:
    """One attack, made on the undefended float network, behind all defenses.

    Attributes:
        attack: one of `IMAGES`.
        task: "cifar10", or "shapes" for smoke runs.
        images: the first so many test images; None takes the number in `IMAGES`.
        seed: of all random draws.
    """

    attack: str
    task: str = "cifar10"
    images: int | None = None
    seed: int = 0

    def __post_init__(self):
        one_of(self.attack, IMAGES, "attack")
        one_of(self.task, ("cifar10", "shapes"), "task with a PixelCNN")

    @property
    def n(self) -> int:
        """Number of images."""
        return self.images or IMAGES[self.attack]

    @property
    def parameters(self) -> dict[str, object]:
        """What is not as published: fewer steps or queries, as in every run of `qpatch.zoo.attacked`."""
        return (attacked.SMOKE if self.task == "shapes" else attacked.SHORTER).get(self.attack, {})

    @property
    def path(self) -> Path:
        """Where it lies in the package."""
        return FOLDER / self.task / f"{self.attack.lower()}.safetensors"


def load_cleaned(
    entry: CleanedEntry, *, retrain: bool = False, progress: Callable[[str], None] | None = None
) -> pd.DataFrame:
    """The rates of an attack behind each defense: from the shipped predictions, or from ones made now.

    Args:
        entry: which attack; one with fewer images than the shipped run gets the first of them.
        retrain: make it anew, from the (retrained, if that is in the store) networks.
        progress: gets a line per finished part.

    Returns:
        The rows of `measure.defended_rows`, with defense and attack before them.

    Raises:
        DataError: it must be made and CIFAR-10 is not to be had.
        StoreError: a shipped run is damaged.
    """
    if entry.path.exists() and not retrain:
        tensors, made = store.load_tensors(entry.path)
        if made["entry"]["seed"] != entry.seed or made["entry"]["images"] < entry.n:
            tensors, made = _make(entry, retrain, progress)
    else:
        tensors, made = _make(entry, retrain, progress)
    return rows({name: found[: entry.n] for name, found in tensors.items()}).assign(attack=entry.attack)


def judged(
    dataset: str, images: Tensor, adversarial: Tensor, labels: Tensor, retrain: bool = False
) -> dict[str, Tensor]:
    """What every defended network says about clean and attacked images.

    Returns:
        "label", and "clean/DEFENSE/PRECISION" and "adv/DEFENSE/PRECISION", each uint8 (N,).
    """
    aim = attacked.target(dataset, retrain)
    nets, tensors = {precision: aim.scores(precision) for precision in PRECISIONS}, {"label": labels.to(torch.uint8)}
    for name, defense in defenses(dataset, retrain).items():
        for kind, shown in {"clean": images, "adv": adversarial}.items():
            found = defended_predictions(nets, defense, shown)
            tensors |= {f"{kind}/{name}/{precision}": classes.to(torch.uint8) for precision, classes in found.items()}
    return tensors


def rows(tensors: dict[str, Tensor]) -> pd.DataFrame:
    """`measure.defended_rows` for every defense in what `judged` gives."""
    parts = []
    for name in DEFENSES:
        clean, adversarial = (
            {precision: tensors[f"{kind}/{name}/{precision}"].long() for precision in PRECISIONS} for kind in ("clean", "adv")
        )
        parts.append(defended_rows(clean, adversarial, tensors["label"].long()).assign(defense=name))
    return pd.concat(parts, ignore_index=True)


def card(entry: CleanedEntry) -> dict:
    """How a shipped run was made: parameters, what is not as published, seconds, fingerprints, commit."""
    return store.load_tensors(entry.path)[1]


def ship(progress: Callable[[str], None] | None = store.say) -> None:
    """Make every attack, or take it from the store, see it through all defenses, and write that into the package."""
    for attack in IMAGES:
        entry = CleanedEntry(attack)
        store.save_tensors(entry.path, *_make(entry, False, progress))


def adversarial_images(
    entry: CleanedEntry, *, retrain: bool = False, progress: Callable[[str], None] | None = None
) -> tuple[Tensor, float]:
    """The attacked images, made on the undefended float network and kept in the store, and the seconds they took."""
    aim, size = attacked.target(entry.task, retrain), 10 if ATTACKS[entry.attack].one_by_one else BATCH
    net = aim.scores("float") if ATTACKS[entry.attack].kind == "query" else aim.logits("float")
    found, seconds = [], 0.0
    for first in range(0, entry.n, size):
        last = min(first + size, entry.n)
        images, labels = TASKS[entry.task].load("test").take(slice(first, last))

        def make():
            started = time.perf_counter()
            parameters = {"seed": entry.seed + first, **entry.parameters}
            made = pixel.attack(entry.attack, net, images, labels, TASKS[entry.task].parameters, **parameters)
            return {"images": made}, {"seconds": time.perf_counter() - started}

        parts = {
            "attack": [entry.attack, entry.task, first, last, entry.seed],
            "parameters": published(entry.attack, TASKS[entry.task].parameters, **entry.parameters),
            "net": aim.fingerprints["float"],
            "source": store.source_fingerprint(ATTACKS[entry.attack].module, pixel.base, pixel.attack),
        }
        tensors, made = store.fetch("adversarial", parts, make)
        found.append(tensors["images"])
        seconds += made["seconds"]
        if progress:
            progress(f"{entry.attack}: images {first} to {last} of {entry.n}, {made['seconds']:.0f} s")
    return torch.cat(found), seconds


def _make(entry: CleanedEntry, retrain: bool, progress) -> tuple[dict[str, Tensor], dict]:
    images, labels = TASKS[entry.task].load("test").take(slice(0, entry.n))
    adversarial, seconds = adversarial_images(entry, retrain=retrain, progress=progress)
    aim = attacked.target(entry.task, retrain)
    return judged(entry.task, images, adversarial, labels, retrain), {
        "entry": asdict(entry) | {"images": entry.n},
        "parameters": published(entry.attack, TASKS[entry.task].parameters, **entry.parameters),
        "not_as_published": entry.parameters,
        "library": ATTACKS[entry.attack].library,
        "seconds_of_the_attack": round(seconds, 1),
        "fingerprints": aim.fingerprints
        | {"pixelcnn": store.tensors_fingerprint(load_pixelcnn(entry.task, retrain=retrain).state_dict())},
        "data": TASKS[entry.task].load("test").fingerprint,
        "commit": networks._commit(),
    }
