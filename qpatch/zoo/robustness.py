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
from qpatch.zoo.attackers import ALL, ATTACKERS, INFERENCE, PAPERS, RANDOM, control, inference, label, met, trials
from qpatch.zoo.patched import CONTROLS, Patched
from qpatch.zoo.scenarios import ATTACKS, KINDS, SETTINGS, SURROGATE

READINGS = ("rise", "rise above the controls", "rise of what is left", "rise beyond the float view's")


def asr_rows(
    runs: Mapping[str, Patched], attackers: Sequence[str] = ATTACKERS, dataset: str = "cifar10"
) -> pd.DataFrame:
    """Every attacker and every kind of patch on every network at every width.

    Returns:
        one row each: dataset, defense, training_seed, attack, kind, attacker, inference, target_bits, images, what
        `rate_row` gives (error_rate of untargeted kinds only), clean_accuracy, asr_noise, asr_grey, asr_photo.
    """
    found = []
    for run, attacker, attack, kind, width in product(runs.values(), attackers, ATTACKS, KINDS, INFERENCE):
        made = met(run, attacker, attack, kind, width)
        if made is None:
            continue
        row = rate_row(made)
        if SETTINGS[setting_of(kind)].target is not None:
            row["error_rate"] = np.nan
        origin = _origin(run, dataset) | {"attack": attack, "kind": kind, "attacker": attacker, **inference(width)}
        found.append({**origin, "images": len(run.label), **row, **_floor(run, setting_of(kind), width)})
    return pd.DataFrame(found)


def access_rows(runs: Mapping[str, Patched], dataset: str = "cifar10", setting: str = "seen") -> pd.DataFrame:
    """Where the patch was made against where it is shown: every source on every width, for patches of one setting."""
    found = []
    for run, attack in product(runs.values(), ATTACKS):
        sources = {(access, s.source) for access, s in run.hits if (s.attack, s.setting) == (attack, setting)}
        order = lambda each: (each[0], not each[1].isdigit(), -int(each[1]) if each[1].isdigit() else 0)  # noqa: E731
        for (access, source), width in product(sorted(sources, key=order), INFERENCE):
            row = rate_row(trials(run, access, attack, setting, source, width))
            origin = _origin(run, dataset) | {"attack": attack, "access": access, "source": source}
            found.append({**origin, **inference(width), **row})
    return pd.DataFrame(found)


def unseen_rows(runs: Mapping[str, Patched], dataset: str = "cifar10") -> pd.DataFrame:
    """What unseen patches gain over seen ones of the same access and source, everything else equal, in four readings.

    - rise: success of the unseen kind minus that of seen patches. Targeted kinds count another event (going to the
      target), so their rise is not one of like with like.
    - rise above the controls: minus what the strongest control gains. A larger patch, or one in the middle, hides the
      object without any attack.
    - rise of what is left: success divided by the undefended network's under the same kind, unseen minus seen. It takes
      out what an attack gains on any network, and the other event of targeted kinds.
    - rise beyond the float view's: the rise at this width minus the rise at 32 bits, where nothing is quantized. If
      quantization were the only cause of a rise, this would be the rise itself.

    Returns:
        one row each: dataset, defense, training_seed, attack, kind, access, inference, target_bits, reading, value, low,
        high, n, seeds.
    """
    found = []
    sides = (("surrogate", PAPERS), ("own", ALL))
    for run, attack, kind, (access, attacker), width in product(runs.values(), ATTACKS, KINDS[1:], sides, INFERENCE):
        case = access, attacker, attack, kind
        new, old = _pair(run, *case, width)
        cover, seen_cover = control(run, setting_of(kind), width), control(run, "seen", width)
        values = {"rise": contrast((1, new), (-1, old))}
        values["rise above the controls"] = contrast((1, new), (-1, old), (-1, cover), (1, seen_cover))
        if run.network != SURROGATE:
            base, seen_base = _pair(runs[SURROGATE], *case, width)
            values["rise of what is left"] = ratio_difference((new, base), (old, seen_base))
        if width not in (32, RANDOM):
            at_float, seen_at_float = _pair(run, *case, 32)
            values["rise beyond the float view's"] = contrast((1, new), (-1, old), (-1, at_float), (1, seen_at_float))
        origin = _origin(run, dataset) | {"attack": attack, "kind": kind, "access": access, **inference(width)}
        found += [{**origin, "reading": name, **value._asdict()} for name, value in values.items()]
    return pd.DataFrame(found)


def setting_of(kind: str) -> str:
    """The setting of a kind of patch: "width" differs from "seen" only in where the patch was made."""
    return "seen" if kind == "width" else kind


def _pair(run: Patched, access: str, attacker: str, attack: str, kind: str, width: int) -> tuple[Trials, Trials]:
    """Unseen patches of a kind, and the seen ones that differ from them in nothing else."""
    if access == "own" and kind == "width":
        others = [trials(run, "own", attack, "seen", str(source), width) for source in WIDTHS[1:]]
        return pooled(others), trials(run, "own", attack, "seen", "32", width)
    return met(run, attacker, attack, kind, width), met(run, attacker, attack, "seen", width)


def _floor(run: Patched, setting: str, width: int) -> dict[str, float]:
    """The clean accuracy, and the success of patches that nobody optimised."""
    numbers = list(range(len(WIDTHS))) if width == RANDOM else [WIDTHS.index(width)]
    counts, floor = run.counts(setting)[numbers], {"clean_accuracy": float(run.right[numbers].float().mean())}
    for name in CONTROLS:
        hits = int((run.controls[setting, name][numbers] & counts).sum())
        floor[f"asr_{name}"] = hits / int(counts.sum()) if counts.any() else np.nan
    return floor


def _origin(run: Patched, dataset: str) -> dict:
    defense, seed = label(run.network)
    return {"dataset": dataset, "defense": defense, "training_seed": seed}
