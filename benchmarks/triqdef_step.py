"""One TriQDef training step over all widths, half of the batch patched, against the same step without the penalties.

The paper states 1.47 to 1.60 times the time of plain training on an A100.

    python -m benchmarks.triqdef_step
"""

from __future__ import annotations

import torch

from benchmarks._harness import Limit, compare, main
from benchmarks._steps import TrainingStep, images_and_labels, multi_bit
from qpatch.defenses import PatchPool, TriQDef
from qpatch.quant import WIDTHS
from qpatch.training import Batch

CASES = {"TriQDef": ({}, 1.6), "FDP alone": ({"gpdp": 0}, None), "GPDP alone": ({"fdp": 0}, None)}


def measure(smoke: bool) -> list[dict]:
    images, labels = images_and_labels(16 if smoke else 128, 32)
    images = images.contiguous(memory_format=torch.channels_last)
    net, batch = multi_bit("qpatch_resnet8", images, WIDTHS), Batch(images, labels)
    pool = PatchPool([torch.rand(64, 3, 6, 6, generator=torch.Generator().manual_seed(0))])
    plain = TrainingStep(net, TriQDef(pool, fdp=0, gpdp=0, bf16=True), batch)
    rows = []
    for name, (weights, bound) in CASES.items():
        step = TrainingStep(net, TriQDef(pool, bf16=True, **weights), batch)
        rows += compare(f"{name}, resnet8, batch {len(images)}", step, Limit("multi-bit patch training", plain, bound),
                        seconds=None if smoke else 12)  # fmt: skip
    return rows


if __name__ == "__main__":
    raise SystemExit(main("triqdef_step", __doc__, measure))
