"""The networks of papers A and B under attackers who know them, image by image: the stored runs of notebook 35.

`qpatch.zoo.adaptive_cells` says what is tried, `qpatch.zoo.adaptive_rows` counts it. The first 500 images of
`evaluation_subset` are attacked. `python -m qpatch.zoo adaptive` makes it again, cell by cell; an interrupted run goes
on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qpatch import data, store
from qpatch.attacks import aligned, equiluminant, expectation, lavan, sparse_rs
from qpatch.attacks import base as attack_base
from qpatch.defenses import dwq, likeness
from qpatch.errors import DataError, one_of
from qpatch.measure.success import predict
from qpatch.quant import WIDTHS
from qpatch.zoo import black_box, networks, patched
from qpatch.zoo.adaptive_cells import JEDI, MADE_AT, RESTART, TRANSFER, WHITE, Bench, Cell, cells
from qpatch.zoo.families import FAMILIES, members
from qpatch.zoo.patches import evaluation_subset
from qpatch.zoo.recipes import COMPARATORS, PATCH_DEFENSES, TRIQDEF_DEFENSES
from qpatch.zoo.scenarios import SURROGATE

FOLDER = Path(__file__).parent / "adaptive"
_SEEDED = {**PATCH_DEFENSES, **TRIQDEF_DEFENSES, **COMPARATORS}
NETWORKS = (
    SURROGATE, *(name for name in FAMILIES if name != SURROGATE), JEDI,
    *(name + (f"-s{seed}" if seed else "") for name, seeds in _SEEDED.items() for seed in range(seeds)),
)  # fmt: skip
"""Undefended networks first, then Jedi in front of one, then the defended ones with all their trainings."""


@dataclass(frozen=True, eq=False)
class Adaptive:
    """Who is fooled by which attack.

    Attributes:
        network: of `NETWORKS`.
        right: bool (W, N): the clean image is classified correctly; widths in the order of `WIDTHS`.
        hits: cell → bool (D, W, N): the image leaves its class at each width, in each of D draws; D is 1 for a network
            that draws no lots.
        universal, asked: the same of stored universal patches (bool (P, W, N)) and of PatchAttack (width → bool (N,));
            empty where none ship, and for networks that draw lots.
        extras: cell → tensors (N,): margins "start" and "end", or the query "first" that succeeded.
        card: where it comes from.
    """

    network: str
    right: Tensor
    hits: dict[Cell, Tensor]
    extras: dict[Cell, dict[str, Tensor]]
    card: dict
    universal: dict[str, Tensor] = field(default_factory=dict)
    asked: dict[int, Tensor] = field(default_factory=dict)

    @property
    def random(self) -> bool:
        """Does the network draw lots?"""
        return len(next(iter(self.hits.values()))) > 1

    def of(self, attack: str, source: str | None = None) -> list[Cell]:
        """The cells of an attack, restarts in their order."""
        found = [cell for cell in self.hits if cell.attack == attack and source in (None, cell.source)]
        place = lambda cell: MADE_AT.index(int(cell.source)) if cell.source.isdigit() else len(MADE_AT)  # noqa: E731
        return sorted(found, key=lambda cell: (cell.seed, place(cell)))


def load_runs(
    names: Iterable[str], dataset: str = "cifar10", *, retrain: bool = False, stored: bool = True,
    progress: Callable[[str], None] | None = None,
) -> tuple[dict[str, Adaptive], list[str]]:  # fmt: skip
    """The results of the undefended network and of some others, without starting an attack on CIFAR-10.

    Args:
        names: of `NETWORKS`. On "shapes" or with `retrain` they are attacked now.
        stored: take the universal patches and PatchAttack's runs of the package along where they ship.
        progress: gets a line per cell.

    Returns:
        name → results, the undefended network first; and the names that do not ship yet.

    Raises:
        DataError: the undefended network itself has no results. ParameterError: no such network.
    """
    wanted = [one_of(name, NETWORKS, "attacked network") for name in dict.fromkeys([SURROGATE, *names])]
    made_here = dataset != "cifar10" or retrain
    ready = [name for name in wanted if made_here or _path(name).exists()]
    if SURROGATE not in ready:
        raise DataError(
            f"the results of {SURROGATE} do not ship yet; make them with: python -m qpatch.zoo adaptive {SURROGATE}"
        )
    runs = {name: load_adaptive(name, dataset, retrain=retrain, progress=progress) for name in ready}
    if stored and not made_here:
        runs = {name: _with_stored(run) for name, run in runs.items()}
    return runs, [name for name in wanted if name not in ready]


def load_adaptive(
    network: str, dataset: str = "cifar10", *, retrain: bool = False, progress: Callable[[str], None] | None = None
) -> Adaptive:
    """The results of one network: the shipped ones, or ones made now, cell by cell, and kept in the store.

    Raises:
        ParameterError: no such network. StoreError: a shipped file is damaged.
    """
    one_of(network, NETWORKS, "attacked network")
    if dataset == "cifar10" and not retrain and _path(network).exists():
        tensors, made = store.load_tensors(_path(network))
    else:
        tensors, made = _make(Bench(network, dataset, retrain), progress)
    return _adaptive(tensors, made)


def ship(network: str) -> None:
    """Attack a network of the package on CIFAR-10 and write the results into the package.

    Raises:
        DataError: the network itself does not ship; attacking it would train it first.
    """
    absent = [name for name in _members(network) if name not in networks.shipped()]
    if absent:
        raise DataError(
            f"{', '.join(absent)} does not ship yet; train it first: python -m qpatch.zoo networks {absent[0]}"
        )
    store.save_tensors(_path(network), *_make(Bench(network), store.say))


def remade(run: Adaptive, cell: Cell, images: int, dataset: str = "cifar10", *, retrain: bool = False) -> Tensor:
    """A cell of a run made once more, now, on its first images: bool (D, W, images).

    Images are attacked in batches of 128; as many of them, or a multiple, meet the very same draws as in the stored run.
    """
    bench = Bench(run.network, dataset, retrain)
    seen, labels = _images(bench)
    made = bench.patched(cell, seen[:images], labels[:images])[0]
    return bench.judged(made, labels[:images])


def _make(bench: Bench, progress: Callable[[str], None] | None) -> tuple[dict[str, Tensor], dict]:
    started, (images, labels) = time.perf_counter(), _images(bench)
    views = bench.deployed()
    tensors = {"right": _pack(torch.stack([predict(views[width], images) == labels for width in WIDTHS]))}
    order, parts = [], {"networks": _fingerprints(bench), "data": _test(bench).fingerprint, "code": _code()}

    def take(cell: Cell, alive: Tensor | None = None) -> Tensor:
        """Whom the cell fools of the images `alive`; nobody else."""
        found = _cell(bench, cell, parts, images, labels, alive)
        tensors.update({f"{name}/{len(order)}": tensor for name, tensor in found.items()})
        order.append(cell)
        hits = _unpack(found["hits"], len(labels))
        if progress:
            start = f", start {cell.seed + 1}" if cell.seed else ""
            share = float(hits[:, _number(cell)].float().mean())
            progress(f"{bench.network}: {cell.attack}, made on {cell.source}{start}: {share:.1%}")
        return hits

    made = {cell: take(cell) for cell in cells(bench.network, bench.random)}
    for width in MADE_AT:
        fooled = made[Cell(WHITE, str(width))][:, WIDTHS.index(width)].all(0)
        for seed in range(1, bench.budget.restarts + 1):
            if fooled.all():
                break
            new = take(Cell(RESTART, str(width), seed), (~fooled).nonzero()[:, 0])[:, WIDTHS.index(width)].all(0)
            fooled |= new
            if float(new.float().mean()) < bench.budget.enough:
                break
    return tensors, {
        "network": bench.network, "dataset": bench.dataset, "images": len(images), "budget": asdict(bench.budget),
        "cells": [asdict(cell) for cell in order], "fingerprint": parts["networks"][0], "data": parts["data"],
        "seconds": round(time.perf_counter() - started, 1), "commit": networks._commit(),
    }  # fmt: skip


def _cell(
    bench: Bench, cell: Cell, parts: dict, images: Tensor, labels: Tensor, alive: Tensor | None
) -> dict[str, Tensor]:
    """One cell, from the store or made now: hits, packed, and its extras."""
    alike = {**parts, **bench.describe(cell)}
    own = {"network": bench.network, "alive": None if alive is None else alive.tolist()}

    def make() -> tuple[dict[str, Tensor], dict]:
        part = torch.arange(len(labels)) if alive is None else alive
        if cell.attack == TRANSFER:
            shown, extras = _transferred(bench, cell, alike, images, labels), {}
        else:
            shown, extras = bench.patched(cell, images[part], labels[part])
        found = bench.judged(shown, labels[part])
        hits = torch.zeros(*found.shape[:2], len(labels), dtype=torch.bool)
        hits[..., part] = found
        if cell.attack == WHITE:
            extras = bench.margins(cell, shown, images, labels)
        return {"hits": _pack(hits), **extras}, {}

    return store.fetch("adaptive", {**alike, **own}, make)[0]


def _transferred(bench: Bench, cell: Cell, parts: dict, images: Tensor, labels: Tensor) -> Tensor:
    """The images with another network's patches, made once for all networks."""
    parts = {**parts, "networks": parts["networks"][1:]}
    make = lambda: ({"bytes": (bench.patched(cell, images, labels)[0] * 255).round().to(torch.uint8)}, {})  # noqa: E731
    return store.fetch("adaptive-transfer", parts, make)[0]["bytes"].float() / 255


def _with_stored(run: Adaptive) -> Adaptive:
    """With the universal patches (setting "seen") and PatchAttack's runs of the package, on the same images."""
    if run.random or run.network == JEDI:
        return run
    n, universal, asked = run.right.shape[1], {}, {}
    if patched._path(run.network).exists():
        stored = patched.load_patched(run.network)
        for (access, shot), hits in stored.hits.items():
            if shot.setting == "seen":
                universal[f"{access}/{shot.attack}/{shot.source}/{shot.seed}"] = hits[:, :n]
    if black_box._path(run.network).exists():
        for (access, probe), by_width in black_box.load_black_box(run.network).hits.items():
            if access == "own" and probe.main and probe.seed == 0:
                asked |= {width: hits[:n] for width, hits in by_width.items()}
    return replace(run, universal=universal, asked=asked)


def _adaptive(tensors: dict[str, Tensor], made: dict) -> Adaptive:
    n, hits, extras = made["images"], {}, {}
    for number, cell in enumerate(Cell(**cell) for cell in made["cells"]):
        hits[cell] = _unpack(tensors[f"hits/{number}"], n)
        kept = {name: tensors.get(f"{name}/{number}") for name in ("start", "end", "first")}
        extras[cell] = {name: tensor.float() for name, tensor in kept.items() if tensor is not None}
    return Adaptive(made["network"], _unpack(tensors["right"], n), hits, extras, made)


def _members(network: str) -> list[str]:
    if network == JEDI:
        return [SURROGATE]
    return list(dict.fromkeys(members(network).values())) if network in FAMILIES else [network]


def _fingerprints(bench: Bench) -> list[str]:
    """Of the network, and of those that patches are transferred from."""
    both = bench.deployed(), bench.attacked(Cell(TRANSFER, "32"))
    states = [{width: view.state_dict() for width, view in views.items()} for views in both]
    named = [{f"{width}/{k}": t for width, state in each.items() for k, t in state.items()} for each in states]
    return [store.tensors_fingerprint(tensors) for tensors in named]


def _code() -> str:
    return store.source_fingerprint(
        attack_base, lavan, equiluminant, aligned, expectation, sparse_rs, dwq.RandomPrecision, likeness,
        Bench._attack, Bench._searched, Bench.judged, Bench.margins,
    )  # fmt: skip


def _test(bench: Bench) -> data.Dataset:
    return data.load(bench.dataset, "test")


def _images(bench: Bench) -> tuple[Tensor, Tensor]:
    test = _test(bench)
    return test.take(evaluation_subset(test)[: bench.budget.images])


def _number(cell: Cell) -> int:
    return WIDTHS.index(int(cell.source)) if cell.source.isdigit() else 0


def _path(network: str) -> Path:
    return FOLDER / f"{network}.safetensors"


def _pack(bits: Tensor) -> Tensor:
    """Eight images per byte."""
    return torch.from_numpy(np.packbits(bits.cpu().numpy(), axis=-1))


def _unpack(packed: Tensor, n: int) -> Tensor:
    return torch.from_numpy(np.unpackbits(packed.numpy(), axis=-1, count=n).astype(bool))
