"""One step of quantization-aware training at one width, against a float step and against Brevitas.

    python -m benchmarks.qat_step
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks import _peers
from benchmarks._harness import Limit, Peer, compare, main
from benchmarks._steps import images_and_labels, multi_bit, width_step
from qpatch.training import Batch

BITS = 4


def measure(smoke: bool) -> list[dict]:
    rows = []
    for name in ("qpatch_resnet8",) if smoke else ("qpatch_resnet8", "qpatch_resnet20"):
        images, labels = images_and_labels(8 if smoke else 128, 32)
        images = images.contiguous(memory_format=torch.channels_last)
        net, batch = multi_bit(name, images, (BITS,)), Batch(images, labels)
        brevitas = _brevitas_step(net.at(32), batch) if _peers.installed("brevitas") else None
        rows += compare(
            f"{name.removeprefix('qpatch_')}, batch {len(images)}, {BITS} bits", width_step(net, batch, BITS),
            Limit("float step", width_step(net, batch, 32), 1.3), Peer("brevitas", brevitas, 1.5, package="brevitas"),
            seconds=None if smoke else 15)  # fmt: skip
    return rows


def _brevitas_step(model: torch.nn.Module, batch: Batch):
    net = _peers.brevitas_network(model, batch.images, BITS).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, nesterov=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(net(batch.images), batch.labels).backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    raise SystemExit(main("qat_step", __doc__, measure))
