"""The networks of the patch defenses under image-specific patches: a patch for each judged image, made on that image.

A universal patch on a hardened network is hard to find, and a failed search proves little. A patch of its own for every
image is the attack that patch training itself makes, and that Rao, Stutz and Schiele judge by. Setting "seen" only; made on
the network itself at every width and on all of them (white-box), and on the undefended network's float view (surrogate).
`python -m qpatch.zoo specific` makes it again, cell by cell; an interrupted run goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from qpatch import data, store
from qpatch.attacks import LaVAN
from qpatch.attacks import base as attack_base
from qpatch.measure.success import predict
from qpatch.measure.trials import Trials, rate_row
from qpatch.quant import WIDTHS
from qpatch.zoo import networks, scenarios
from qpatch.zoo.attackers import ALL, INFERENCE, PAPERS, RANDOM, SAME, inference, label
from qpatch.zoo.bits import pack, unpack
from qpatch.zoo.patches import SPECIFIC_STEPS, evaluation_subset
from qpatch.zoo.scenarios import MEAN, SETTINGS, SURROGATE, attacked_view, deployed_views

FOLDER = Path(__file__).parent / "specific"
OWN = (*map(str, WIDTHS), MEAN)
FOREIGN = "surrogate"
ANY = "any of these"
"""The attacker who keeps, for each image, whichever of its patches works: the union that robustness is judged by."""
_SMOKE_STEPS = 3


@dataclass(frozen=True, eq=False)
class Specific:
    """Who is fooled by a patch of its own.

    Attributes:
        network: of the zoo.
        right: bool (W, N): the clean image is classified correctly; widths in the order of `WIDTHS`.
        hits: source → bool (W, N): the image leaves its class at each width. The source is the width of the network itself
            at which the patches were made, "mean" for all of them by turns, or "surrogate".
        card: where it comes from.
    """

    network: str
    right: Tensor
    hits: dict[str, Tensor]
    card: dict

    def trials(self, source: str, width: int) -> Trials:
        """One source (or `ANY`) at one width, or at a width that is drawn (`RANDOM`: the exact mean)."""
        numbers = list(range(len(WIDTHS))) if width == RANDOM else [WIDTHS.index(width)]
        hits = torch.stack([*self.hits.values()]) if source == ANY else self.hits[source][None]
        hit = hits[:, numbers].double().mean(1).amax(0).numpy()
        won = (hits & self.right)[:, numbers].double().mean(1).amax(0).numpy()
        return Trials(hit[None], won[None], self.right[numbers].double().mean(0).numpy(), (self.network, source))


def success_rows(runs: Mapping[str, Specific], dataset: str = "cifar10") -> pd.DataFrame:
    """How often each attacker finds a patch for an image: papers' setting, same width, all widths, any of all patches.

    Returns:
        one row per network, attacker and width: dataset, defense, training_seed, attacker, inference, target_bits, images,
        and what `rate_row` gives.
    """
    found = []
    for run, attacker, width in product(runs.values(), (PAPERS, SAME, ALL, ANY), INFERENCE):
        if attacker == SAME and width == RANDOM:  # there is no same width then
            continue
        papers = FOREIGN if FOREIGN in run.hits else "32"
        source = {PAPERS: papers, SAME: str(width), ALL: MEAN, ANY: ANY}[attacker]
        defense, seed = label(run.network)
        origin = {"dataset": dataset, "defense": defense, "training_seed": seed, "attacker": attacker, **inference(width)}
        found.append({**origin, "images": run.right.shape[1], **rate_row(run.trials(source, width))})
    return pd.DataFrame(found)


def load_runs(
    names: Iterable[str], dataset: str = "cifar10", *, retrain: bool = False,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Specific]:  # fmt: skip
    """The results of the undefended network and of those others that have them, see `scenarios.ready`."""
    there, _ = scenarios.ready(names, FOLDER, "specific", dataset, retrain)
    return {name: load_specific_run(name, dataset, retrain=retrain, progress=progress) for name in there}


def load_specific_run(
    network: str, dataset: str = "cifar10", *, retrain: bool = False, progress: Callable[[str], None] | None = None
) -> Specific:
    """The results of a network: the shipped ones, or ones made now and kept in the store.

    Raises:
        ParameterError: no such network. StoreError: a shipped file is damaged.
    """
    if dataset == "cifar10" and not retrain and _path(network).exists():
        tensors, made = store.load_tensors(_path(network))
    else:
        tensors, made = _make(network, dataset, retrain, progress)
    n = made["images"]
    return Specific(network, unpack(tensors["right"], n), {source: unpack(tensors[source], n) for source in made["sources"]}, made)


def ship(network: str) -> None:
    """Attack a network of the package on CIFAR-10 and write the results into the package."""
    store.save_tensors(_path(network), *_make(network, "cifar10", False, store.say))


def _make(network: str, dataset: str, retrain: bool, progress) -> tuple[dict[str, Tensor], dict]:
    started, test = time.perf_counter(), data.load(dataset, "test")
    images, labels = test.take(evaluation_subset(test))
    views = deployed_views(network, dataset, retrain)
    sources = [*OWN, *([FOREIGN] if network != SURROGATE else [])]
    tensors = {"right": pack(torch.stack([predict(views[width], images) == labels for width in WIDTHS]))}
    for source in sources:
        tensors[source] = _cell(network, source, dataset, retrain, images, labels)
        if progress:
            progress(f"{network}: a patch for each image, made on {source}")
    return tensors, {
        "network": network, "dataset": dataset, "images": len(images), "sources": sources,
        "attack": {"name": "LaVAN", "steps": _steps(dataset), "lr": 0.1}, "data": test.fingerprint,
        "fingerprint": _fingerprint(network, dataset, retrain), "seconds": round(time.perf_counter() - started, 1),
        "commit": networks._commit(),
    }  # fmt: skip


def _cell(network: str, source: str, dataset: str, retrain: bool, images: Tensor, labels: Tensor) -> Tensor:
    """Whom the patches of one source fool, packed; from the store or made now."""
    parts = {
        "networks": [_fingerprint(name, dataset, retrain) for name in (network, SURROGATE)], "source": source,
        "data": data.load(dataset, "test").fingerprint, "steps": _steps(dataset), "setting": list(SETTINGS["seen"]),
        "code": store.source_fingerprint(attack_base, LaVAN, hits_after),
    }  # fmt: skip

    def made() -> tuple[dict[str, Tensor], dict]:
        deployed = deployed_views(network, dataset, retrain)  # anew: a noisy view starts from its seed
        attacked = deployed_views(SURROGATE, dataset, retrain) if source == FOREIGN else deployed
        view = attacked_view(attacked, "32" if source == FOREIGN else source)
        return {"hits": pack(hits_after(_steps(dataset), view, deployed, images, labels))}, {}

    return store.fetch("specific", parts, made)[0]["hits"]


def hits_after(
    steps: int, view: torch.nn.Module, deployed: Mapping[int, torch.nn.Module], images: Tensor, labels: Tensor
) -> Tensor:
    """Whom a patch of its own fools that was made on `view` in this many steps: bool (W, N), widths of `deployed`."""
    size, place, _ = SETTINGS["seen"]
    patched = LaVAN(view, size, place=place, steps=steps, lr=0.1)(images, labels)
    return torch.stack([predict(deployed[width], patched) != labels for width in WIDTHS])


def _fingerprint(network: str, dataset: str, retrain: bool) -> str:
    return store.tensors_fingerprint(networks.load(network, dataset, retrain=retrain).state_dict())


def _steps(dataset: str) -> int:
    return SPECIFIC_STEPS if dataset != "shapes" else _SMOKE_STEPS


def _path(network: str) -> Path:
    return FOLDER / f"{network}.safetensors"
