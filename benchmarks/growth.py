"""How time grows with images, widths and steps: the slope of log time against log size; and memory with images.

One is linear. Below one, fixed costs show; above one, something is done again and again. All widths are quantized, so
that one costs what another costs. Memory is the most that the process ever held, after few images and then after many.

    python -m benchmarks.growth
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Mapping

import numpy as np
import torch

from benchmarks._harness import AT_MOST, by_turns, main, spread, versions
from benchmarks._steps import images_and_labels, multi_bit, width_step
from qpatch.attacks import GAP, LaVAN, Patch, make_mask, sample_places
from qpatch.measure import transfer_rows
from qpatch.training import Batch

WIDTHS = (8, 7, 6, 5, 4, 3)
IMAGES, STEPS = (250, 500, 1000, 2000, 4000), (50, 100, 200, 400, 800)
FEW_IMAGES, FEW_STEPS = (10, 20, 40), (2, 4, 8)
SIZE, BOUND, FLAT = 6, 1.05, 1.1  # patch; exponent; memory after the most images over memory after the fewest


def measure(smoke: bool) -> list[dict]:
    counts, steps = (FEW_IMAGES, FEW_STEPS) if smoke else (IMAGES, STEPS)
    images, labels = images_and_labels(counts[-1], 32)
    net = multi_bit("qpatch_resnet8", images[:128], WIDTHS)
    view, part = net.at(4), slice(0, counts[0])
    patches = {(4, 0): Patch(torch.full((3, SIZE, SIZE), 0.5), make_mask("square", SIZE))}
    each = LaVAN(view, SIZE, steps=2, batch=50)

    def transfer(n: int) -> None:
        places = sample_places("center", n, 32, SIZE)
        transfer_rows({4: view}, patches, images[:n], labels[:n], places, photos=(images[part], labels[part]))

    seconds = None if smoke else 1
    rows = [_memory("transfer, images", {n: lambda n=n: transfer(n) for n in counts}),
            _memory("specific patches, images", {n: lambda n=n: each(images[:n], labels[:n]) for n in counts}),
            _exponent("transfer, images", {n: lambda n=n: transfer(n) for n in counts}, seconds),
            _exponent("specific patches, images", {n: lambda n=n: each(images[:n], labels[:n]) for n in counts}, seconds),
            _exponent("universal patch, steps", {n: lambda n=n: GAP(view, SIZE, steps=n, batch=8).fit(images, labels)
                                                 for n in steps}, seconds)]  # fmt: skip
    batch = Batch(*images_and_labels(counts[0] // 5, 32))
    joint = {n: width_step(net, batch, *WIDTHS[:n]) for n in range(1, len(WIDTHS) + 1)}
    return [*rows, _exponent("joint training, widths", joint, seconds)]


def exponent(sizes: list[int], seconds: list[float]) -> float:
    """Slope of the straight line through log seconds against log size."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def _exponent(case: str, calls: Mapping[int, Callable[[], object]], seconds: float | None) -> dict:
    spent = by_turns(calls, seconds)
    slopes = [exponent(list(calls), list(times)) for times in zip(*spent.values())]
    sizes = f"{min(calls):,} to {max(calls):,}"
    return {"case": f"{case} {sizes}", "against": "exponent of time", "rule": AT_MOST, "bound": BOUND, "versions": versions(),
            **spread(slopes)}  # fmt: skip


def _memory(case: str, calls: Mapping[int, Callable[[], object]]) -> dict:
    """The process's peak after the most images over that after the fewest; a peak never falls, so sizes ascend."""
    peaks = []
    for call in (calls[min(calls)], calls[max(calls)]):
        call()
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return {"case": f"{case} {min(calls):,} to {max(calls):,}", "against": "growth of peak memory", "rule": AT_MOST,
            "bound": FLAT, "ratio": peaks[1] / peaks[0], "n": 1, "versions": versions()}  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main("growth", __doc__, measure))
