"""TriQDef's offline pool: universal patches made beforehand on the float network, for training only.

The judged patches are others: they have other seeds and are made on other networks. Class 3, sizes 8 and 10 and places
in the centre stay out of the pool, so that what `qpatch.zoo.scenarios` calls unseen is unseen.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from qpatch import data, store
from qpatch.attacks import LaVAN
from qpatch.attacks import base as attack_base

SIZES = (4, 5, 6)
UNTARGETED = 6  # patches per size, beside one for every class but the held-out one
STEPS = {"cifar10": 100, "shapes": 2}
PLACE = "away"  # of the setting "seen"
HELD_OUT = 3  # the target class of the setting "target"
_IMAGES = 10_000
_FIRST_SEED = 1_000
_SHIPPED = Path(__file__).parent / "patches" / "pool.safetensors"


def load_pool(view: nn.Module, dataset: str) -> list[Tensor]:
    """The pool: for every size float32 (K, 3, h, h) on the 8-bit lattice.

    That of the shipped float network ships; any other is made now, unless the store holds it.

    Args:
        view: the float network that patches are made on, in eval mode.
        dataset: "cifar10" or "shapes".

    Raises:
        DataError: CIFAR-10 is not to be had. StoreError: the shipped pool is damaged.
    """
    network = store.tensors_fingerprint(view.state_dict())
    shipped = store.load_tensors(_SHIPPED) if _SHIPPED.exists() else None
    tensors, _ = shipped if shipped and shipped[1]["network"] == network else _fetch(view, dataset, network)
    return [tensors[str(size)].float() / 255 for size in SIZES]


def ship(view: nn.Module) -> None:
    """Write the pool of the shipped float network into the package."""
    network = store.tensors_fingerprint(view.state_dict())
    tensors, made = _fetch(view, "cifar10", network)
    store.save_tensors(_SHIPPED, tensors, {"network": network, "steps": STEPS["cifar10"], "targets": made["targets"]})


def _fetch(view: nn.Module, dataset: str, network: str) -> tuple[dict[str, Tensor], dict]:
    train = data.load(dataset, "train")
    parts = {
        "network": network, "data": train.fingerprint, "steps": STEPS[dataset],
        "source": store.source_fingerprint(attack_base, LaVAN, _make), "sizes": SIZES, "untargeted": UNTARGETED,
    }  # fmt: skip
    return store.fetch("pool", parts, lambda: _make(view, train))


def _make(view: nn.Module, train: data.Dataset) -> tuple[dict[str, Tensor], dict]:
    images, labels = train.take(data.balanced_subset(train, min(_IMAGES, len(train) // 10 * 10), seed=1))
    targets = [None] * UNTARGETED + [number for number in range(len(train.classes)) if number != HELD_OUT]
    stacks = {}
    for size in SIZES:
        made = []
        for number, target in enumerate(targets):
            seed = _FIRST_SEED + 100 * size + number
            attack = LaVAN(view, size, target=target, place=PLACE, steps=STEPS[train.name], seed=seed, lr=0.1, batch=64)
            made.append((attack.fit(images, labels).pixels * 255).round().to(torch.uint8))
        stacks[str(size)] = torch.stack(made)
        store.say(f"offline pool: {len(made)} patches of {size}×{size} pixels")
    return stacks, {"targets": [str(target) for target in targets]}
