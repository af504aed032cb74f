"""What one defense does better than another, and what its parts add: paired differences beside those of chance.

All numbers are counted from stored hits. A single training of a network is one draw of many: `training_gap` says how much
two trainings of the same defense differ, and no smaller difference between two defenses means anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import permutations, product

import numpy as np
import pandas as pd

from qpatch.measure.stats import wilson
from qpatch.measure.trials import Trials, contrast, crossfit, relative_drop
from qpatch.quant import WIDTHS
from qpatch.zoo import networks
from qpatch.zoo.attackers import ALL, ATTACKERS, INFERENCE, PAPERS, RANDOM, STRONGEST, inference, label, met, trials
from qpatch.zoo.patched import Patched
from qpatch.zoo.scenarios import ATTACKS, KINDS, MEAN, SURROGATE

LARGEST = "largest"


def drop_rows(
    runs: Mapping[str, Patched], pairs: Iterable[tuple[str, str]], attackers: Sequence[str] = ATTACKERS,
    dataset: str = "cifar10",
) -> pd.DataFrame:  # fmt: skip
    """How far success falls from one network to another, in points and relative, cell by cell and at its largest.

    The kind "largest" is the largest drop over all cells of an attacker: attacks, kinds and fixed widths. The cell is
    chosen on one half of the images and the drop measured on the other, see `crossfit`.

    Args:
        runs: networks by name.
        pairs: (from, to), names in `runs`; a positive drop says that the second network is fooled less.
        attackers: of `qpatch.zoo.attackers`.

    Returns:
        one row per pair, attacker, cell and reading ("points", "relative"): value, low, high, n, seeds; training_gap;
        and margin, margin_low, margin_high: the drop in points minus twice the gap.
    """
    found, pairs = [], list(pairs)
    for attacker in attackers:
        cells = {name: _cells(runs[name], attacker) for name in dict.fromkeys(name for pair in pairs for name in pair)}
        gaps = {(attack, kind): training_gap(runs, attacker, attack, kind) for attack, kind in product(ATTACKS, KINDS)}
        for base, other in pairs:
            both = {cell: (first, cells[other][cell]) for cell, first in cells[base].items()}
            fixed = [pair for (_, _, width), pair in both.items() if width != RANDOM]
            both["both", LARGEST, RANDOM] = crossfit(fixed, lambda first, second: first.rate - second.rate)
            for (attack, kind, width), (first, second) in both.items():
                origin = {"dataset": dataset, "from": base, "to": other, "attack": attack, "kind": kind}
                origin["attacker"] = attacker
                origin |= inference(width) if kind != LARGEST else {"inference": "fixed", "target_bits": width}
                gap = gaps.get((attack, kind), np.nan)
                points, relative = contrast((1, first), (-1, second)), relative_drop(first, second)
                margin = dict(zip(("margin", "margin_low", "margin_high"), np.subtract(points[:3], 2 * gap)))
                found.append({**origin, "reading": "points", **points._asdict(), "training_gap": gap, **margin})
                found.append({**origin, "reading": "relative", **relative._asdict()})
    return pd.DataFrame(found)


def training_gap(runs: Mapping[str, Patched], attacker: str, attack: str, kind: str) -> float:
    """What another training seed changes in the success of an attack.

    The root mean square, over the fixed widths and the networks that were trained twice, of the difference between the
    two trainings; nan if none was. Two trainings differ by more than twice this in about one case of twenty.
    """
    gaps = []
    for name, width in product(runs, WIDTHS):
        if f"{name}-s1" in runs:
            first, second = (met(runs[each], attacker, attack, kind, width) for each in (name, f"{name}-s1"))
            gaps += [first.rate - second.rate] if first is not None else []
    return float(np.sqrt(np.mean(np.square(gaps)))) if gaps else np.nan


def spread_rows(
    runs: Mapping[str, Patched], pairs: Iterable[tuple[str, str]],
    attackers: Sequence[str] = (PAPERS, ALL, STRONGEST), dataset: str = "cifar10",
) -> pd.DataFrame:  # fmt: skip
    """How uneven the widths are: success at the weakest width minus success at the strongest, for seen patches.

    Which widths these are is chosen on one half of the images and measured on the other.

    Args:
        pairs: (from, to), for which the difference of the two spreads is given as well.

    Returns:
        one row per network ("from", with an empty "to") and per pair, attacker and attack: value, low, high, n, seeds.
    """
    found, ends = [], {}
    for (name, run), attacker, attack in product(runs.items(), attackers, ATTACKS):
        at = [met(run, attacker, attack, "seen", width) for width in WIDTHS]
        weak, strong = ends[name, attacker, attack] = crossfit(list(permutations(at, 2)), lambda a, b: a.rate - b.rate)
        found.append((name, "", attacker, attack, *contrast((1, weak), (-1, strong))))
    for (base, other), attacker, attack in product(pairs, attackers, ATTACKS):
        (a, b), (c, d) = ends[base, attacker, attack], ends[other, attacker, attack]
        found.append((base, other, attacker, attack, *contrast((1, a), (-1, b), (-1, c), (1, d))))
    columns = ["from", "to", "attacker", "attack", "value", "low", "high", "n", "seeds"]
    return pd.DataFrame(found, columns=columns).assign(dataset=dataset)


def made_at_rows(run: Patched, dataset: str = "cifar10") -> pd.DataFrame:
    """Do patches that were made on all widths hold at each of them? On one network, universal patches, seen setting.

    Returns:
        one row per attack, width and comparison: value, low, high, n, seeds. Compared is "success", of patches made on
        the float view, at the attacked width ("own") and on all widths; or the gain of the last over one of the others.
    """
    found = []
    for attack, width in product(ATTACKS, WIDTHS):
        sources = {"float": "32", "own": str(width), "all": MEAN}
        at = {name: trials(run, "own", attack, "seen", source, width) for name, source in sources.items()}
        values = {(name, "success"): contrast((1, each)) for name, each in at.items()}
        values |= {("all", f"gain over {name}"): contrast((1, at["all"]), (-1, at[name])) for name in ("float", "own")}
        for (made_at, compared), value in values.items():
            origin = {"dataset": dataset, "scope": "universal", "attack": attack, "made_at": made_at}
            found.append({**origin, "compared": compared, "target_bits": width, **value._asdict()})
    return pd.DataFrame(found)


def clean_rows(runs: Mapping[str, Patched], dataset: str = "cifar10", retrain: bool = False) -> pd.DataFrame:
    """Clean accuracy at every width, beside the undefended network's ("undefended").

    From the card of a network that ships (the whole test set); else on the judged images.
    """
    def accuracy(name: str, width: int) -> tuple[float, int]:
        if dataset == "cifar10" and not retrain:
            card = networks.card(name)
            return card["clean_accuracy"][str(width)], card["test_images"]
        return float(runs[name].right[WIDTHS.index(width)].float().mean()), len(runs[name].label)

    found = []
    for name, width in product(runs, WIDTHS):
        (value, n), (defense, seed) = accuracy(name, width), label(name)
        low, high = wilson(value * n, n)
        found.append({
            "dataset": dataset, "defense": defense, "training_seed": seed, "target_bits": width, "clean_accuracy": value,
            "ci_low": low, "ci_high": high, "n": n, "undefended": accuracy(SURROGATE, width)[0],
        })  # fmt: skip
    return pd.DataFrame(found)


def _cells(run: Patched, attacker: str) -> dict[tuple[str, str, int], Trials]:
    found = {cell: met(run, attacker, *cell) for cell in product(ATTACKS, KINDS, INFERENCE)}
    return {cell: made for cell, made in found.items() if made is not None}
