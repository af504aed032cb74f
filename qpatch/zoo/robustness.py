"""The tables of notebooks 22 and 23: which attacker gets how far against which defense, seen and unseen.

The attackers are those of `qpatch.zoo.attackers`; every number is counted from stored hits (`qpatch.zoo.patched`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import pandas as pd

from qpatch.measure.trials import Trials, contrast, pooled, rate_row, ratio_difference
from qpatch.quant import WIDTHS
from qpatch.zoo.attackers import ALL, ATTACKERS, INFERENCE, PAPERS, RANDOM, inference, label, met, trials
from qpatch.zoo.patched import CONTROLS, Patched
from qpatch.zoo.scenarios import ATTACKS, KINDS, SETTINGS, SURROGATE

READINGS = ("rise", "rise of what is left", "rise beyond the float view's")


def asr_rows(runs: Mapping[str, Patched], attackers: Sequence[str] = ATTACKERS, dataset: str = "cifar10") -> pd.DataFrame:
    """Every attacker and every kind on every network at every width: `rate_row` with its origin and its controls."""
    found = []
    for run, attacker, attack, kind, width in product(runs.values(), attackers, ATTACKS, KINDS, INFERENCE):
        made = met(run, attacker, attack, kind, width)
        if made is not None:
            origin = _origin(run, dataset) | {"attack": attack, "kind": kind, "attacker": attacker}
            found.append({**origin, **inference(width), "images": len(run.label), **rate_row(made), **_floor(run, kind, width)})
    table = pd.DataFrame(found)
    table.loc[[SETTINGS["seen" if kind == "width" else kind].target is not None for kind in table["kind"]], "error_rate"] = np.nan
    return table


def access_rows(runs: Mapping[str, Patched], dataset: str = "cifar10", setting: str = "seen") -> pd.DataFrame:
    """Where the patch was made against where it is shown: every source on every width, for patches of one setting."""
    found = []
    for run, attack in product(runs.values(), ATTACKS):
        for access, source in _sources(run, attack, setting):
            for width in INFERENCE:
                row = rate_row(trials(run, access, attack, setting, source, width))
                found.append({**_origin(run, dataset), "attack": attack, "access": access, "source": source, **inference(width), **row})
    return pd.DataFrame(found)


def unseen_rows(runs: Mapping[str, Patched], dataset: str = "cifar10") -> pd.DataFrame:
    """What unseen patches gain over seen ones, everything else equal, in three readings.

    - rise: success of the unseen kind minus that of seen patches, of the same access and source. Targeted kinds count
      another event (going to the target), so their rise is not one of like with like.
    - rise of what is left: the same for success divided by the undefended network's under the same kind of patch. It
      takes out what a larger patch gains on any network, and the other event of targeted kinds.
    - rise beyond the float view's: the rise at this width minus the rise at 32 bits, where nothing is quantized. If
      quantization were the cause of a rise, this would be the rise itself.
    """
    found = []
    for run, attack, kind, (access, attacker) in product(
        runs.values(), ATTACKS, KINDS[1:], (("surrogate", PAPERS), ("own", ALL))
    ):
        pair = lambda one, width: _pair(one, access, attacker, attack, kind, width)  # noqa: E731, B023
        for width in INFERENCE:
            new, old = pair(run, width)
            values = {"rise": contrast((1, new), (-1, old))}
            if run.network != SURROGATE:
                base = pair(runs[SURROGATE], width)
                values["rise of what is left"] = ratio_difference((new, base[0]), (old, base[1]))
            if width not in (32, RANDOM):
                at_float = pair(run, 32)
                values["rise beyond the float view's"] = contrast((1, new), (-1, old), (-1, at_float[0]), (1, at_float[1]))
            origin = _origin(run, dataset) | {"attack": attack, "kind": kind, "access": access, **inference(width)}
            found += [{**origin, "reading": name, **value._asdict()} for name, value in values.items()]
    return pd.DataFrame(found)


def _sources(run: Patched, attack: str, setting: str) -> list[tuple[str, str]]:
    return list(dict.fromkeys((access, shot.source) for access, shot in run.hits if (shot.attack, shot.setting) == (attack, setting)))


def _pair(run: Patched, access: str, attacker: str, attack: str, kind: str, width: int) -> tuple[Trials, Trials]:
    """Unseen patches of a kind, and the seen ones that differ from them in nothing else."""
    if access == "own" and kind == "width":
        others = [trials(run, "own", attack, "seen", str(source), width) for source in WIDTHS[1:]]
        return pooled(others), trials(run, "own", attack, "seen", "32", width)
    return met(run, attacker, attack, kind, width), met(run, attacker, attack, "seen", width)


def _floor(run: Patched, kind: str, width: int) -> dict[str, float]:
    """Success of patches that nobody optimised, and the clean accuracy."""
    numbers = range(len(WIDTHS)) if width == RANDOM else [WIDTHS.index(width)]
    setting = "seen" if kind == "width" else kind
    counts = run.counts(setting)[list(numbers)]
    floor = {}
    for name in CONTROLS:
        hit = run.controls[setting, name][list(numbers)]
        floor[f"asr_{name}"] = int((hit & counts).sum()) / int(counts.sum()) if counts.any() else np.nan
    return {"clean_accuracy": float(run.right[list(numbers)].float().mean()), **floor}


def _origin(run: Patched, dataset: str) -> dict:
    defense, seed = label(run.network)
    return {"dataset": dataset, "defense": defense, "training_seed": seed}
