"""Jedi of the zoo: settings chosen on training images, clean statistics and the trained autoencoder.

`python -m qpatch.zoo.jedi` makes what ships.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import product

import pandas as pd
import torch
from torch import Tensor

from qpatch import data, store
from qpatch.attacks import apply_patch, sample_places
from qpatch.defenses import jedi as method
from qpatch.defenses import mask_completion as completion
from qpatch.defenses.jedi import Jedi
from qpatch.defenses.mask_completion import MaskCompletion, train_completion
from qpatch.measure.success import accuracy
from qpatch.training import load_network_tensors
from qpatch.zoo import networks
from qpatch.zoo.patches import ATTACKS, PatchEntry, load_patch

TUNED = {"windows": (3, 5), "levels": 6, "tolerance": 1.75, "rule": "clean"}
"""The first row of `jedi_search`. Equation 1 of the paper (rule "image") at its best lies within its error."""

CLEAN_IMAGES = 2_000  # training images for Jedi's statistics
SEARCHED = {
    "windows": ((3,), (5,), (3, 5)), "levels": (3, 4, 6, 8, 16), "rule": ("image", "clean"),
    "tolerance": (1.0, 1.25, 1.5, 1.75, 2.0),
}  # fmt: skip
_SMALL = {"per_size": 40, "steps": 60}  # of the autoencoder on procedural images
_JEDI = networks.FOLDER / "jedi.safetensors"
_NETWORK = "joint"  # undefended; the search looks at its float view


def load_jedi(dataset: str = "cifar10", *, retrain: bool = False) -> Jedi:
    """Jedi for a data set: the shipped one, or one made now (in a minute) and kept in the store.

    Raises:
        StoreError: the shipped file is damaged. DataError: it must be made and CIFAR-10 is not to be had.
    """
    if dataset == "cifar10" and _JEDI.exists() and not retrain:
        tensors, made = store.load_tensors(_JEDI)
    else:
        tensors, made = _fetch_jedi(dataset)
    statistics = {name: tuple(tensors.pop(name).tolist()) for name in ("mean", "std")}
    net = MaskCompletion(made["image_size"])
    load_network_tensors(net, {name: tensor.float() for name, tensor in tensors.items()})
    return Jedi(**statistics, **{**TUNED, "completion": net.eval()})


def _fetch_jedi(dataset: str) -> tuple[dict[str, Tensor], dict]:
    train = data.load(dataset, "train")
    parts = {"dataset": dataset, "data": train.fingerprint, "tuned": TUNED, "images": CLEAN_IMAGES, "small": _SMALL,
             "source": store.source_fingerprint(method, completion, _make_jedi)}  # fmt: skip
    return store.fetch("zoo", parts, lambda: _make_jedi(dataset, train))


def _make_jedi(dataset: str, train: data.Dataset) -> tuple[dict[str, Tensor], dict]:
    started = time.perf_counter()
    images = train.floats(data.balanced_subset(train, min(CLEAN_IMAGES, len(train) // 10 * 10), seed=0))
    jedi = Jedi.fitted(images, TUNED["windows"], TUNED["levels"])
    net = train_completion(images.shape[-1], **({} if dataset == "cifar10" else _SMALL))
    tensors = {"mean": torch.tensor(jedi.mean), "std": torch.tensor(jedi.std)}
    tensors |= {name: tensor.half() for name, tensor in net.state_dict().items()}
    return tensors, {
        "name": "jedi", "dataset": dataset, "image_size": images.shape[-1], "tuned": {**TUNED}, "images": len(images),
        "seconds": round(time.perf_counter() - started, 1), "commit": networks._commit(),
    }  # fmt: skip


def jedi_search(n: int = 400, dataset: str = "cifar10", *, report: Callable[[str], None] | None = None) -> pd.DataFrame:
    """Clean and patched accuracy of the undefended float view behind Jedi, for every setting of `SEARCHED`.

    On training images only; the patches are universal ones of LaVAN and GAP with seeds that no table shows.

    Args:
        n: training images, half of the work each clean and patched.
        dataset: "cifar10" or "shapes".
        report: gets a line per setting.

    Returns:
        windows, levels, rule, tolerance, clean, patched, mean; the best first.
    """
    train, view = data.load(dataset, "train"), networks.load(_NETWORK, dataset).at(32)
    images, labels = train.take(data.balanced_subset(train, n, seed=3))
    fit = train.floats(data.balanced_subset(train, min(CLEAN_IMAGES, len(train) // 10 * 10), seed=0))
    net, generator, parts = load_jedi(dataset).completion, torch.Generator().manual_seed(0), []
    entries = [PatchEntry(_NETWORK, 32, attack, seed) for attack in ATTACKS for seed in (1, 2)]
    for part, entry in zip(images.tensor_split(len(entries)), entries):
        patch = load_patch(entry, dataset)
        places = sample_places("random", len(part), part.shape[-2:], patch.size, generator)
        parts.append(apply_patch(patch, part, places))
    shown, rows = torch.cat(parts), []
    for windows, levels in product(SEARCHED["windows"], SEARCHED["levels"]):
        fitted = Jedi.fitted(fit, windows, levels)
        for rule, tolerance in product(SEARCHED["rule"], SEARCHED["tolerance"]):
            jedi = Jedi(fitted.mean, fitted.std, windows, levels, tolerance, rule, completion=net)
            found = {"clean": accuracy(view, jedi(images), labels), "patched": accuracy(view, jedi(shown), labels)}
            rows.append({"windows": windows, "levels": levels, "rule": rule, "tolerance": tolerance, **found,
                         "mean": sum(found.values()) / 2})  # fmt: skip
            if report:
                report(" ".join(f"{name} {value}" for name, value in rows[-1].items()))
    return pd.DataFrame(rows).sort_values("mean", ascending=False, kind="stable", ignore_index=True)


def ship() -> None:
    """Make Jedi for CIFAR-10, unless the store holds it, and write it into the package."""
    tensors, made = _fetch_jedi("cifar10")
    made.pop("parts", None)
    store.save_tensors(_JEDI, tensors, made)


if __name__ == "__main__":
    ship()
