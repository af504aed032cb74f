"""The tables of notebook 35: every defense under every attack, the worst case, and the checks that an attack must pass.

All numbers are counted from stored hits (`qpatch.zoo.adaptive`), nothing is attacked anew.

- *Any of several patches* that their maker tries on a network that he knows is a union image by image: no luck is in
  it, because a network without lots answers twice alike. Of a network that draws lots, the patch of each image is chosen on
  one half of the draws and judged on the other.
- *The best of several kinds* is a maximum over rates: chosen on one half of the images, judged on the other
  (`crossfit`).

A patch is chosen by its mean over the widths where the width is drawn (`RANDOM`). Intervals are over the images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from qpatch.measure.stats import wilson
from qpatch.measure.trials import Contrast, Trials, contrast, crossfit, rate_row
from qpatch.quant import WIDTHS
from qpatch.zoo.adaptive import Adaptive
from qpatch.zoo.adaptive_cells import (
    BEYOND, CONTROL, ESTIMATOR, EVERYWHERE, FEW, FREE, GRADIENT, IN_PLACE, LARGER, LONG, LOTS, MADE_AT, MATCHING, MOST,
    MOST_AT, RESTART, SEARCH, THROUGH, TRANSFER, WHITE, WHOLE, WITHIN, Cell,
)  # fmt: skip
from qpatch.zoo.attackers import PAPERS, RANDOM, inference, label
from qpatch.zoo.families import FAMILIES
from qpatch.zoo.scenarios import SURROGATE

TARGETS = (*MADE_AT, RANDOM)
BEST_TRANSFER, OTHER, STARTS = "transfer, best width", "another width", "more starts"
STORED, ASKED, WORST = "universal patches", "PatchAttack", "worst case"
ATTACKS = (
    PAPERS, BEST_TRANSFER, STORED, OTHER, FEW, WHITE, LONG, MOST, STARTS, ESTIMATOR, EVERYWHERE, LOTS, CONTROL, MATCHING,
    THROUGH, *FREE, ASKED,
)  # fmt: skip
"""Single attacks within the threat model, from the weakest knowledge to the strongest."""
PASS, FAIL, OPEN = "pass", "fail", "undecided"
ALWAYS, LITTLE = 0.99, 0.02
"""A whole image must succeed at least so often; and at most so many may be won by search alone, or by still more steps."""


def union(run: Adaptive, cells: Iterable[Cell], width: int, more: Iterable[Tensor] = ()) -> Trials:
    """An attacker who keeps, for each image, whichever of these patches works.

    Args:
        more: hits of further patches, bool (D, W, N) each.
    """
    numbers = _numbers(width)
    stack = [run.hits[cell] for cell in cells] + list(more)
    halves = [slice(None)] if not run.random else [slice(0, None, 2), slice(1, None, 2)]
    share = lambda hits, half: hits[half][:, numbers].double().mean((0, 1))  # noqa: E731
    hit, won = ([torch.stack([share(h & keep, half) for h in stack]) for half in halves] for keep in (True, run.right))
    # chosen by what wins on one half, judged on the other; without lots both are the same
    chosen = [each.argmax(0, keepdim=True) for each in won]
    pick = lambda rates: torch.stack([r.gather(0, c)[0] for r, c in zip(rates, reversed(chosen))]).mean(0)  # noqa: E731
    counts = run.right[numbers].double().mean(0)
    hit_any = pick(hit) if run.random else torch.stack([h.amax(0) for h in hit]).mean(0)
    return Trials(hit_any.numpy()[None], pick(won).numpy()[None], counts.numpy(), (run.network, "one patch per image"))


def met(run: Adaptive, attack: str, width: int) -> Trials | None:
    """What one attack achieves at a width, or at a drawn one; None where there is no such attack."""
    if attack == WORST:
        return union(run, [c for c in run.hits if c.attack in WITHIN], width, _stored(run, width))
    if attack == PAPERS:
        return union(run, [papers_cell(run.network)], width)
    if attack == STORED:
        return _best([union(run, [], width, [hits[None]]) for hits in run.universal.values()])
    if attack == ASKED:
        return union(run, [], width, [_at(run, width)]) if width in run.asked else None
    if attack == STARTS:
        cells = [] if width == RANDOM else [*run.of(WHITE, str(width)), *run.of(RESTART, str(width))]
        return union(run, cells, width) if cells else None
    if attack == OTHER:
        others = [] if width == RANDOM else [c for c in run.of(WHITE) if c.source != str(width)]
        return _best([union(run, [cell], width) for cell in others])
    cells = run.of({BEST_TRANSFER: TRANSFER}.get(attack, attack))
    if attack not in (BEST_TRANSFER, EVERYWHERE, CONTROL, MATCHING) and width != RANDOM:
        cells = [cell for cell in cells if cell.source == str(width)]
    return _best([union(run, [cell], width) for cell in cells])


def papers_cell(network: str) -> Cell:
    """Papers A and B make patches on the undefended network's float view; of an undefended network that is its own."""
    return Cell(WHITE if network in FAMILIES else TRANSFER, "32")


def asr_rows(runs: Mapping[str, Adaptive], dataset: str = "cifar10") -> pd.DataFrame:
    """Every network under every attack at every width.

    Returns:
        one row each: dataset, defense, training_seed, scope ("within", "beyond" the threat model, or "worst case"), attack,
        inference, target_bits, images, what `rate_row` gives, clean_accuracy, asr_stripes (the control: Sparse-RS's first
        query, a patch that nobody optimised; nan at a drawn width), and strongest: the highest rate of the single attacks
        within the threat model, at this network and width.
    """
    found = []
    scopes = {**dict.fromkeys(ATTACKS, "within"), **dict.fromkeys(BEYOND, "beyond"), WORST: WORST}
    for run, (attack, scope), width in product(runs.values(), scopes.items(), TARGETS):
        made = met(run, attack, width)
        if made is not None and made.n:
            clean = float(run.right[_numbers(width)].float().mean())
            origin = {**_origin(run, dataset), "scope": scope, "attack": attack, **inference(width)}
            floor = {"clean_accuracy": clean, "asr_stripes": _stripes(run, width)}
            found.append({**origin, "images": len(made.counts), **rate_row(made), **floor})
    rows = pd.DataFrame(found)
    most = rows[rows["scope"] == "within"].groupby(["defense", "training_seed", "target_bits"])["asr"].idxmax()
    return rows.assign(strongest=rows.index.isin(most))


def source_rows(runs: Mapping[str, Adaptive], dataset: str = "cifar10") -> pd.DataFrame:
    """Where a patch was made against where it is shown, LaVAN of the usual length: access, source and `rate_row`."""
    found = []
    for run in runs.values():
        for cell, width in product([*run.of(TRANSFER), *run.of(WHITE), *run.of(EVERYWHERE)], TARGETS):
            access = "transfer" if cell.attack == TRANSFER else "own"
            origin = {**_origin(run, dataset), "access": access, "source": cell.source, **inference(width)}
            found.append({**origin, **rate_row(union(run, [cell], width))})
    return pd.DataFrame(found)


def gain_rows(runs: Mapping[str, Adaptive], dataset: str = "cifar10") -> pd.DataFrame:
    """What a piece of knowledge adds: one attack's success minus that of the attack without it, image by image.

    Returns:
        one row per network, width and gain: value, low, high, n.
    """
    pairs = {
        "the other gradient estimator": (ESTIMATOR, WHITE), "mean over all widths": (EVERYWHERE, WHITE),
        "mean over the defense's noise": (LOTS, WHITE), "matching over several widths": (MATCHING, CONTROL),
        "three times the steps": (LONG, WHITE), "no gradients at all": (IN_PLACE, WHITE),
        "a place searched for": (SEARCH, IN_PLACE),
    }  # fmt: skip
    found = []
    for run, (gain, (attack, base)), width in product(runs.values(), pairs.items(), MADE_AT):
        new, old = met(run, attack, width), met(run, base, width)
        if new is not None and old is not None and new.n:
            origin = {**_origin(run, dataset), "gain": gain, "target_bits": width}
            found.append({**origin, **contrast((1, new), (-1, old))._asdict()})
    return pd.DataFrame(found).drop(columns="seeds")


def headline_rows(runs: Mapping[str, Adaptive], dataset: str = "cifar10") -> pd.DataFrame:
    """What a defense is worth: success in the papers' setting and in the worst case, beside the undefended network's.

    Returns:
        one row per network, width and reading: "papers' setting" and "worst case" (rates), "hidden" (the second minus the
        first), "protection, papers" and "protection, worst case" (the undefended network's rate minus this one's, image by
        image): value, low, high, n.
    """
    found, base = [], runs[SURROGATE]
    for run, width in product(runs.values(), TARGETS):
        papers, worst = met(run, PAPERS, width), met(run, WORST, width)
        if not worst.n:
            continue
        values = {PAPERS: _share(papers), WORST: _share(worst), "hidden": contrast((1, worst), (-1, papers))}
        if run.network != SURROGATE:
            for name, own in ((PAPERS, papers), (WORST, worst)):
                values[f"protection, {name}"] = contrast((1, met(base, name, width)), (-1, own))
        origin = {**_origin(run, dataset), **inference(width)}
        found += [{**origin, "reading": name, **value._asdict()} for name, value in values.items()]
    return pd.DataFrame(found).drop(columns="seeds")


def checks_rows(runs: Mapping[str, Adaptive], dataset: str = "cifar10") -> pd.DataFrame:
    """The standard checks of an evaluation (Carlini et al. 2019; Athalye et al. 2018), each with its numbers.

    A difference passes if it is not negative, fails if its whole interval is, and is undecided in between; likewise for
    shares and their limits. Search and gradients are compared at the same places: a search that may also move its patch
    finds more, and masks nothing.

    Returns:
        one row per network, check and width: left and right (the two rates), value, low, high, n, limit, outcome.
    """
    pairs = {
        "white-box at least transfer": (LONG, BEST_TRANSFER), "white-box at least gradient-free": (LONG, IN_PLACE),
        "usual steps at least few": (WHITE, FEW), "more steps at least usual": (LONG, WHITE),
        "larger patch at least small": (LARGER, WHITE),
    }  # fmt: skip
    found = []
    for run, width in product(runs.values(), MADE_AT):
        add = lambda check, value, outcome, left=np.nan, right=np.nan, limit=0.0: found.append({  # noqa: E731
            **_origin(run, dataset), "check": check, "target_bits": width, "left": left, "right": right,  # noqa: B023
            **value._asdict(), "limit": limit, "outcome": outcome,
        })  # fmt: skip
        if not run.right[WIDTHS.index(width)].any():
            continue
        for check, (above, below) in pairs.items():
            left, right = met(run, above, width), met(run, below, width)
            value = contrast((1, left), (-1, right))
            add(check, value, _outcome(value, 0.0), left.rate, right.rate)
        whole = met(run, WHOLE, width)
        value = _share(whole)
        add("whole image always", value, _outcome(value, ALWAYS), whole.rate, limit=ALWAYS)
        value = _descent(run, width)
        add("loss falls", value, PASS if value.low > 0 else FAIL if value.high <= 0 else OPEN)
        free = met(run, IN_PLACE, width)  # at the same places as all gradient attacks but the restarts
        slopes = union(run, [c for c in run.hits if c.attack in GRADIENT and not c.seed], width)
        alone = np.clip(free.won - slopes.won, 0, None)
        value = _share(Trials(alone, alone, free.counts, free.patches))
        add("fooled without gradients only", value, _at_most(value, LITTLE), free.rate, slopes.rate, LITTLE)
        if width in MOST_AT:
            left, right = met(run, MOST, width), met(run, LONG, width)
            value = contrast((1, left), (-1, right))
            add("steps are used up", value, _at_most(value, LITTLE), left.rate, right.rate, LITTLE)
    return pd.DataFrame(found).drop(columns="seeds")


def curve_rows(
    runs: Mapping[str, Adaptive], dataset: str = "cifar10", budgets: Sequence[int] = (1, 3, 10, 30, 100, 200)
) -> pd.DataFrame:
    """Does success still rise? Against the steps of one start, against the number of starts, and against the queries.

    Returns:
        one row per network, width, curve ("steps", "starts", "queries") and x: value, low, high, n.
    """
    found = []
    for run, width in product(runs.values(), MADE_AT):
        budget, source = run.card["budget"], str(width)
        lengths = {budget["few"]: FEW, budget["steps"]: WHITE, budget["more"]: LONG}
        lengths |= {budget["most"]: MOST} if width in MOST_AT else {}
        at = {("steps", steps): met(run, attack, width) for steps, attack in lengths.items()}
        starts = [*run.of(WHITE, source), *run.of(RESTART, source)]
        at |= {("starts", k): union(run, starts[:k], width) for k in range(1, len(starts) + 1)}
        first = run.extras[Cell(SEARCH, source)]["first"]
        for q in sorted({min(q, budget["queries"]) for q in budgets}):
            hits = ((first > 0) & (first <= q)).expand(1, len(WIDTHS), -1)
            at["queries", q] = union(run, [], width, [hits.expand(2, -1, -1) if run.random else hits])
        origin = {**_origin(run, dataset), "target_bits": width}
        found += [{**origin, "curve": curve, "x": x, **_share(made)._asdict()} for (curve, x), made in at.items() if made.n]
    return pd.DataFrame(found).drop(columns="seeds")


def _stripes(run: Adaptive, width: int) -> float:
    cell = Cell(SEARCH, str(width)) if width != RANDOM else None
    if cell not in run.extras:
        return np.nan
    counts = run.right[WIDTHS.index(width)]
    return float((run.extras[cell]["first"] == 1)[counts].float().mean())


def _descent(run: Adaptive, width: int) -> Contrast:
    """How far LaVAN's margin falls from its start to its end, in score units: mean over the images that count."""
    kept, counts = run.extras[Cell(WHITE, str(width))], run.right[WIDTHS.index(width)]
    fall = (kept["start"] - kept["end"])[counts].double().numpy()
    half = 1.96 * fall.std(ddof=1) / np.sqrt(len(fall)) if len(fall) > 1 else np.nan
    return Contrast(fall.mean(), fall.mean() - half, fall.mean() + half, len(fall), 1)


def _share(made: Trials) -> Contrast:
    row = rate_row(made)
    return Contrast(row["asr"], *wilson(min(row["asr"] * row["n"], row["n"]), row["n"]), row["n"], 1)


def _outcome(value: Contrast, limit: float) -> str:
    return PASS if value.value >= limit else FAIL if value.high < limit else OPEN


def _at_most(value: Contrast, limit: float) -> str:
    return PASS if value.value <= limit else FAIL if value.low > limit else OPEN


def _best(found: Sequence[Trials]) -> Trials | None:
    """The best of several kinds of patches, honestly chosen; the only one; or none."""
    if len(found) < 2:
        return found[0] if found else None
    return crossfit([(each,) for each in found], lambda each: each.rate)[0]


def _stored(run: Adaptive, width: int) -> list[Tensor]:
    return [*(hits[None] for hits in run.universal.values()), *([_at(run, width)] if width in run.asked else [])]


def _at(run: Adaptive, width: int) -> Tensor:
    """PatchAttack's hits, which are known at the asked width alone: bool (1, W, N)."""
    hits = torch.zeros(1, *run.right.shape, dtype=torch.bool)
    hits[0, WIDTHS.index(width)] = run.asked[width]
    return hits


def _numbers(width: int) -> list[int]:
    return list(range(len(WIDTHS))) if width == RANDOM else [WIDTHS.index(width)]


def _origin(run: Adaptive, dataset: str) -> dict:
    defense, seed = label(run.network)
    return {"dataset": dataset, "defense": defense, "training_seed": seed}
