"""PGD and AutoAttack on a quantized view, against torchattacks on the float network.

The noise is so small that hardly an image is fooled: both networks then have the same number of images to go on with.

    python -m benchmarks.pixel_attacks
"""

from __future__ import annotations

import torch
import torchattacks

from benchmarks._harness import Limit, compare, main
from benchmarks._steps import images_and_labels, multi_bit
from qpatch.attacks import pixel
from qpatch.attacks.pixel.base import Anchored

BITS, EPS = 8, 1e-4
STEPS, QUERIES = {"PGD": 20, "AutoAttack": 2}, 50  # of AutoAttack a short one: its parts keep their proportions


def measure(smoke: bool) -> list[dict]:
    images, _ = images_and_labels(4 if smoke else pixel.BATCH, 32)
    net = multi_bit("qpatch_resnet8", images, (BITS,))
    view, model = net.at(BITS), Anchored(net.at(32), images.device)
    with torch.no_grad():
        labels = view(images).argmax(1)  # of the view itself, so that all images start out right
    shared = {"eps": EPS, "norm": "Linf", "seed": 0}
    parts = [torchattacks.APGD(model, steps=STEPS["AutoAttack"], loss="ce", **shared),
             torchattacks.APGDT(model, steps=STEPS["AutoAttack"], **shared),
             torchattacks.FAB(model, steps=STEPS["AutoAttack"], multi_targeted=True, **shared),
             torchattacks.Square(model, n_queries=QUERIES, **shared)]  # fmt: skip
    limits = {
        "PGD": torchattacks.PGD(model, eps=EPS, alpha=EPS / 4, steps=STEPS["PGD"]),
        "AutoAttack": torchattacks.MultiAttack(parts),
    }
    options = {"PGD": {"restarts": 1}, "AutoAttack": {"queries": QUERIES}}
    rows = []
    for name, limit in limits.items():
        rows += compare(
            f"{name}, {STEPS[name]} steps, resnet8 at {BITS} bits",
            lambda: pixel.attack(name, view, images, labels, eps=EPS, steps=STEPS[name], **options[name]),
            Limit("torchattacks on the float network", lambda: limit(images, labels), 1.35), seconds=None if smoke else 20)  # fmt: skip
    return rows


if __name__ == "__main__":
    raise SystemExit(main("pixel_attacks", __doc__, measure))
