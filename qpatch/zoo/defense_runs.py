"""Paper C's train-time defenses under attack, image by image, at three precisions.

All networks together take ten minutes on two cores, so the results ship, in `attacked/defenses/`, each with a card that
says how it was made. `python -m qpatch.zoo defenses` makes them again; an interrupted run goes on with the next network.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from qpatch import data, store
from qpatch.attacks import pixel
from qpatch.errors import one_of
from qpatch.measure import boundary
from qpatch.measure.precision import predicted_rows
from qpatch.measure.stats import median_ratio
from qpatch.measure.success import predict
from qpatch.quant import Policy, post_training_quantize
from qpatch.zoo import networks
from qpatch.zoo.calibration import calibration_images
from qpatch.zoo.deployed import PRECISIONS, deploy
from qpatch.zoo.patches import evaluation_subset
from qpatch.zoo.recipes import DEFENDED_BY

FOLDER = Path(__file__).parent / "attacked" / "defenses"
NETWORKS = {"none": "tiny", **DEFENDED_BY, "shift": "tiny-shift"}
TRAINED_FOR = 0.008  # the size of noise that the defenses learn from
FOUR_BITS = "4-bit"  # a fourth precision, where the quantization shift is large
_OWN, _OTHER, _NOISE, _CLEAN = "own float", "undefended float", "random", "clean"


@dataclass(frozen=True)
class DefensePlan:
    """How much is run. All networks see the same images of the class-balanced evaluation subset.

    Attributes:
        images: for PGD.
        query_images: for Square, and for PGD of the same size.
        distance_images: for the distance to the boundary.
        sizes: L∞ bounds of PGD, in [0, 1] units.
        steps: of PGD, each a tenth of the bound, from one random start.
        squares: queries of Square per image.
        search: gradient steps of the search for the boundary.
        seed: of all random draws.
    """

    images: int = 520
    query_images: int = 100
    distance_images: int = 260
    sizes: tuple[float, ...] = (0.004, 0.008, 0.016)
    steps: int = 20
    squares: int = 500
    search: int = 30
    seed: int = 0


SHIPPED = DefensePlan()


def load_defense_run(
    defense: str, dataset: str = "cifar10", plan: DefensePlan = SHIPPED, *, retrain: bool = False
) -> dict[str, Tensor]:
    """The results of one network: the shipped ones, or ones made now and kept in the store.

    Args:
        defense: one of `NETWORKS`; "none" is the undefended network.
        dataset: "cifar10" (ships) or "shapes".
        plan: another one than `SHIPPED` is run now.
        retrain: run it now, on a network that is trained anew.

    Returns:
        predicted classes, int64, under "source|size|precision" (source "clean", "random", "own float", "undefended
        float", "Square" or "PGD, few"; size "0" when clean), the "label" of each image, and distances to the boundary,
        float32, under "distance|directions|precision".

    Raises:
        ParameterError: no such defense. StoreError: a shipped file is damaged.
    """
    one_of(defense, NETWORKS, "defense")
    if dataset == "cifar10" and plan == SHIPPED and not retrain and _path(defense).exists():
        return store.load_tensors(_path(defense))[0]
    return _fetch(defense, dataset, plan, retrain)[0]


def ship(defense: str) -> None:
    """Run one network on CIFAR-10 and write the results into the package."""
    tensors, card = _fetch(defense, "cifar10", SHIPPED, False)
    store.save_tensors(_path(defense), tensors, {key: value for key, value in card.items() if key != "parts"})
    store.say(f"{defense}: {card['seconds']:.0f} s")


def success_rows(defense: str, run: dict[str, Tensor], dataset: str) -> pd.DataFrame:
    """Rows of `measure.precision_rows` for every source, size and precision of a run, with the defense's name."""
    found: dict[str, dict] = {}
    for source, size, precision in sorted((key.split("|") for key in run if "|" in key), key=_rank):
        if source != "distance":
            found.setdefault(precision, {})[source, float(size)] = run[f"{source}|{size}|{precision}"]
    rows = [
        {"precision": precision, **row}
        for precision, classes in found.items()
        for row in predicted_rows(classes, run["label"], clean=(_CLEAN, 0.0), noise=_NOISE)
    ]
    return pd.DataFrame(rows).assign(defense=defense, dataset=dataset)


def distance_rows(runs: dict[str, dict[str, Tensor]], dataset: str, seed: int = 0) -> pd.DataFrame:
    """One row per defense, precision and direction: the median distance, and the paired ratio to the undefended network."""
    rows = []
    for defense, run in runs.items():
        for kind, directions, precision in sorted((key.split("|") for key in run if "|" in key), key=_rank):
            if kind == "distance":
                key = f"{kind}|{directions}|{precision}"
                rows.append({"defense": defense, "precision": precision, "directions": directions, "dataset": dataset,
                             "distance": float(run[key].nanmedian()), **median_ratio(run[key], runs["none"][key], seed)})  # fmt: skip
    return pd.DataFrame(rows)


def _rank(key: list[str]) -> tuple:
    """The order of rows: a tensor file keeps none."""
    source, middle, precision = key
    return (*PRECISIONS, FOUR_BITS).index(precision), source, middle


def _path(defense: str) -> Path:
    return FOLDER / f"{defense.lower()}.safetensors"


def _fetch(defense: str, dataset: str, plan: DefensePlan, retrain: bool) -> tuple[dict[str, Tensor], dict]:
    fingerprints = [store.tensors_fingerprint(_network(name, dataset, retrain).state_dict()) for name in {"none", defense}]
    parts = {
        "defense": defense,
        "plan": asdict(plan),
        "data": data.load(dataset, "test").fingerprint,
        "networks": sorted(fingerprints),
        "source": store.source_fingerprint(boundary, _make, _views, _noise),
    }
    return store.fetch("defenses", parts, lambda: _make(defense, dataset, plan, retrain))


@cache
def _network(defense: str, dataset: str, retrain: bool) -> nn.Module:
    return networks.load(NETWORKS[defense], dataset, retrain=retrain)


def _views(defense: str, dataset: str, retrain: bool) -> dict[str, nn.Module]:
    """Precision → network. The 4-bit view of a network that was trained without one is quantized after training."""
    net, calibration = _network(defense, dataset, retrain), calibration_images(data.load(dataset, "train"))
    views = deploy(net.at(32), calibration)
    if defense not in ("shift", "PGD"):
        return views
    four = net if 4 in net.bits else post_training_quantize(net.at(32), calibration, (4,), Policy(range="max"))
    return views | {FOUR_BITS: four.at(4)}


@cache
def _noise(defense: str, dataset: str, plan: DefensePlan, retrain: bool) -> tuple[dict[float, Tensor], Tensor]:
    """PGD's images by size, and the smallest changes, both made on the float network."""
    net, (images, labels) = _network(defense, dataset, retrain).at(32), _images(dataset, plan)
    near = slice(0, plan.distance_images)
    options = {"step_share": 0.1, "steps": plan.steps, "restarts": 1, "seed": plan.seed}
    made = {size: pixel.attack("PGD", net, images, labels, eps=size, **options) for size in plan.sizes}
    return made, boundary.minimal_change(net, images[near], labels[near], steps=plan.search)


@cache
def _images(dataset: str, plan: DefensePlan) -> tuple[Tensor, Tensor]:
    test = data.load(dataset, "test")
    chosen = evaluation_subset(test)
    return test.take(chosen[torch.linspace(0, len(chosen) - 1, plan.images).long()])


def _make(defense: str, dataset: str, plan: DefensePlan, retrain: bool) -> tuple[dict[str, Tensor], dict]:
    started, (images, labels) = time.perf_counter(), _images(dataset, plan)
    views = _views(defense, dataset, retrain)
    own, change = _noise(defense, dataset, plan, retrain)
    weak, common = _noise("none", dataset, plan, retrain)
    signs = torch.randint(0, 2, images.shape, generator=torch.Generator().manual_seed(plan.seed)).to(images) * 2 - 1
    shown = {(_CLEAN, 0): images} | {(_OWN, size): made for size, made in own.items()}
    shown |= {(_NOISE, size): (images + size * signs).clamp(0, 1) for size in plan.sizes}
    shown[_OTHER, TRAINED_FOR] = weak.get(TRAINED_FOR, images)
    tensors = {"label": labels}
    for precision, net in views.items():
        tensors |= {f"{source}|{size}|{precision}": predict(net, adversarial) for (source, size), adversarial in shown.items()}

    few, truth, size = images[: plan.query_images], labels[: plan.query_images], pixel.published("Square-Linf")["eps"]
    options = {"eps": size, "step_share": 0.1, "steps": plan.steps, "restarts": 1, "seed": plan.seed}
    asked = pixel.attack("Square-Linf", pixel.Probabilities(views["float"]), few, truth, steps=plan.squares, seed=plan.seed)
    tensors[f"Square|{size}|float"] = predict(views["float"], asked)
    tensors[f"PGD, few|{size}|float"] = predict(views["float"], pixel.attack("PGD", views["float"], few, truth, **options))

    near, truth = images[: plan.distance_images], labels[: plan.distance_images]
    random = boundary.random_changes(near, seed=plan.seed)
    for precision in ("float", "int16", "int8"):
        ends = [boundary.along(views[precision], near, truth, ray) for ray in ([change] if defense == "none" else [change, common])]
        tensors[f"distance|nearest|{precision}"] = boundary.nearest(ends).distance
        if precision != "int16":
            tensors[f"distance|random|{precision}"] = boundary.along(views[precision], near, truth, random).distance
    return tensors, {
        "defense": defense, "dataset": dataset, "plan": asdict(plan), "seconds": time.perf_counter() - started,
        "versions": {name: version(name) for name in ("torch", "torchattacks", "adversarial-robustness-toolbox")},
    }  # fmt: skip
