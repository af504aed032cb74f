"""The networks of the patch defenses under PatchAttack, image by image: what ships instead of minutes of questions.

Two attackers, in the settings of `qpatch.zoo.scenarios`:

| access    | whom it asks                              | what is judged                                   |
|-----------|-------------------------------------------|--------------------------------------------------|
| own       | the deployed view itself, at its width    | the patch, shown to this view once more          |
| surrogate | the undefended network, on its float view | the very same patched images, seen at all widths |

The second one is papers A and B's attacker. It asks until its budget is used up, because a patch that barely fools one
network seldom fools another. What is run, on how many images and with how many seeds, is in `qpatch.zoo.probes`.
`python -m qpatch.zoo black-box` makes it again, cell by cell; an interrupted run goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from qpatch import data, store
from qpatch.attacks import QueryPatchAttack, agents, make_mask, paste, patch_attack
from qpatch.measure.stats import wilson
from qpatch.measure.success import predict
from qpatch.quant import WIDTHS
from qpatch.zoo import networks, scenarios
from qpatch.zoo.bits import pack, unpack
from qpatch.zoo.painted import load_textures, to_bytes
from qpatch.zoo.patches import evaluation_subset
from qpatch.zoo.probes import IMAGES, QUERIES, Probe, own_probes, surrogate_probes
from qpatch.zoo.scenarios import SETTINGS, SURROGATE, deployed_views

FOLDER = Path(__file__).parent / "black_box"


@dataclass(frozen=True, eq=False)
class BlackBox:
    """Who is fooled by PatchAttack.

    Attributes:
        network: of the zoo.
        label: int64 (N,), the true classes of the images.
        right: bool (W, N): the clean image is classified correctly; widths in the order of `WIDTHS`.
        hits: (access, probe) → width → bool (n,): the image leaves its class or goes to the target; the first n of N.
        first: probe → int64 (n,): the question to the view itself that first succeeded, from 1; 0 if none did.
        card: where it comes from, with the budget.
    """

    network: str
    label: Tensor
    right: Tensor
    hits: dict[tuple[str, Probe], dict[int, Tensor]]
    first: dict[Probe, Tensor]
    card: dict

    def counts(self, setting: str, width: int, n: int | None = None) -> Tensor:
        """bool (n,): the images on which success is counted: right when clean, and not of the target class."""
        right, target = self.right[WIDTHS.index(width)], SETTINGS[setting].target
        return (right if target is None else right & (self.label != target))[:n]

    @cached_property
    def rows(self) -> pd.DataFrame:
        """One row per probe and width, with the columns of `Patched.rows` as far as they make sense here.

        Returns:
            network, access, attack, variant, policy, kind, setting, source, target_bits, seed, n, asr, ci_low, ci_high
            (Wilson), clean_accuracy, patch_size, queries (the budget), mean_queries (per image that counts, of those
            who ask the network itself).
        """
        found, budget = [], self.card["queries"]
        for (access, probe), by_width in self.hits.items():
            for width, hits in by_width.items():
                counts = self.counts(probe.setting, width, len(hits))
                n, fooled = int(counts.sum()), int((counts & hits).sum())
                low, high = wilson(fooled, n)
                first = self.first[probe][counts].double() if access == "own" else None
                found.append({
                    "network": self.network, "access": access, "attack": "PatchAttack", "variant": probe.variant,
                    "policy": probe.policy, "kind": probe.kind(access), "setting": probe.setting,
                    "source": probe.source, "target_bits": width, "seed": probe.seed, "n": n,
                    "asr": fooled / n if n else np.nan, "ci_low": low, "ci_high": high,
                    "clean_accuracy": float(self.right[WIDTHS.index(width)].float().mean()),
                    "patch_size": SETTINGS[probe.setting].size, "queries": budget,
                    "mean_queries": float(budget) if first is None else float(first.where(first > 0, budget).mean()),
                })  # fmt: skip
        return pd.DataFrame(found)

    def curve(self, probe: Probe) -> pd.DataFrame:
        """Success against the budget, for a probe of the network itself: queries, n, asr, ci_low, ci_high."""
        first = self.first[probe]
        counts = self.counts(probe.setting, int(probe.source), len(first))
        n, found = int(counts.sum()), []
        for budget in range(1, self.card["queries"] + 1):
            fooled = int(((first > 0) & (first <= budget) & counts).sum())
            found.append((budget, n, fooled / n if n else np.nan, *wilson(fooled, n)))
        return pd.DataFrame(found, columns=["queries", "n", "asr", "ci_low", "ci_high"])


def load_runs(
    names: Iterable[str], dataset: str = "cifar10", *, seeds: int = scenarios.SEEDS, retrain: bool = False,
    progress: Callable[[str], None] | None = None,
) -> tuple[dict[str, BlackBox], list[str]]:  # fmt: skip
    """The results of the undefended network and of some others, see `scenarios.ready`.

    Returns:
        name → results, the undefended network first; and the names that do not ship yet.

    Raises:
        DataError: the undefended network itself has no results.
    """
    there, missing = scenarios.ready(names, FOLDER, "black-box", dataset, retrain)
    return {name: load_black_box(name, dataset, seeds=seeds, retrain=retrain, progress=progress) for name in there}, missing


def load_black_box(
    network: str, dataset: str = "cifar10", *, seeds: int = scenarios.SEEDS, retrain: bool = False,
    progress: Callable[[str], None] | None = None,
) -> BlackBox:  # fmt: skip
    """The results of a network: the shipped ones, or ones made now and kept in the store.

    Args:
        network: of the zoo, with all widths.
        dataset: "cifar10" (ships) or "shapes".
        seeds: of the cells with several; fewer than the shipped run gives its first ones.
        retrain: train network and surrogate anew, and attack them now.
        progress: gets a line now and then.

    Raises:
        ParameterError: no such network. StoreError: a shipped file is damaged.
    """
    if dataset == "cifar10" and not retrain and _path(network).exists():
        tensors, made = store.load_tensors(_path(network))
        if made["seeds"] >= seeds:
            return _black_box(network, tensors, made, seeds)
    return _black_box(network, *_make(network, dataset, seeds, retrain, progress), seeds)


def ship(network: str) -> None:
    """Attack a network of the package on CIFAR-10 and write the results into the package."""
    store.save_tensors(_path(network), *_make(network, "cifar10", scenarios.SEEDS, False, store.say))


def surrogate_patches(
    dataset: str = "cifar10", *, seeds: int = scenarios.SEEDS, retrain: bool = False,
    progress: Callable[[str], None] | None = None,
) -> dict[Probe, tuple[Tensor, Tensor]]:  # fmt: skip
    """The patches of the surrogate's attacker: probe → pixels (N, C, h, w) on the 8-bit lattice and places (N, 2)."""
    bench, wanted, cells = _Bench(SURROGATE, dataset, retrain), surrogate_probes(seeds), {}
    if dataset == "cifar10" and not retrain and _path(SURROGATE).exists():
        tensors, made = store.load_tensors(_path(SURROGATE))
        for number, probe in enumerate(Probe(**probe) for probe in made["surrogate"]):
            cells[probe] = {name: tensors[f"{name}/{number}"] for name in ("pixels", "places")}
    for number, probe in enumerate(wanted, start=1):
        if probe not in cells:
            cells[probe] = bench.cell(probe, "surrogate")
            if progress and number % 3 == 0:
                progress(f"{SURROGATE}: {number} of {len(wanted)} probes for other networks")
    return {probe: _patches(probe, **cells[probe]) for probe in wanted}


@dataclass(frozen=True)
class _Bench:
    """A network, the images and the store: where the probes are run."""

    network: str
    dataset: str
    retrain: bool

    @cached_property
    def fingerprint(self) -> str:
        net = networks.load(self.network, self.dataset, retrain=self.retrain)
        return store.tensors_fingerprint(net.state_dict())

    @cached_property
    def test(self) -> data.Dataset:
        return data.load(self.dataset, "test")

    @cached_property
    def images(self) -> tuple[Tensor, Tensor]:
        return self.test.take(evaluation_subset(self.test)[: IMAGES[self.dataset][0]])

    @cached_property
    def textures(self) -> Tensor:
        return load_textures(self.dataset, retrain=self.retrain)

    def cell(self, probe: Probe, access: str) -> dict[str, Tensor]:
        """One probe, from the store or made now."""
        n = IMAGES[self.dataset][0 if access == "surrogate" or probe.main else 1]
        parts = {
            "probe": asdict(probe), "access": access, "setting": list(SETTINGS[probe.setting]), "images": n,
            "network": self.network, "fingerprint": self.fingerprint, "data": self.test.fingerprint,
            "queries": QUERIES[self.dataset],
            "source": store.source_fingerprint(patch_attack, agents, _Bench.run, _hits),
        }  # fmt: skip
        if probe.variant == "texture":
            parts["textures"] = store.tensors_fingerprint({"textures": self.textures})
        return store.fetch("black_box", parts, lambda: (self.run(probe, access, n), {}))[0]

    def run(self, probe: Probe, access: str, n: int) -> dict[str, Tensor]:
        size, place, target = SETTINGS[probe.setting]
        views = deployed_views(self.network, self.dataset, self.retrain)  # anew: a noisy view starts from its seed
        view, (images, labels) = views[int(probe.source)], (part[:n] for part in self.images)
        result = QueryPatchAttack(
            view, size, target=target, place=place, variant=probe.variant, policy=probe.policy, seed=probe.seed,
            textures=self.textures if probe.variant == "texture" else None, queries=QUERIES[self.dataset],
            stop_at=1.0 if access == "surrogate" else 0.0,
        ).run(images, labels)  # fmt: skip
        if access == "surrogate":
            return {"pixels": to_bytes(result.pixels), "places": result.places.to(torch.uint8)}
        return {"hits": pack(_hits(view, result.images, labels, probe)[None]), "first": result.first.to(torch.uint8)}


def _make(network: str, dataset: str, seeds: int, retrain: bool, progress) -> tuple[dict[str, Tensor], dict]:
    started, bench = time.perf_counter(), _Bench(network, dataset, retrain)
    views, (images, labels) = deployed_views(network, dataset, retrain), bench.images
    right = torch.stack([predict(views[width], images) == labels for width in WIDTHS])
    tensors = {"label": labels.to(torch.uint8), "right": pack(right)}
    foreign = surrogate_patches(dataset, seeds=seeds, retrain=retrain, progress=progress)
    for number, (probe, (pixels, places)) in enumerate(foreign.items()):
        shown = paste(images, pixels, make_mask("square", SETTINGS[probe.setting].size), places)
        tensors[f"surrogate/{number}"] = pack(torch.stack([_hits(views[w], shown, labels, probe) for w in WIDTHS]))
        if network == SURROGATE:
            small = pixels[..., :1, :1] if probe.variant == "mono" else pixels
            tensors |= {f"pixels/{number}": to_bytes(small), f"places/{number}": places.to(torch.uint8)}
    own = own_probes(seeds)
    for number, probe in enumerate(own):
        cell = bench.cell(probe, "own")
        tensors |= {f"own/{number}": cell["hits"], f"first/{number}": cell["first"]}
        if progress and (number + 1) % 3 == 0:
            progress(f"{network}: {number + 1} of {len(own)} probes of the network itself")
    return tensors, {
        "network": network, "dataset": dataset, "seeds": seeds, "images": list(IMAGES[dataset]),
        "queries": QUERIES[dataset], "own": [asdict(probe) for probe in own],
        "surrogate": [asdict(probe) for probe in foreign], "fingerprint": bench.fingerprint,
        "data": bench.test.fingerprint, "seconds": round(time.perf_counter() - started, 1),
        "commit": networks._commit(),
    }  # fmt: skip


def _black_box(network: str, tensors: dict[str, Tensor], made: dict, seeds: int) -> BlackBox:
    n, hits, first = len(tensors["label"]), {}, {}
    for number, probe in enumerate(Probe(**probe) for probe in made["own"]):
        if probe.seed < seeds:
            first[probe] = tensors[f"first/{number}"].long()
            hits["own", probe] = {int(probe.source): unpack(tensors[f"own/{number}"], len(first[probe]))[0]}
    for number, probe in enumerate(Probe(**probe) for probe in made["surrogate"]):
        if probe.seed < seeds:
            hits["surrogate", probe] = dict(zip(WIDTHS, unpack(tensors[f"surrogate/{number}"], n)))
    return BlackBox(network, tensors["label"].long(), unpack(tensors["right"], n), hits, first, made)


def _patches(probe: Probe, pixels: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    size = SETTINGS[probe.setting].size
    return (pixels.float() / 255).expand(-1, -1, size, size), places.long()


def _hits(view, patched: Tensor, labels: Tensor, probe: Probe) -> Tensor:
    shown, target = predict(view, patched), SETTINGS[probe.setting].target
    return shown != labels if target is None else shown == target


def _path(network: str) -> Path:
    return FOLDER / f"{network}.safetensors"
