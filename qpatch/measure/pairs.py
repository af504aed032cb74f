"""Does a property of pairs of networks explain how far patches transfer between them? Rank correlations that know that
pairs share networks.

Twenty pairs of five networks are not twenty independent observations. So intervals come from leaving out whole
*networks* (the jackknife for statistics of pairs, Arvesen 1969), and the chance level from *exchanged names* (the
quadratic assignment test, Hubert and Schultz 1976): the outcome stays, the networks behind the property are permuted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import rankdata
from scipy.stats import t as student

from qpatch.errors import InputError, one_of

OUTCOMES = ("success", "relative", "fixed ends")
_SWEEPS = 12  # of taking out row and column means in turn; more change nothing in the third digit


def transfer_pairs(rows: pd.DataFrame, controls: Sequence[str], usable: float = 0.5) -> pd.DataFrame:
    """Pairs of different networks with what a patch of the one does to the other.

    Args:
        rows: group, source, target (names of networks), seed, asr, clean_accuracy and the columns `controls`; every
            network of a group is a source and a target, so that its own patch is among the rows.
        controls: columns whose largest is taken off the success.
        usable: networks that are right less often when clean are left out, as source and as target.

    Returns:
        One row per ordered pair of a group, means over the seeds: group, source, target, success (asr minus the
        strongest control), own (the same for the target's own patch: its weakness), home (for the source on itself),
        relative (success / own).

    Raises:
        InputError: a group without its targets' own patches, or no pair left.
    """
    rows = rows.assign(success=rows["asr"] - rows[list(controls)].max(axis=1))
    means = rows.groupby(["group", "source", "target"], sort=False)[["success", "clean_accuracy"]].mean().reset_index()
    weak = set(means.loc[means["clean_accuracy"] < usable, "target"])
    means = means[~means["source"].isin(weak) & ~means["target"].isin(weak)]
    self_made = means[means["source"] == means["target"]].set_index(["group", "source"])["success"]
    pairs = means[means["source"] != means["target"]].reset_index(drop=True)
    if pairs.empty:
        raise InputError("there is no pair of two usable networks; take more widths.")
    for column, end in (("own", "target"), ("home", "source")):
        index = pd.MultiIndex.from_frame(pairs[["group", end]])
        if not index.isin(self_made.index).all():
            raise InputError("a network has no patch of its own among the rows; each network of a group needs one.")
        pairs[column] = self_made.loc[index].to_numpy()
    pairs["relative"] = pairs["success"] / pairs["own"].clip(lower=0.01)  # a patch that fails at home divides nothing
    return pairs[["group", "source", "target", "success", "own", "home", "relative"]]


def of_end(values: Mapping[str, float], end: str) -> pd.DataFrame:
    """A property of single networks as a square table of pairs, by its "source" or its "target"."""
    names, row = list(values), np.tile(list(values.values()), (len(values), 1))
    by_target = one_of(end, ("source", "target"), "end") == "target"
    return pd.DataFrame(row if by_target else row.T, names, names, dtype=float)


def explained_rows(
    pairs: pd.DataFrame, measurements: Mapping[str, pd.DataFrame], *, draws: int = 400, seed: int = 0,
    given: str | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Spearman's rank correlation between each measurement and the transfer of a patch, over pairs of networks.

    Three outcomes: "success"; "relative", success over that of the target's own patch, without the target's own
    weakness; and "fixed ends", ranks of success from which the means of each source and each target within its group
    are taken, so that only what belongs to the *pair* is left.

    Args:
        pairs: from `transfer_pairs`.
        measurements: name → square table, source down and target across, of all networks in `pairs`.
        draws: permutations for the chance level. seed: of them.
        given: a measurement that is held fixed: all correlations become partial ones, and its own is nan.

    Returns:
        One row per measurement and outcome: measurement, outcome, value, low, high (95 % by Student's t on Fisher's
        scale, networks left out one by one), chance_low, chance_high (middle 95 % with exchanged names), margin,
        margin_low, margin_high (the same minus chance_high), n (pairs), networks. A measurement without differences
        between pairs has no value: nan.

    Raises:
        InputError: a table that lacks a network, or holds nan between two networks; fewer than four networks.
        ParameterError: `given` is not among the measurements.
    """
    fixed = None if given is None else list(measurements).index(one_of(given, measurements, "fixed measurement"))
    names = sorted({*pairs["source"], *pairs["target"]})
    if len(names) < 4:
        raise InputError(f"pairs of {len(names)} networks explain nothing; take at least four networks.")
    position = {name: i for i, name in enumerate(names)}
    source, target = (pairs[end].map(position).to_numpy() for end in ("source", "target"))
    tables = np.stack([_table(name, table, names) for name, table in measurements.items()])
    outcome = pairs[["success", "relative", "success"]].to_numpy(float)
    blocks = [pd.factorize(pairs["group"] + "\n" + pairs[end])[0] for end in ("source", "target")]
    measured = tables[:, source, target].T
    value = _correlations(measured, outcome, blocks, fixed)
    remaining = [(source != i) & (target != i) for i in range(len(names))]
    left_out = [_correlations(measured[keep], outcome[keep], [b[keep] for b in blocks], fixed) for keep in remaining]
    low, high = _jackknife(value, np.stack(left_out))
    rng, exchanged = np.random.default_rng(seed), []
    for _ in range(draws):
        other = rng.permutation(len(names))
        exchanged.append(_correlations(tables[:, other[source], other[target]].T, outcome, blocks, fixed))
    chance_low, chance_high = np.quantile(exchanged, [0.025, 0.975], axis=0) + 0 * value  # unknown where value is
    return pd.DataFrame(
        {"measurement": name, "outcome": kind, "value": value[at], "low": low[at], "high": high[at],
         "chance_low": chance_low[at], "chance_high": chance_high[at], "margin": value[at] - chance_high[at],
         "margin_low": low[at] - chance_high[at], "margin_high": high[at] - chance_high[at], "n": len(pairs),
         "networks": len(names)}
        for i, name in enumerate(measurements) for j, kind in enumerate(OUTCOMES) for at in [(i, j)]
    )  # fmt: skip


def explain(
    pairs: pd.DataFrame, question: str, tables: Mapping[str, Mapping | pd.DataFrame], *, draws: int = 400,
    seed: int = 0, given: str | None = None,
) -> pd.DataFrame:  # fmt: skip
    """`explained_rows` for every kind of patch in the column `kind` of `pairs`, with the columns question and attack.

    Args:
        tables: name → square table; or kind → such a mapping, where the measurements differ between kinds.
        given: as in `explained_rows`.
    """
    found = [
        explained_rows(part, tables.get(kind, tables), draws=draws, seed=seed, given=given)
        .assign(question=question, attack=kind)
        for kind, part in pairs.groupby("kind", sort=False)
    ]
    return pd.concat(found, ignore_index=True)


def _table(name: str, table: pd.DataFrame, names: list[str]) -> np.ndarray:
    if missing := [n for n in names if n not in table.index or n not in table.columns]:
        raise InputError(f"the measurement {name!r} lacks {', '.join(missing)}.")
    values = table.loc[names, names].to_numpy(float)
    if np.isnan(values[~np.eye(len(names), dtype=bool)]).any():
        raise InputError(f"the measurement {name!r} is not known for all pairs of networks.")
    return values


def _correlations(
    properties: np.ndarray, outcome: np.ndarray, blocks: list[np.ndarray], fixed: int | None = None
) -> np.ndarray:
    """(pairs, K) and (pairs, 3) → (K, 3); the last outcome with ranks freed from the means of the blocks.

    Of all ranks, what is linear in those of the property `fixed` is taken out.
    """
    both, k = rankdata(np.column_stack([properties, outcome]), axis=0), properties.shape[1]
    members = [np.equal.outer(np.unique(block), block).astype(float) for block in blocks]  # (blocks, pairs)
    freed = both.copy()
    for member in members * _SWEEPS:
        freed -= member.T @ ((member @ freed) / member.sum(axis=1, keepdims=True))
    if fixed is not None:
        both, freed = (_without(ranks, fixed) for ranks in (both, freed))
    return np.hstack([_correlate(both[:, :k], both[:, k : k + 2]), _correlate(freed[:, :k], freed[:, k + 2 :])])


def _without(ranks: np.ndarray, fixed: int) -> np.ndarray:
    """Residuals of the regression of each column on one of them."""
    ranks = ranks - ranks.mean(axis=0)
    own = ranks[:, fixed]
    return ranks - np.outer(own, own @ ranks) / max(own @ own, 1e-12)


def _correlate(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pearson's correlation of every column with every column; nan where a column does not vary."""
    a, b = (x - x.mean(axis=0) for x in (first, second))
    spread = [x.std(axis=0) for x in (a, b)]
    known = [np.where(s > 1e-2, s, np.nan) for s in spread]  # ranks differ by a half at least, or by rounding alone
    return (a / known[0]).T @ (b / known[1]) / len(a)


def _jackknife(value: np.ndarray, left_out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Limits of a correlation from its values without one network at a time, (networks, ...)."""
    n = len(left_out)
    scale = np.arctanh(np.clip(left_out, -0.999, 0.999))
    error = np.sqrt((n - 1) / n * ((scale - scale.mean(axis=0)) ** 2).sum(axis=0))
    reach = student.ppf(0.975, n - 1) * error
    middle = np.arctanh(np.clip(value, -0.999, 0.999))
    return np.minimum(np.tanh(middle - reach), value), np.maximum(np.tanh(middle + reach), value)
