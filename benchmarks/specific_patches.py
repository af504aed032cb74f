"""A patch for each image, all images of a batch side by side, against as many bare steps.

    python -m benchmarks.specific_patches
"""

from __future__ import annotations

from benchmarks._harness import Limit, compare, main
from benchmarks._steps import float_network, images_and_labels, raw_patch_steps
from qpatch.attacks import LaVAN

STEPS = 25  # of the 100 of an attack: what is not a step of its own counts four times as much here
CASES = (("qpatch_resnet8", 128, STEPS), ("qpatch_resnet20", 128, STEPS))
SMALL = (("qpatch_resnet8", 8, 2),)


def measure(smoke: bool) -> list[dict]:
    rows = []
    for name, count, steps in SMALL if smoke else CASES:
        net = float_network(name)
        images, labels = images_and_labels(count, 32)
        attack = LaVAN(net, 6, steps=steps, batch=count)
        rows += compare(
            f"{name.removeprefix('qpatch_')}, {count} images", lambda: attack(images, labels),
            Limit("forward and backward", lambda: raw_patch_steps(net, images, labels, count, steps), 1.15),
            seconds=None if smoke else 15)  # fmt: skip
    return rows


if __name__ == "__main__":
    raise SystemExit(main("specific_patches", __doc__, measure))
