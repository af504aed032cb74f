"""From per-image results of one attack run to the rows of the attack table: one per network that was shown the result."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch

from qpatch.errors import InputError
from qpatch.measure.distortion import NORMS
from qpatch.measure.stats import median_ratio, wilson
from qpatch.measure.success import success_of

PRECISIONS = ("float", "int16", "int8")


def attack_rows(frame: pd.DataFrame, made_on: str, precisions: Sequence[str] = PRECISIONS) -> list[dict]:
    """What one run does to each network.

    Args:
        frame: per-image results, see `qpatch.zoo.load_attacked`.
        made_on: the network it was made on.
        precisions: the networks that it was shown to.

    Returns:
        Per network: precision; how ("own" if it was made there, else "transferred"); images; the columns of `Success`
        (n, asr, ci_low, ci_high, error_rate, clean_accuracy); accuracy under attack over all images with acc_low and
        acc_high, paper C's measure; asr_noise, of the same noise shuffled; mean and max over all images of l0, l1, l2
        and linf as received, as in paper C, and `…_fooled`, the mean over the images that count as a success; kept, the
        mean part of the noise that survives input rounding; queries per image.

    Raises:
        InputError: no rows.
    """
    if frame.empty:
        raise InputError("the run has no images.")
    labels, rows = torch.tensor(frame["label"].to_numpy()), []
    for precision in precisions:
        clean, adv, noise = (torch.tensor(frame[f"{kind}_{precision}"].to_numpy()) for kind in ("clean", "adv", "noise"))
        success, right = success_of(clean, adv, labels), int((adv == labels).sum())
        fooled = fooled_images(frame, precision)
        low, high = wilson(right, len(frame))
        row = {"precision": precision, "how": "own" if precision == made_on else "transferred", "images": len(frame),
               **vars(success), "accuracy": right / len(frame), "acc_low": low, "acc_high": high,
               "asr_noise": success_of(clean, noise, labels).asr}  # fmt: skip
        for norm in NORMS:
            sizes = frame[f"{norm}_{precision}"]
            row |= {f"{norm}_mean": sizes.mean(), f"{norm}_max": sizes.max(), f"{norm}_fooled": sizes[fooled].mean()}
        row["kept"] = 1.0 if precision == "float" else frame[f"kept_{precision}"].mean()
        rows.append(row | {"queries": frame["queries"].mean()})
    return rows


def fooled_images(frame: pd.DataFrame, precision: str) -> pd.Series:
    """Which images the network gets right when clean and wrong under attack."""
    label = frame["label"]
    return (frame[f"clean_{precision}"] == label) & (frame[f"adv_{precision}"] != label)


def distance_row(
    frame: pd.DataFrame, precision: str, reference: pd.DataFrame, against: str, norm: str, seed: int = 0
) -> dict:
    """How much farther an attack has to go on one network than on another, both attacked themselves, image by image.

    Args:
        frame, reference: the runs made on `precision` and on `against`, on the same images.
        norm: "l0", "l1", "l2" or "linf", as received by each network.
        seed: of the bootstrap.

    Returns:
        precision, against, norm, n (images that both runs fool their network on), and the median of the ratios of the
        distances with its interval, see `median_ratio`.
    """
    there, here = (torch.tensor(run[f"{norm}_{name}"].where(fooled_images(run, name)).to_numpy(float))
                   for run, name in ((frame, precision), (reference, against)))  # fmt: skip
    n = min(len(there), len(here))
    return {"precision": precision, "against": against, "norm": norm, **median_ratio(there[:n], here[:n], seed)}
