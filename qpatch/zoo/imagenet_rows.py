"""The stored study of ImageNet size as tables: accuracy, success with controls, and what ImageNet claims would need."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch

from qpatch.measure.stats import wilson
from qpatch.zoo.imagenet import BITS, FOLDS, MAIN, View, short, views
from qpatch.zoo.imagenet_runs import CONTROLS, Made, Study


def accuracy_rows(study: Study) -> pd.DataFrame:
    """Top-1 of every network, policy and width on all pictures.

    Returns:
        one row each: network, policy, bits, n, value, low, high (Wilson). The float network stands under each policy.
    """
    rows = []
    for view in views(study.names):
        right = torch.cat([study.right[fold, view] for fold in FOLDS])
        n, hits = len(right), int(right.sum())
        low, high = wilson(hits, n)
        row = {"network": short(view.network), "policy": view.policy, "bits": view.bits, "n": n, "value": hits / n,
               "low": low, "high": high}  # fmt: skip
        rows.append(row)
    floats = [row for row in rows if row["bits"] == 32 and row["network"] == short(study.names[0])]
    others = dict.fromkeys(row["policy"] for row in rows if row["policy"] != MAIN)
    rows += [{**row, "policy": policy} for row in floats for policy in others]
    return pd.DataFrame(rows)


def success_rows(study: Study, dataset: str) -> pd.DataFrame:
    """The success of every patch on every view.

    Returns:
        one row per patch (or set of patches, one for each image) and view: dataset, attack, scope, source, source_bits,
        target, policy, target_bits, seed (the fold), n, asr, ci_low, ci_high (Wilson), error_rate, clean_accuracy, and
        the controls on the same pictures, asr_noise, asr_grey, asr_photo.
    """
    return pd.DataFrame([_row(study, dataset, made, view) for made, view in study.hits])


def missing_rows(claims: Sequence) -> pd.DataFrame:
    """What the papers claim of defended ImageNet networks, and on how many photographs we could judge one: none.

    Args:
        claims: entries of the ledger (`qpatch.report.claims.load`).

    Returns:
        one row per claim: id, statement, published, setting, value (defended ImageNet networks at hand), n (photographs
        that one was judged on).
    """
    what = {"id": "id", "statement": "statement", "published": "number", "setting": "setting"}
    rows = [{column: getattr(claim, name) for column, name in what.items()} for claim in claims]
    return pd.DataFrame(rows).assign(value=0, n=0)


def _row(study: Study, dataset: str, made: Made, view: View) -> dict:
    hits = study.hits[made, view]
    right = study.right[made.fold, view][: len(hits)]
    n, won = int(right.sum()), int((hits & right).sum())
    low, high = wilson(won, n)
    rate = lambda wrong: int((wrong & right).sum()) / n if n else float("nan")  # noqa: E731
    floors = {f"asr_{name}": rate(study.controls[made.fold, name, view][: len(hits)]) for name in CONTROLS}
    return {
        "dataset": dataset, "attack": made.attack, "scope": made.scope, "source": short(made.network),
        "source_bits": made.bits, "target": short(view.network), "policy": view.policy, "target_bits": view.bits,
        "seed": made.fold, "n": n, "asr": rate(hits), "ci_low": low, "ci_high": high,
        "error_rate": float(hits.float().mean()), "clean_accuracy": float(right.float().mean()), **floors,
    }  # fmt: skip
