"""The same attacks on every quantization policy, image by image: who is fooled, and how far the boundary is.

All policies together take half an hour on two cores, so the results ship, in `attacked/policies/`, each with a card
that says how it was made. `python -m qpatch.zoo policies` makes them again; an interrupted run goes on.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from qpatch import data, store
from qpatch.attacks import pixel
from qpatch.measure import boundary
from qpatch.measure.gradient_rows import bootstrap
from qpatch.measure.stats import median_ratio, wilson
from qpatch.measure.success import predict
from qpatch.zoo.policies import POLICIES, Contender, contender

FOLDER = Path(__file__).parent / "attacked" / "policies"
RECEIVED = ", received"
DISTANCES = tuple(f"{name}{tail}" for name in ("nearest", "made on float", "random") for tail in ("", RECEIVED))


@dataclass(frozen=True)
class Plan:
    """How much is run. All rows see the same images: the first ones of the test split.

    Attributes:
        images: for PGD, white-box and from the float network.
        query_images: for Square and for PGD of the same size, and for DeepFool.
        distance_images: for the distance to the boundary.
        steps: of PGD in L∞, each a quarter of the bound; one random start.
        sizes: its bounds, in whole steps of 1/255, so that no rounding of the image can swallow or amplify them.
        query_size: the bound of Square, in the same steps; 4 is nearest to paper C's 0.015.
        squares: queries of Square per image.
        search: gradient steps of the search for the boundary.
        seed: of all random draws.
    """

    images: int = 500
    query_images: int = 100
    distance_images: int = 200
    steps: int = 10
    sizes: tuple[int, ...] = (1, 2)
    query_size: int = 4
    squares: int = 500
    search: int = 24
    seed: int = 0


SHIPPED = Plan()


def load_policy_run(
    name: str, dataset: str = "cifar10", plan: Plan = SHIPPED, *, retrain: bool = False
) -> dict[str, Tensor]:
    """The results of one row: the shipped ones, or ones made now and kept in the store.

    Args:
        name: one of `POLICIES`.
        dataset: "cifar10" (ships) or "shapes".
        plan: another one than `SHIPPED` is run now.
        retrain: run it now, on networks that are made anew.

    Returns:
        right answers, bool: "clean" (N,), "PGD 1" and "PGD from float 1" and so on per size (N,), and "Square 4",
        "PGD 4" and "DeepFool" (Q,), and "Square, own output 4" for rows with an int8 output; distances to the boundary
        in L2, float32 (D,): see `DISTANCES` and `measure.boundary`; the L2 size of DeepFool's changes, "deepfool_l2"
        (Q,). Widened controls lack what has Q images.

    Raises:
        ParameterError: no such row. StoreError: a shipped file is damaged.
    """
    if dataset == "cifar10" and plan == SHIPPED and not retrain and _path(name).exists():
        return store.load_tensors(_path(name))[0]
    return _fetch(name, dataset, plan, retrain)[0]


def ship(name: str) -> None:
    """Run one row on CIFAR-10 and write the results into the package."""
    tensors, card = _fetch(name, "cifar10", SHIPPED, False)
    store.save_tensors(_path(name), tensors, {key: value for key, value in card.items() if key != "parts"})
    store.say(f"{name}: {card['seconds']:.0f} s")


def accuracy_rows(runs: Mapping[str, Mapping[str, Tensor]]) -> pd.DataFrame:
    """One row per policy and attack: accuracy under the attack with its Wilson interval and n, and clean accuracy.

    `size` is the bound of an L∞ attack in steps of 1/255, and 0 for the others.
    """
    rows = []
    for name, run in runs.items():
        for key, right in run.items():
            if right.dtype != torch.bool:
                continue
            attack, _, size = key.rpartition(" ") if key[-1].isdigit() else (key, "", "0")
            n, hits = len(right), int(right.sum())
            low, high = wilson(hits, n)
            rows.append({**_origin(name), "attack": attack, "size": int(size), "n": n, "accuracy": hits / n, "low": low,
                         "high": high, "clean": float(run["clean"][:n].float().mean())})  # fmt: skip
    return pd.DataFrame(rows)


def gap_rows(
    runs: Mapping[str, Mapping[str, Tensor]], pairs: Iterable[tuple[str, str]], attacks: Iterable[str], seed: int = 0
) -> pd.DataFrame:
    """How much more accurate the first of two policies is under the same attack, with bootstrap interval.

    The images are the same, so the differences are taken image by image; `gap` is a difference of shares.
    """
    rows = []
    for first, second in pairs:
        for attack in attacks:
            difference = runs[first][attack].double() - runs[second][attack].double()
            gap, low, high = bootstrap(difference, seed=seed)
            rows.append({**_origin(first), "versus": second, "attack": attack, "n": len(difference), "gap": gap,
                         "low": low, "high": high})  # fmt: skip
    return pd.DataFrame(rows)


def distance_rows(runs: Mapping[str, Mapping[str, Tensor]], seed: int = 0) -> pd.DataFrame:
    """One row per policy, reference, direction and measure: the median distance, and the paired ratio to the reference.

    Every row is set against the float network, and against its control where it has one; pairs count where both are
    right when clean. `never` is the share of images whose direction crosses no boundary inside the pixel cube.
    """
    rows = []
    for name, run in runs.items():
        for against, versus in {"float": "float", "control": POLICIES[name].control}.items():
            for key in DISTANCES if versus in runs and versus != name else ():
                right = run[key][~run[key].isnan()]
                rows.append({
                    **_origin(name), "against": against, "versus": versus, "directions": key.removesuffix(RECEIVED),
                    "measured": "received" if key.endswith(RECEIVED) else "handed in",
                    "distance": float(right.median()), "never": float(right.isinf().float().mean()),
                    "clean": len(right) / len(run[key]), **median_ratio(run[key], runs[versus][key], seed),
                })  # fmt: skip
    return pd.DataFrame(rows)


def _origin(name: str) -> dict:
    entry = POLICIES[name]
    return {"name": name, "policy": entry.policy, "bits": entry.bits, "training": entry.training, "label": entry.label,
            "role": "control" if entry.is_control else "policy"}  # fmt: skip


def _path(name: str) -> Path:
    return FOLDER / f"{name}.safetensors"


def _fetch(name: str, dataset: str, plan: Plan, retrain: bool) -> tuple[dict[str, Tensor], dict]:
    row = contender(name, dataset, retrain=retrain)
    parts = {
        "row": asdict(row.entry),
        "plan": asdict(plan),
        "data": data.load(dataset, "test").fingerprint,
        "network": row.fingerprint,
        "source": store.source_fingerprint(boundary, _attack, _measure),
    }
    return store.fetch("policies", parts, lambda: _make(row, dataset, plan, retrain))


def _make(row: Contender, dataset: str, plan: Plan, retrain: bool) -> tuple[dict[str, Tensor], dict]:
    started = time.perf_counter()
    tensors = _attack(row, dataset, plan, retrain) | _measure(row, dataset, plan, retrain)
    return tensors, {
        "row": asdict(row.entry), "dataset": dataset, "plan": asdict(plan), "seconds": time.perf_counter() - started,
        "versions": {name: version(name) for name in ("torch", "torchattacks", "adversarial-robustness-toolbox")},
    }  # fmt: skip


@cache
def _images(dataset: str, plan: Plan) -> tuple[Tensor, Tensor]:
    return data.load(dataset, "test").take(slice(0, plan.images))


@cache
def _from_float(dataset: str, plan: Plan, retrain: bool) -> tuple[dict[int, Tensor], Tensor]:
    """What is made on the float network: PGD's images by size, and the smallest changes."""
    net, (images, labels) = contender("float", dataset, retrain=retrain).net, _images(dataset, plan)
    few = slice(0, plan.distance_images)
    changes = boundary.minimal_change(net, images[few], labels[few], steps=plan.search)
    return {size: _pgd(net, images, labels, size, plan) for size in plan.sizes}, changes


def _pgd(net: torch.nn.Module, images: Tensor, labels: Tensor, size: int, plan: Plan) -> Tensor:
    options = {"eps": size / 255, "step_share": 0.25, "steps": plan.steps, "restarts": 1}
    return pixel.attack("PGD", net, images, labels, seed=plan.seed, **options)


def _attack(row: Contender, dataset: str, plan: Plan, retrain: bool) -> dict[str, Tensor]:
    images, labels = _images(dataset, plan)
    right = lambda shown: predict(row.net, shown) == labels[: len(shown)]  # noqa: E731
    tensors = {"clean": right(images)}
    for size, made in _from_float(dataset, plan, retrain)[0].items():
        tensors[f"PGD {size}"] = right(_pgd(row.gradient, images, labels, size, plan))
        tensors[f"PGD from float {size}"] = right(made)
    if row.entry.name.endswith("-wide"):
        return tensors
    few, truth, size = images[: plan.query_images], labels[: plan.query_images], plan.query_size
    for kind, told in {"Square": row.scores, "Square, own output": row.output}.items():
        if told is not None:
            options = {"eps": size / 255, "steps": plan.squares, "seed": plan.seed}
            tensors[f"{kind} {size}"] = right(pixel.attack("Square-Linf", told, few, truth, **options))
    pushed = pixel.attack("DeepFool", row.gradient, few, truth, seed=plan.seed)
    tensors |= {f"PGD {size}": right(_pgd(row.gradient, few, truth, size, plan)), "DeepFool": right(pushed)}
    return tensors | {"deepfool_l2": boundary.size(pushed - few)}


def _measure(row: Contender, dataset: str, plan: Plan, retrain: bool) -> dict[str, Tensor]:
    images, labels = (part[: plan.distance_images] for part in _images(dataset, plan))
    made = _from_float(dataset, plan, retrain)[1]
    found = {
        "nearest": boundary.boundary_distance(
            row.net, images, labels, gradient=row.gradient, directions=[made], steps=plan.search
        ),
        "made on float": boundary.along(row.net, images, labels, made),
        "random": boundary.along(row.net, images, labels, boundary.random_changes(images, seed=plan.seed)),
    }
    own = {directions: one.distance for directions, one in found.items()}
    return own | {f"{directions}{RECEIVED}": one.received for directions, one in found.items()}
