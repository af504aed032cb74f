"""One optimisation step of a universal patch: ours, the bare forward and backward pass, and ART's.

Ours and ART's draw places, rotation and scale for every image of a batch; `patch_vs_art` shows that ours reach no less
success in as many steps.

    python -m benchmarks.patch_step
"""

from __future__ import annotations

from benchmarks._art import art_patch
from benchmarks._harness import Limit, Peer, compare, main
from benchmarks._steps import float_network, images_and_labels, raw_patch_steps
from qpatch.attacks import GAP

STEPS = 5
CASES = (("qpatch_resnet8", 32, 6, 128), ("qpatch_resnet20", 32, 6, 128), ("tf_efficientnet_lite0", 224, 50, 16))
SMALL = (("qpatch_resnet8", 32, 6, 8),)


def measure(smoke: bool) -> list[dict]:
    rows = []
    for name, side, size, batch in SMALL if smoke else CASES:
        net = float_network(name)
        images, labels = images_and_labels(STEPS * batch, side)
        attack = GAP(net, size, steps=STEPS, batch=batch)
        rows += compare(
            f"{name.removeprefix('qpatch_')}, batch {batch}", lambda: attack.fit(images, labels),
            Limit("forward and backward", lambda: raw_patch_steps(net, images, labels, batch, STEPS), 1.15),
            Peer("ART", lambda: art_patch(net, images, labels, size=size, epochs=1, batch=batch), 3.0,
                 package="adversarial-robustness-toolbox"),
            seconds=None if smoke else 15)  # fmt: skip
    return rows


if __name__ == "__main__":
    raise SystemExit(main("patch_step", __doc__, measure))
