"""The zoo's undefended networks as nodes of one graph, and the success of patches between every two of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
from torch import Tensor, nn

from qpatch.attacks import make_mask
from qpatch.errors import InputError
from qpatch.measure import Look, specific_rows, total_variation, transfer_pairs, transfer_rows, visibility
from qpatch.zoo.evaluation import CONTROLS, Evaluation
from qpatch.zoo.families import INDEPENDENT_FLOATS, members
from qpatch.zoo.networks import load
from qpatch.zoo.patches import PatchEntry, load_patch, load_specific

KINDS = {"LaVAN, universal": ("LaVAN", "universal"), "GAP, universal": ("GAP", "universal"),
         "LaVAN, image-specific": ("LaVAN", "image-specific")}  # fmt: skip
"""Kinds of patches that exist for every source width: name → attack and scope."""

FLOATS = "independent floats"  # the group of float networks of several seeds


def node(training: str, bits: int) -> str:
    """The name of a family's network at one width; the families that start from the same float network share it."""
    if bits == 32 and training != "joint":
        return "float"
    return f"{training} {'float' if bits == 32 else f'{bits}-bit'}"


def nodes(evaluation: Evaluation, trainings: Iterable[str], floats: int = 4) -> dict[str, nn.Module]:
    """Every network once: the families' views by name, and `floats` float networks of other seeds."""
    found = {node(training, bits): view for training in trainings for bits, view in evaluation.views(training).items()}
    others = {name: load(name, evaluation.dataset, retrain=evaluation.retrain).at(32)
              for name in INDEPENDENT_FLOATS[:floats]}  # fmt: skip
    return found | others


def origins(trainings: Iterable[str], bits: Iterable[int], floats: int = 4) -> dict[str, tuple[str, int]]:
    """Node → the zoo network and the width at which its patches are made."""
    found = {node(training, width): (name, width)
             for training in trainings for width, name in members(training, bits).items()}  # fmt: skip
    return found | {name: (name, 32) for name in INDEPENDENT_FLOATS[:floats]}


def balanced_part(evaluation: Evaluation, n: int) -> Tensor:
    """Indices of `n` images of the evaluation subset, with the same number of each class as far as that goes."""
    same = evaluation.labels[:, None] == evaluation.labels[None]
    nth = same.tril(-1).sum(dim=1)  # how many of its class stand before it
    return nth.argsort(stable=True)[:n].sort().values


def family_rows(evaluation: Evaluation, trainings: Sequence[str], stored: Path) -> pd.DataFrame:
    """Success between the widths of each family, for every kind of patch: from a stored table, or measured now.

    Args:
        evaluation: its widths and seeds are those that are wanted.
        trainings: families.
        stored: the table transfer_matrix.csv of notebook 20; measured anew if it is not there, or if it is of other
            data or lacks one of these widths, families or seeds.

    Returns:
        The columns of `qpatch.measure.transfer_rows`, with kind, group, source and target.
    """
    wanted = _wanted(pd.read_csv(stored), evaluation, trainings) if stored.exists() else pd.DataFrame()
    widths = len(evaluation.bits) ** 2
    if len(wanted) != len(trainings) * widths * (2 * evaluation.seeds + 1):
        wanted = pd.concat(
            (evaluation.universal if scope == "universal" else evaluation.specific)(training, attack)
            for training in trainings for attack, scope in KINDS.values()
        )  # fmt: skip
    kinds = {pair: kind for kind, pair in KINDS.items()}
    return wanted.assign(
        kind=[kinds[pair] for pair in zip(wanted["attack"], wanted["scope"])],
        group=wanted["training"],
        source=[node(training, bits) for training, bits in zip(wanted["training"], wanted["source_bits"])],
        target=[node(training, bits) for training, bits in zip(wanted["training"], wanted["target_bits"])],
    )


def _wanted(rows: pd.DataFrame, evaluation: Evaluation, trainings: Sequence[str]) -> pd.DataFrame:
    kinds = pd.MultiIndex.from_tuples(KINDS.values())
    return rows[
        (rows["dataset"] == evaluation.dataset)
        & rows["training"].isin(trainings)
        & rows["source_bits"].isin(evaluation.bits)
        & rows["target_bits"].isin(evaluation.bits)
        & (rows["seed"] < evaluation.seeds)
        & pd.MultiIndex.from_frame(rows[["attack", "scope"]]).isin(kinds)
    ]


def float_rows(evaluation: Evaluation, floats: int, n: int) -> pd.DataFrame:
    """The same between independently trained float networks, on `n` images: transfer without any quantization."""
    if floats < 1:
        raise InputError("independent floats need at least one network besides the float one.")
    names = ["float", *INDEPENDENT_FLOATS[:floats]]
    options = {"dataset": evaluation.dataset, "retrain": evaluation.retrain}
    views = {name: load(name, **options).at(32) for name in names}
    chosen = balanced_part(evaluation, n)
    images, labels, places = evaluation.images[chosen], evaluation.labels[chosen], evaluation.places()[chosen]
    tables = []
    for kind, (attack, scope) in KINDS.items():
        if scope == "universal":
            patches = {(name, seed): load_patch(PatchEntry(name, 32, attack, seed), **options)
                       for name in names for seed in range(evaluation.seeds)}  # fmt: skip
            rows = transfer_rows(views, patches, images, labels, places, photos=evaluation.photos)
        else:
            sheets = {(name, 0): load_specific(PatchEntry(name, 32, attack, 0, scope), **options) for name in names}
            sheets = {key: (pixels[chosen], at[chosen]) for key, (pixels, at) in sheets.items()}
            rows = specific_rows(views, sheets, make_mask("square", 6), images, labels, photos=evaluation.photos)
        tables.append(rows.assign(kind=kind, group=FLOATS, source=rows["source_bits"], target=rows["target_bits"]))
    return pd.concat(tables, ignore_index=True)


def known_pairs(
    evaluation: Evaluation, trainings: Sequence[str], floats: int, n: int, stored: Path
) -> pd.DataFrame:
    """Every pair of usable networks and the success of patches between them, kind by kind: `measure.transfer_pairs`.

    Args:
        trainings: families. floats, n: as in `float_rows`.
        stored: the table pairs.csv of notebook 21; all is measured anew if it is not there, is of other data, or lacks
            one of these families.
    """
    if stored.exists():
        table = pd.read_csv(stored)
        names = set(origins(trainings, evaluation.bits, floats))
        table = table[(table["dataset"] == evaluation.dataset) & table[["source", "target"]].isin(names).all(axis=1)]
        if {*trainings, FLOATS} <= set(table["group"]):
            return table.reset_index(drop=True)
    matrix = stored.parents[1] / "20_patch_transfer" / "transfer_matrix.csv"
    rows = pd.concat([family_rows(evaluation, trainings, matrix), float_rows(evaluation, floats, n)])
    parts = [transfer_pairs(part, CONTROLS).assign(kind=kind) for kind, part in rows.groupby("kind", sort=False)]
    return pd.concat(parts, ignore_index=True)


def source_visibility(
    evaluation: Evaluation, trainings: Sequence[str], floats: int, kind: str, n: int = 100
) -> pd.DataFrame:
    """How visible the patches of each source are: colour and structure as in `qpatch.measure.visibility`, variation.

    Returns:
        One row per node, means over seeds and `n` images: colour, structure, variation.
    """
    attack, scope = KINDS[kind]
    chosen = balanced_part(evaluation, n)
    images, options = evaluation.images[chosen], {"dataset": evaluation.dataset, "retrain": evaluation.retrain}
    plain, mask, rows = Look("contrast", 1.0), make_mask("square", 6), {}
    for name, (network, bits) in origins(trainings, evaluation.bits, floats).items():
        if scope == "universal":
            entries = [PatchEntry(network, bits, attack, seed) for seed in range(evaluation.seeds)]
            sheets = [(load_patch(entry, **options).pixels, evaluation.places()[chosen]) for entry in entries]
        else:
            pixels, at = load_specific(PatchEntry(network, bits, attack, 0, scope), **options)
            sheets = [(pixels[chosen], at[chosen])]
        seen = [visibility(images, plain.shown(images, pixels, mask, at)).mean().to_dict()
                | {"variation": total_variation(pixels)} for pixels, at in sheets]  # fmt: skip
        rows[name] = pd.DataFrame(seen).mean()
    return pd.DataFrame(rows).T
