"""Pictures with patches on the way to a device: what each step of the way changes, and what memory the network takes.

Every network is asked once for its logits on every set of pictures (`answers`); all tables are counted from these.
"""

from __future__ import annotations

import itertools
import math
import os
import re
import tempfile
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from qpatch.checks import check_images
from qpatch.errors import InputError
from qpatch.measure.gradients import logits_of
from qpatch.measure.stats import wilson
from qpatch.measure.success import success_of
from qpatch.quant import tflite
from qpatch.quant.tflite.compare import simulate
from qpatch.quant.tflite.emulator import Integers
from qpatch.quant.tflite.ends import input_of
from qpatch.quant.tflite.layers import code_range
from qpatch.quant.tflite.surgery import core

Answers = dict[tuple[str, str], Tensor]  # (network, pictures) → logits (N, classes)

_CONSTANTS = ("int4", "int8", "int16", "int32", "int64")
_WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
_ARENA = 2**22  # bytes; more than any network here takes


class Simulation(nn.Module):
    """An integer .tflite as fake quantization has it: the same scales and codes in float32, one rounding per layer.

    Args:
        data: the bytes of an integer .tflite.
    """

    def __init__(self, data: bytes):
        super().__init__()
        graph = tflite.read(core(data))
        self.ends = input_of(graph.tensors[graph.input])
        self.integers, self.step = Integers(graph), graph.tensors[graph.scores].step
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Logits, float32 (N, classes), of [0, 1] images."""
        net = self.integers
        values = {net.first: self.ends.relative(images)}
        for layer, reads, write in zip(net.layers, net.reads, net.writes, strict=True):
            values[write] = simulate(layer, *(values[i] for i in reads))
        return values[net.scores].flatten(1) * self.step


@torch.no_grad()
def answers(networks: Mapping[str, nn.Module], pictures: Mapping[str, Tensor], batch: int = 100) -> Answers:
    """The logits of every network on every set of pictures.

    Args:
        networks: name → network in eval mode, or one of `qpatch.quant.tflite.network`.
        pictures: name → float32 (N, C, H, W) in [0, 1], the same images with and without patches.
        batch: images per forward pass.

    Raises:
        InputError: malformed images, or sets of different sizes.
    """
    if len({tuple(images.shape) for images in pictures.values()}) > 1:
        raise InputError("the sets of pictures differ in shape; pass the same images with and without patches.")
    for images in pictures.values():
        check_images(images)
    return {(net, name): torch.cat([logits_of(networks[net], part) for part in images.split(batch)])
            for net in networks for name, images in pictures.items()}  # fmt: skip


def chain_rows(
    given: Answers, chain: Iterable[tuple[str, str, str]], labels: Tensor, controls: Iterable[str] = (),
    clean: str = "clean",
) -> pd.DataFrame:  # fmt: skip
    """Attack success after every step of the chain, judged by what the network of that step says without a patch.

    Args:
        given: from `answers`.
        chain: (step, network, pictures) in order; a step whose network was not asked is left out.
        labels: int64 (N,).
        controls: names of pictures with patches that nobody optimised; each is a column asr_NAME of every step.
        clean: name of the pictures without a patch.

    Returns:
        One row per step: step, network, shown, n, asr, ci_low, ci_high (Wilson), error_rate, clean_accuracy, and the
        controls, missing where the network of the step was not asked about them.
    """
    rows = []
    for step, network, shown in chain:
        if (network, shown) not in given:
            continue
        before, after = (given[network, name].argmax(1) for name in (clean, shown))
        row = {"step": step, "network": network, "shown": shown, **vars(success_of(before, after, labels))}
        for control in controls:
            asked = (network, control) in given
            under = given[network, control].argmax(1) if asked else None
            row[f"asr_{control}"] = success_of(before, under, labels).asr if asked else math.nan
        rows.append(row)
    return pd.DataFrame(rows)


def agreement_rows(given: Answers, pairs: Iterable[tuple[str, str]], pictures: Iterable[str]) -> pd.DataFrame:
    """Two networks on the same pictures: do they say the same class, and how far apart are their logits?

    Args:
        given: from `answers`; pairs that were not both asked about a set are left out.
        pairs: (one network, the other).

    Returns:
        One row per pair and set: one, other, shown, n, value (share of images with the same class) with low and high
        (Wilson), differ (number of images with another class), scores (number of logits), unequal (how many of them
        are not equal), gap and largest (mean and largest absolute difference of a logit), and relative, the mean
        difference in units of the standard deviation of the one network's logits on these pictures.
    """
    rows = []
    for one, other in pairs:
        for shown in pictures:
            if (one, shown) not in given or (other, shown) not in given:
                continue
            a, b = given[one, shown], given[other, shown]
            same, n, gap = int((a.argmax(1) == b.argmax(1)).sum()), len(a), (a - b).abs()
            low, high = wilson(same, n)
            rows.append({"one": one, "other": other, "shown": shown, "n": n, "value": same / n, "low": low,
                         "high": high, "differ": n - same, "scores": a.numel(), "unequal": int((a != b).sum()),
                         "gap": float(gap.mean()), "largest": float(gap.max()),
                         "relative": float(gap.mean() / a.std())})  # fmt: skip
    return pd.DataFrame(rows)


def step_rows(
    given: Answers, chain: Iterable[tuple[str, str, str]], labels: Tensor, clean: str = "clean"
) -> pd.DataFrame:
    """What each step of the chain changes in attack success, image by image, against the step before it.

    Only images count that the networks of both steps get right without a patch.

    Args:
        given, chain, labels, clean: as for `chain_rows`.

    Returns:
        One row per step but the first: before, step, n, both, only_before and only_after (numbers of images that are
        fooled), change (of the rate) with low and high, its normal 95 % interval from the paired differences.
    """
    rows, steps = [], [(step, *key) for step, *key in chain if tuple(key) in given]
    for (before, one, shown_before), (step, other, shown_after) in itertools.pairwise(steps):
        right = (given[one, clean].argmax(1) == labels) & (given[other, clean].argmax(1) == labels)
        a, b = (given[key].argmax(1)[right] != labels[right] for key in ((one, shown_before), (other, shown_after)))
        n, pairs = len(a), b.double() - a.double()
        half = 1.96 * float(pairs.std()) / math.sqrt(n) if n > 1 else math.nan
        mean = float(pairs.mean()) if n else math.nan
        rows.append({"before": before, "step": step, "n": n, "both": int((a & b).sum()),
                     "only_before": int((a & ~b).sum()), "only_after": int((b & ~a).sum()),
                     "change": mean, "low": mean - half, "high": mean + half})  # fmt: skip
    return pd.DataFrame(rows)


@torch.no_grad()
def clipped_rows(file: bytes, pictures: Mapping[str, Tensor], batch: int = 100) -> pd.DataFrame:
    """The share of activations at the upper end of their codes, where the integer network cannot say "more".

    Returns:
        One row per set of pictures and operation that rounds: shown, step (from 0), kind, share.
    """
    graph = tflite.read(core(file))
    net, ends = Integers(graph), input_of(graph.tensors[graph.input])
    tops = {op.output: code_range(graph.tensors[op.output], op.options.get("activation", "NONE"))[1]
            for op in graph.ops}  # fmt: skip
    rows = []
    for shown, images in pictures.items():
        at_top, seen = dict.fromkeys(tops, 0), dict.fromkeys(tops, 0)
        for part in images.split(batch):
            for index, codes in net(ends.relative(part), keep=tuple(tops)).items():
                at_top[index] += int((codes >= tops[index]).sum())
                seen[index] += codes.numel()
        rows += [{"shown": shown, "step": step, "kind": op.kind, "share": at_top[op.output] / seen[op.output]}
                 for step, op in enumerate(graph.ops) if op.kind not in ("RESHAPE", "PAD")]  # fmt: skip
    return pd.DataFrame(rows)


@torch.no_grad()
def levels_read(file: bytes, images: Tensor, batch: int = 100) -> list[int]:
    """How many different codes each convolution behind the first reads on these images, in the file's order."""
    graph = tflite.read(core(file))
    net, ends = Integers(graph), input_of(graph.tensors[graph.input])
    read = [op.inputs[0] for op in graph.ops if op.kind == "CONV_2D"][1:]
    seen = {index: torch.zeros(0) for index in read}
    for part in images.split(batch):
        found = net(ends.relative(part), keep=tuple(read))
        seen = {index: torch.cat([codes, found[index].flatten()]).unique() for index, codes in seen.items()}
    return [len(seen[index]) for index in read]


def memory_row(file: bytes) -> dict[str, float]:
    """What a network takes on a device, in bytes.

    Returns:
        file (the flatbuffer, which stays in flash), constants (the part of it that is weights and biases), needed (the
        same if weights were packed at the bits that their codes take, 2 for −1, 0 and 1), activations and structures
        (the two parts of TFLite Micro's arena in RAM: tensors of one image, and its own bookkeeping, with pointers of
        this machine; nan where TFLite Micro is not installed).
    """
    graph = tflite.read(core(file))
    kept = [tensor for tensor in graph.tensors if tensor.data is not None and tensor.dtype in _CONSTANTS]
    bits = {name: int(name.removeprefix("int")) for name in _CONSTANTS}
    constants = sum(-(-tensor.data.size * bits[tensor.dtype] // 8) for tensor in kept)
    weights = {graph.tensors[op.inputs[1]] for op in graph.ops if op.kind in _WEIGHTED}
    needed = sum(-(-tensor.data.size * (_bits_of(tensor.data) if tensor in weights else bits[tensor.dtype]) // 8)
                 for tensor in kept)  # fmt: skip
    head, tail = _arena(core(file)) if tflite.installed("tflm") else (math.nan, math.nan)
    return {"file": len(file), "constants": constants, "needed": needed, "activations": head, "structures": tail}


def _bits_of(codes: np.ndarray) -> int:
    """The bits of a signed type for codes of this size, symmetric around zero."""
    return 1 + int(np.abs(codes.astype(int)).max()).bit_length()


def _arena(file: bytes) -> tuple[int, int]:
    """The two ends of TFLite Micro's arena, from the report that it writes to the process's standard error."""
    from tflite_micro.python.tflite_micro import runtime

    net = runtime.Interpreter.from_bytes(file, arena_size=_ARENA)
    net.invoke()
    with tempfile.TemporaryFile() as report:
        kept = os.dup(2)
        try:
            os.dup2(report.fileno(), 2)
            net.print_allocations()
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        report.seek(0)
        text = report.read().decode()
    found = [re.search(rf"Arena allocation {end} (\d+) bytes", text) for end in ("head", "tail")]
    if not all(found):
        raise InputError("TFLite Micro's report of its memory has another form than in the pinned version.")
    return int(found[0][1]), int(found[1][1])
