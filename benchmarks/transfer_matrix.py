"""The 5 × 5 transfer matrix on 1,000 images with given patches, against 25 inferences of the float network.

Our table also holds the clean accuracy and three controls for each view, which are 20 more inferences. So there are two
limits: the 25 of the matrix, and as many inferences as the table consists of. The peer is the loop that one writes with
torchattacks at hand: for each pair of widths paste the patch, ask clean, ask patched; it makes no controls.

    python -m benchmarks.transfer_matrix
"""

from __future__ import annotations

import torch

from benchmarks._harness import Limit, Peer, compare, main
from benchmarks._steps import images_and_labels, multi_bit
from qpatch.attacks import Patch, apply_patch, make_mask, sample_places
from qpatch.measure import attack_success, transfer_rows
from qpatch.measure.transfer import CONTROLS
from qpatch.quant import WIDTHS

SIZE, BATCH = 6, 100


def measure(smoke: bool) -> list[dict]:
    images, labels = images_and_labels(20 if smoke else 1000, 32)
    net = multi_bit("qpatch_resnet8", images[:128], WIDTHS)
    views = {bits: net.at(bits) for bits in WIDTHS}
    generator = torch.Generator().manual_seed(0)
    patches = {(bits, 0): Patch(torch.rand(3, SIZE, SIZE, generator=generator), make_mask("square", SIZE)) for bits in WIDTHS}
    places = sample_places("random", len(images), 32, SIZE, generator)

    def ours():
        return transfer_rows(views, patches, images, labels, places, photos=(images, labels), batch=BATCH)

    def loop():
        for patch in patches.values():
            for view in views.values():
                attack_success(view, images, apply_patch(patch, images, places), labels, batch=BATCH)

    @torch.no_grad()
    def infer():
        for part in images.split(BATCH):
            views[32](part).argmax(1)

    pairs, passes = len(WIDTHS) ** 2, len(WIDTHS) * (len(WIDTHS) + 1 + len(CONTROLS))
    return compare(
        f"resnet8, {len(images)} images", ours, Limit(f"{pairs} float inferences", infer, 1.3, times=pairs),
        Limit(f"{passes} float inferences", infer, 1.3, times=passes), Peer("loop over pairs, no controls", loop),
        seconds=None if smoke else 30)  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main("transfer_matrix", __doc__, measure))
