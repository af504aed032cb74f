"""Images per second of the engines that compute a .tflite, beside the float network in PyTorch.

Ratios are what matters: the machine's speed cancels. One thread for every engine, because TFLite Micro has no other.

    python -m benchmarks.tflite_engines                    # the zoo's networks on CIFAR-10; about 2 minutes
    python -m benchmarks.tflite_engines --profile smoke    # a small network on shapes; seconds, prints only
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pandas as pd
import torch

from qpatch import data, zoo
from qpatch.allocator import keep_freed_memory
from qpatch.errors import QpatchError
from qpatch.quant import tflite
from qpatch.store import write_atomic

ROOT = Path(__file__).resolve().parents[1]
FILES = {"int8": ("int8", 8), "int16": ("int16", 8), "int8, int4 weights": ("int8", 4)}
BATCHES = {"emulator": (20, 1000), "litert": (20, 1000), "tflm": (20,), "twin": (100,), "twin with gradient": (100,)}
PROFILES = {"smoke": ("shapes", 1), "laptop": ("cifar10", 5)}


def seconds(function: Callable, rounds: int) -> float:
    """The median time of a call, after one that is not counted."""
    function()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return median(times)


def runner(engine: str, file: bytes, images: torch.Tensor) -> Callable:
    """What is timed: one call of the engine on the images."""
    if not engine.startswith("twin"):
        net = tflite.network(file, engine)
        return lambda: net.codes(images)
    twin = tflite.twin(file)
    if engine == "twin":
        return lambda: torch.no_grad()(twin)(images)
    inputs = images.clone().requires_grad_()
    return lambda: torch.autograd.grad(twin(inputs).logsumexp(1).sum(), inputs)


def measure(dataset: str, rounds: int) -> pd.DataFrame:
    model = zoo.load("tiny", dataset).at(32)
    calibration = zoo.calibration_images(data.load(dataset, "train"))
    test = data.load(dataset, "test").floats(slice(0, 1000))
    with torch.no_grad():
        base = seconds(lambda: model(test[:100]), rounds) / 100
    rows = [{"file": "float", "engine": "PyTorch", "batch": 100, "ms_per_image": 1000 * base, "ratio_to_float": 1.0}]
    for name, (activations, bits) in FILES.items():
        file = tflite.convert(model, calibration, activations, bits)
        for engine, batches in BATCHES.items():
            for batch in batches:
                images = test[:batch]
                try:
                    spent = seconds(runner(engine, file, images), rounds) / len(images)
                except QpatchError as error:
                    print(f"{name}, {engine}: {error}")
                    break
                rows.append({"file": name, "engine": engine, "batch": batch, "ms_per_image": 1000 * spent,
                             "ratio_to_float": spent / base})  # fmt: skip
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", choices=PROFILES, default="laptop")
    parser.add_argument("--out", type=Path, help="folder of tflite_engines.csv (laptop: figures/benchmarks)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    table = measure(*PROFILES[arguments.profile])
    print(table.to_string(index=False, float_format="%.3f"))
    folder = arguments.out or (ROOT / "figures" / "benchmarks" if arguments.profile == "laptop" else None)
    if folder is not None:
        write_atomic(folder / "tflite_engines.csv", table.to_csv(index=False, float_format="%.4g"))
        print(f"wrote {folder / 'tflite_engines.csv'}")


if __name__ == "__main__":
    main()
