"""A whole universal patch, ours against ART's: same network, images, patch size, number of steps and batch.

Both are Brown et al.'s patch with Adam, random places, ±22.5° and scale 0.9 to 1.1. ART runs at its own step size of
five grey levels and at ours, and the better one counts. Success is counted on test images; the patches are pasted at the
same places, plain and rotated and scaled as in training.

    python -m benchmarks.patch_vs_art
"""

from __future__ import annotations

import math
import time
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks._art import ROTATION, SCALE, art_patch
from benchmarks._harness import AT_LEAST, main, versions
from qpatch import zoo
from qpatch.attacks import GAP, Patch, apply_patch, sample_places, transformed
from qpatch.data import balanced_subset, load
from qpatch.measure import attack_success

SIZE, RATE = 6, 0.05
RATES = (5 / 255, RATE)  # ART's default, and ours
GOALS = {"untargeted": None, "class 3": 3}
SMALL, LARGE = ("shapes", 128, 100, 64, 1), ("cifar10", 2560, 2000, 128, 4)  # data set, images, test images, batch, epochs


def measure(smoke: bool) -> list[dict]:
    dataset, count, tested, batch, epochs = SMALL if smoke else LARGE
    net = zoo.load("float", dataset).at(32)
    train, test = load(dataset, "train"), load(dataset, "test")
    images, labels = train.take(balanced_subset(train, count))
    shown = test.take(balanced_subset(test, tested))
    rows = []
    for name, target in GOALS.items():
        attack = GAP(net, SIZE, target=target, steps=epochs * count // batch, batch=batch, lr=RATE, rotation=ROTATION, scale=SCALE)
        ours, seconds = _timed(partial(attack.fit, images, labels))
        arts = [_timed(partial(art_patch, net, images, labels, size=SIZE, epochs=epochs, batch=batch, rate=rate, target=target))
                for rate in RATES]  # fmt: skip
        case = f"{name}, {attack.steps} steps of {batch}"
        package = {"versions": versions("adversarial-robustness-toolbox"), "rule": AT_LEAST, "n": 1}
        time_ratio = min(spent for _, spent in arts) / seconds
        rows.append({"case": case, "against": "ART, time", "ratio": time_ratio, "seconds": seconds} | package)
        for how in (False, True):
            mine, *theirs = (_success(net, patch, *shown, target, how) for patch in (ours, *(patch for patch, _ in arts)))
            rows.append({"case": case, "against": f"ART, success{', patch turned and scaled' if how else ''}", "bound": 1.0,
                         "ratio": mine / max(*theirs, 1e-9), "note": f"success {mine:.3f}, ART {max(theirs):.3f}"} | package)  # fmt: skip
    return rows


def _timed(make) -> tuple[Patch, float]:
    started = time.perf_counter()
    return make(), time.perf_counter() - started


def _success(net: nn.Module, patch: Patch, images: Tensor, labels: Tensor, target: int | None, turned: bool) -> float:
    """Attack success rate, in [0, 1], at places drawn from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    places = sample_places("random", len(images), images.shape[-1], patch.size, generator)
    if turned:
        draws = torch.rand(2, len(images), generator=generator)
        angle, scale = (2 * draws[0] - 1) * math.radians(ROTATION), SCALE[0] + (SCALE[1] - SCALE[0]) * draws[1]
        patched = transformed(images, patch.pixels, patch.mask, places, angle, scale).clamp(0, 1)
    else:
        patched = apply_patch(patch, images, places)
    return attack_success(net, images, patched, labels, target).asr


if __name__ == "__main__":
    raise SystemExit(main("patch_vs_art", __doc__, measure))
