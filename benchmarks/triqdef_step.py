"""One TriQDef training step against one multi-bit patch-training step: the same batch, widths and patches.

The paper states 1.47 to 1.60 times the time of plain QAT on an A100; the limit here is 2.0 times a patch-training step.

    python -m benchmarks.triqdef_step                    # CIFAR-10, ResNet-8, batch 128; about a minute
    python -m benchmarks.triqdef_step --profile smoke    # procedural images, prints only
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch

from qpatch import zoo
from qpatch.allocator import keep_freed_memory
from qpatch.data import load
from qpatch.defenses import PatchPool, TriQDef
from qpatch.measure.step_cost import cost_rows, step_costs
from qpatch.quant import WIDTHS
from qpatch.report.tables import csv_text
from qpatch.store import write_atomic
from qpatch.training import Batch, CrossEntropy

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 2.0
BASE, PLAIN = "multi-bit patch training", "plain joint training"
PROFILES = {"smoke": ("shapes", 32, 2), "laptop": ("cifar10", 128, 9)}  # data set, batch, rounds


def losses() -> dict:
    """The steps, the one that all are compared with first."""
    pool = PatchPool([torch.rand(64, 3, 6, 6, generator=torch.Generator().manual_seed(0))])
    return {
        BASE: TriQDef(pool, fdp=0, gpdp=0, bf16=True), "with FDP": TriQDef(pool, gpdp=0, bf16=True),
        "with GPDP": TriQDef(pool, fdp=0, bf16=True), "TriQDef": TriQDef(pool, bf16=True),
        PLAIN: CrossEntropy(WIDTHS, bf16=True),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.triqdef_step", description=__doc__)
    parser.add_argument("--profile", choices=PROFILES, default="laptop")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    keep_freed_memory()
    dataset, size, rounds = PROFILES[chosen.profile]
    net = zoo.load("joint", dataset).to(memory_format=torch.channels_last)
    images, labels = load(dataset, "train").take(torch.arange(size))
    batch = Batch(images.contiguous(memory_format=torch.channels_last), labels)
    costs = step_costs(net, losses(), batch, rounds)
    table = cost_rows(costs).assign(limit=float("nan"), dataset=dataset, batch=size, threads=chosen.threads, torch=torch.__version__)
    table.loc[(table.step == "TriQDef") & (table.what == "time_ratio"), "limit"] = LIMIT
    print(table.to_string(index=False, float_format="{:.2f}".format))
    ratio = float(table.loc[table.limit.notna(), "value"].iloc[0])
    print(f"TriQDef / {BASE}: {ratio:.2f} (limit {LIMIT})")
    if chosen.profile != "smoke":
        write_atomic(ROOT / "figures" / "benchmarks" / "triqdef_step.csv", csv_text(table))
    return 1 if ratio > LIMIT and chosen.profile != "smoke" else 0


if __name__ == "__main__":
    raise SystemExit(main())
