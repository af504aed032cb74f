"""One joint training step over all widths, against as many steps of training at one width.

The float view runs under bfloat16, as in the zoo's recipes. Where the processor lacks it that has no effect, and the
joint step can save no more than the quantizers of one width in five.

    python -m benchmarks.joint_step
"""

from __future__ import annotations

import torch

from benchmarks._harness import Limit, compare, main
from benchmarks._steps import images_and_labels, multi_bit, width_step
from qpatch.quant import WIDTHS
from qpatch.training import Batch


def measure(smoke: bool) -> list[dict]:
    images, labels = images_and_labels(8 if smoke else 128, 32)
    images = images.contiguous(memory_format=torch.channels_last)
    net, batch = multi_bit("qpatch_resnet8", images, WIDTHS), Batch(images, labels)
    one = Limit("QAT steps at 4 bits", width_step(net, batch, 4), 0.9, times=len(WIDTHS))
    joint = width_step(net, batch, *WIDTHS, bf16=True)
    return compare(f"resnet8, batch {len(images)}, {len(WIDTHS)} widths", joint, one, seconds=None if smoke else 20)


if __name__ == "__main__":
    raise SystemExit(main("joint_step", __doc__, measure))
