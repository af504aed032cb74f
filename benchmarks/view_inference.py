"""Inference of a view in eval mode, against the float network, Brevitas and torchao at the same width.

"fused" is the copy of `qpatch.quant.fused`, which attacks and tables of the patch defenses use.

    python -m benchmarks.view_inference
"""

from __future__ import annotations

import torch
from torch import nn

from benchmarks import _peers
from benchmarks._harness import Limit, Peer, compare, main
from benchmarks._steps import images_and_labels, multi_bit
from qpatch.quant import fused, isolate

BITS = 8
BOUNDS = {"weights": 1.10, "weights and activations": 1.3, "weights and activations, fused": 1.3}


def measure(smoke: bool) -> list[dict]:
    rows = []
    for name in ("qpatch_resnet8",) if smoke else ("qpatch_resnet8", "qpatch_resnet20"):
        images, _ = images_and_labels(4 if smoke else 128, 32)
        net = multi_bit(name, images, (BITS,))
        view, model = net.at(BITS), net.at(32)
        for what, bound in BOUNDS.items():
            activations = what != "weights"
            activations, quick = what != "weights", what.endswith("fused")
            ours = fused(view) if quick else view if activations else isolate(view, "weights")
            rows += compare(
                f"{name.removeprefix('qpatch_')}, {what}", lambda: infer(ours, images),
                Limit("float", lambda: infer(model, images), bound),
                *(_peer(package, model, images, activations) for package in ("brevitas", "torchao")),
                seconds=None if smoke else 12)  # fmt: skip
    return rows


@torch.no_grad()
def infer(net: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return net(images)


def _peer(package: str, model: nn.Module, images: torch.Tensor, activations: bool) -> Peer:
    if not _peers.installed(package):
        return Peer(package, None, 1.0, package=package)
    make = {"brevitas": _peers.brevitas_network, "torchao": _peers.torchao_network}[package]
    net = make(model, images, BITS, activations)
    return Peer(package, lambda: infer(net, images), 1.0, package=package)


if __name__ == "__main__":
    raise SystemExit(main("view_inference", __doc__, measure))
