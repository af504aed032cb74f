"""The texture dictionary of the zoo's attacker, painted with the float network: stored, because it takes a minute."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from qpatch import data, store
from qpatch.attacks import textures
from qpatch.zoo import networks

PATH = Path(__file__).parent / "black_box" / "textures.safetensors"
IMAGES = 5_000  # training images whose styles are clustered
OPTIONS = {"cifar10": {}, "shapes": {"clusters": 2, "steps": 3}}


def load_textures(dataset: str = "cifar10", *, retrain: bool = False) -> Tensor:
    """The textures of every class, float32 (classes, clusters, C, H, W): shipped ones, or painted now and stored.

    Args:
        dataset: "cifar10" (ships) or "shapes".
        retrain: train the float network anew, and paint with it.

    Raises:
        StoreError: the shipped file is damaged.
    """
    if dataset == "cifar10" and not retrain and PATH.exists():
        return store.load_tensors(PATH)[0]["textures"].float() / 255
    return _painted(dataset, retrain)[0]["textures"].float() / 255


def ship() -> None:
    """Paint the dictionary for CIFAR-10 and write it into the package."""
    tensors, made = _painted("cifar10", False)
    made.pop("parts")
    store.save_tensors(PATH, tensors, made)


def to_bytes(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1] as uint8."""
    return (pixels * 255).round().to(torch.uint8)


def _painted(dataset: str, retrain: bool) -> tuple[dict[str, Tensor], dict]:
    train, net = data.load(dataset, "train"), networks.load("float", dataset, retrain=retrain)
    chosen = data.balanced_subset(train, min(IMAGES, len(train) // 10 * 10))
    parts = {
        "network": store.tensors_fingerprint(net.state_dict()), "data": train.fingerprint, "images": len(chosen),
        "options": OPTIONS[dataset], "source": store.source_fingerprint(textures),
    }  # fmt: skip

    def paint() -> tuple[dict[str, Tensor], dict]:
        made = textures.texture_dictionary(net.at(32), *train.take(chosen), **OPTIONS[dataset])
        return {"textures": to_bytes(made)}, {"network": "float", "dataset": dataset, "commit": networks._commit()}

    return store.fetch("textures", parts, paint)
