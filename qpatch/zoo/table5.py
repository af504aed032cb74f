"""TriQDef's Table 5 and Table 7 in our setting: three attacks, seen and unseen, and what each part of a defense adds.

LaVAN and GAP come from `qpatch.zoo.patched`, PatchAttack from `qpatch.zoo.black_box`; every number is counted from stored
hits. Attackers are those of `qpatch.zoo.attackers`; PatchAttack, which sees no gradients, has two of them:

| attacker                   | PatchAttack                                           |
|----------------------------|-------------------------------------------------------|
| papers' setting            | asks the undefended network's float view               |
| strongest                  | asks the deployed network itself, at the judged width |

The published table says "unseen" of all patches that are not seen. Here each kind stands alone, and "unseen" is the mean
over the kinds that count the same event as seen patches do: another width, 8×8, 10×10, and the centre.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product
from math import sqrt

import numpy as np
import pandas as pd
import torch

from qpatch.measure.trials import Trials, contrast, pooled, rate_row, relative_drop
from qpatch.quant import WIDTHS
from qpatch.zoo.attackers import PAPERS, STRONGEST, control, label, met
from qpatch.zoo.black_box import BlackBox
from qpatch.zoo.patched import Patched
from qpatch.zoo.probes import Probe
from qpatch.zoo.robustness import setting_of
from qpatch.zoo.scenarios import ATTACKS, KINDS, SURROGATE

QUERIES = "PatchAttack"
SEEN, UNSEEN = "seen", "unseen"
SIMILAR = ("width", "size 8", "size 10", "place")
PATCHES = (SEEN, UNSEEN, *KINDS[1:])
PUBLISHED = {"pbat-random": "PBAT", "pbat-full": "PBAT", "dwq": "DWQ", "dwq-mild": "DWQ", "triqdef": "TriQDef"}


class Table5:
    """All networks under all attacks.

    Args:
        runs: network → results under LaVAN and GAP. queried: network → results under PatchAttack; may hold fewer.
        published: the paper's table, with the columns patches, defense, attack and one per width ("32", …).
    """

    def __init__(self, runs: Mapping[str, Patched], queried: Mapping[str, BlackBox], published: pd.DataFrame):
        self.runs, self.queried = runs, queried
        rows = published[published["dataset"] == "cifar10"]
        self.published = rows.set_index(["defense", "patches", "attack"])

    def trials(self, network: str, attack: str, patches: str, attacker: str, width: int) -> Trials | None:
        """One cell; None where the attacker has no such patches."""
        if patches == UNSEEN:
            parts = [self.trials(network, attack, kind, attacker, width) for kind in SIMILAR]
            parts = [part for part in parts if part is not None]
            return pooled(parts) if parts and len({len(part.won) for part in parts}) == 1 else None
        if attack != QUERIES:
            return met(self.runs[network], attacker, attack, patches, width)
        if network not in self.queried:
            return None
        return asked(self.queried[network], patches, attacker, width)

    def rows(self, dataset: str = "cifar10", attackers: Iterable[str] = (PAPERS, STRONGEST)) -> pd.DataFrame:
        """Every defense, attack, kind of patch and width.

        Returns:
            one row each: dataset, defense, training_seed, attack, patches, attacker, target_bits, images, what `rate_row`
            gives, control (the strongest of noise, grey, photograph at the same place), clean_accuracy, published (the
            paper's value where it has one, else nan).
        """
        found = []
        cells = product(self.runs, attackers, (*ATTACKS, QUERIES), PATCHES, WIDTHS)
        for network, attacker, attack, patches, width in cells:
            made = self.trials(network, attack, patches, attacker, width)
            if made is None or not made.n:
                continue
            run, (defense, seed) = self.runs[network], label(network)
            clean = float(run.right[WIDTHS.index(width)].float().mean())
            found.append({
                "dataset": dataset, "defense": defense, "training_seed": seed, "attack": attack, "patches": patches,
                "attacker": attacker, "target_bits": width, "images": len(made.counts), **rate_row(made),
                "control": self._control(run, patches, width), "clean_accuracy": clean,
                "published": self._published(defense, patches, attack, width),
            })  # fmt: skip
        return pd.DataFrame(found)

    def drops(self, pairs: Iterable[tuple[str, str]], dataset: str = "cifar10") -> pd.DataFrame:
        """How far success falls from one network to another, cell by cell and as a mean over all attacks and widths.

        Args:
            pairs: (from, to), defenses; a positive value says that the second one is fooled less. Where both were trained
                twice, both trainings are averaged.

        Returns:
            one row per pair, attacker, kind of patch, attack ("all" for the mean over LaVAN and GAP), width (0 for the mean
            over the fixed widths) and reading: trainings, value, low, high, n, seeds. The readings are "points" and
            "relative" of the success, and "robust", the robust accuracy gained (share of all images that are right with
            the patch and without). Points and robust accuracy have training_gap (of these averages), margin, margin_low,
            margin_high: minus twice that gap.
        """
        found = []
        for (base, other), attacker, patches in product(pairs, (PAPERS, STRONGEST), PATCHES):
            cells, trainings = {}, min(len(self._trainings(name)) for name in (base, other))
            for attack, width in product((*ATTACKS, QUERIES), WIDTHS):
                both = [
                    [self.trials(each, attack, patches, attacker, width) for each in self._trainings(name)[:trainings]]
                    for name in (base, other)
                ]
                if all(each is not None and each.n for side in both for each in side):
                    cells[attack, width] = tuple(pooled(side) for side in both)
            for attack in (*ATTACKS, QUERIES, "all"):
                part = {cell: both for cell, both in cells.items() if cell[0] == attack or (attack == "all" and cell[0] in ATTACKS)}
                if not part:
                    continue
                each = {} if attack == "all" else {width: both for (_, width), both in part.items()}
                attacks = ATTACKS if attack == "all" else (attack,)
                gaps = [self.training_gap(attacker, patches, attacks, lost) / sqrt(trainings) for lost in (False, True)]
                mean = tuple(pooled([both[side] for both in part.values()]) for side in (0, 1))
                for width, (first, second) in {**each, 0: mean}.items():
                    origin = {"dataset": dataset, "from": base, "to": other, "attacker": attacker, "patches": patches,
                              "attack": attack, "target_bits": width, "trainings": trainings}  # fmt: skip
                    found.append({**origin, "reading": "relative", **relative_drop(first, second)._asdict()})
                    robust = (first.lost(), second.lost())
                    for reading, (a, b), gap in zip(("points", "robust"), ((first, second), robust), gaps):
                        drop = contrast((1, a), (-1, b))
                        margin = dict(zip(("margin", "margin_low", "margin_high"), np.subtract(drop[:3], 2 * gap)))
                        found.append({**origin, "reading": reading, **drop._asdict(), "training_gap": gap, **margin})
        return pd.DataFrame(found)

    def rises(self, dataset: str = "cifar10") -> pd.DataFrame:
        """From seen to unseen patches, everything else equal: one row per network, attacker, attack and width (0: mean).

        Returns:
            dataset, defense, training_seed, attacker, attack ("all": mean over LaVAN and GAP), target_bits, value, low,
            high, n, seeds; above_control, above_low, above_high: minus the rise of the strongest control.
        """
        found = []
        for network, attacker, attack in product(self.runs, (PAPERS, STRONGEST), (*ATTACKS, QUERIES, "all")):
            attacks = ATTACKS if attack == "all" else (attack,)
            cells = {}
            for each, width in product(attacks, WIDTHS):
                both = [self.trials(network, each, patches, attacker, width) for patches in (UNSEEN, SEEN)]
                if None not in both:
                    cells[each, width] = _on_the_same_images(*both)
            groups = {} if attack == "all" else {width: [both] for (_, width), both in cells.items()}
            if cells:
                groups[0] = list(cells.values())
            defense, seed = label(network)
            for width, parts in groups.items():
                new, old = (pooled([both[side] for both in parts]) for side in (0, 1))
                widths = WIDTHS if width == 0 else (width,)
                run = self.runs[network]
                floor = np.mean([self._control(run, UNSEEN, w) - self._control(run, SEEN, w) for w in widths])
                value = contrast((1, new), (-1, old))
                above = dict(zip(("above_control", "above_low", "above_high"), np.subtract(value[:3], floor)))
                found.append({"dataset": dataset, "defense": defense, "training_seed": seed, "attacker": attacker,
                              "attack": attack, "target_bits": width, **value._asdict(), **above})  # fmt: skip
        return pd.DataFrame(found)

    def training_gap(self, attacker: str, patches: str, attacks: Iterable[str], lost: bool = False) -> float:
        """Root mean square difference between two trainings of the same defense; nan if none was trained twice.

        Args:
            lost: the difference in robust accuracy instead of that in success.
        """
        gaps = []
        for network, attack, width in product(self.runs, attacks, WIDTHS):
            if f"{network}-s1" in self.runs:
                both = [self.trials(name, attack, patches, attacker, width) for name in (network, f"{network}-s1")]
                if None not in both:
                    first, second = (each.lost() if lost else each for each in both)
                    gaps.append(first.rate - second.rate)
        return float(np.sqrt(np.mean(np.square(gaps)))) if gaps else np.nan

    def _trainings(self, defense: str) -> list[str]:
        return [name for name in (defense, f"{defense}-s1") if name in self.runs]

    def _control(self, run: Patched, patches: str, width: int) -> float:
        kinds = SIMILAR if patches == UNSEEN else (patches,)
        return float(np.mean([control(run, setting_of(kind), width).rate for kind in kinds]))

    def _published(self, defense: str, patches: str, attack: str, width: int) -> float:
        key = (PUBLISHED.get(defense), patches, attack)
        return float(self.published.loc[key, str(width)]) if key in self.published.index and str(width) in self.published else np.nan


def asked(run: BlackBox, kind: str, attacker: str, width: int) -> Trials | None:
    """PatchAttack on one network at one width: whom the attacker of the module's table fools; None if it was not run."""
    access = "surrogate" if attacker == PAPERS else "own"
    if access == "own" and kind == "width":
        return None
    found = [
        (probe, hits[width])
        for (where, probe), hits in run.hits.items()
        if where == access and probe.kind(access) == kind and probe == Probe(probe.setting, probe.source, probe.seed)
        and width in hits and (access == "surrogate" or probe.source == str(width))
    ]
    if not found:
        return None
    n = min(len(hits) for _, hits in found)
    hits = torch.stack([hits[:n] for _, hits in sorted(found, key=lambda each: each[0].seed)])
    patches = (run.network, kind, width) if access == "own" else (SURROGATE, kind)
    return Trials.of(hits, run.counts(setting_of(kind), width, n), (QUERIES, *patches))


def _on_the_same_images(first: Trials, second: Trials) -> tuple[Trials, Trials]:
    """PatchAttack judges the network's own unseen patches on the first of the images only."""
    n = min(len(first.counts), len(second.counts))
    return tuple(each if len(each.counts) == n else each.only(np.arange(len(each.counts)) < n) for each in (first, second))
