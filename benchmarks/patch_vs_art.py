"""Our GAP against ART's AdversarialPatchPyTorch: same network, images, patch size, steps and batch.

Both are Brown et al.'s patch with Adam, random places, ±22.5° and scale 0.9 to 1.1. ART runs at each of two step
sizes (its default of 5 grey levels, and ours) and the better one counts. The tools take turns, and both patches are
pasted by `apply_patch` at the same places in the same test images; for `asr_transformed` they are rotated and scaled
first, as in training.

    python -m benchmarks.patch_vs_art                    # CIFAR-10, the zoo's float network; about 5 minutes
    python -m benchmarks.patch_vs_art --profile smoke    # shapes and a small network; a minute, prints only
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from art.attacks.evasion import AdversarialPatchPyTorch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from qpatch import zoo
from qpatch.allocator import keep_freed_memory
from qpatch.attacks import GAP, Patch, apply_patch, make_mask, noise_patch, sample_places, transformed
from qpatch.data import balanced_subset, load
from qpatch.measure import attack_success
from qpatch.store import write_atomic

ROOT = Path(__file__).resolve().parents[1]
ROTATION, SCALE = 22.5, (0.9, 1.1)
OUR_RATE = 0.05
ART_RATES = (5 / 255, OUR_RATE)


@dataclass(frozen=True)
class Profile:
    dataset: str
    train: int  # images that the patch is made on: whole batches, because ART counts epochs
    test: int
    epochs: int
    seeds: int
    batch: int = 128
    size: int = 6
    goals: tuple[int | None, ...] = (None, 3)  # untargeted, and one target class

    @property
    def steps(self) -> int:
        return self.epochs * self.train // self.batch


PROFILES = {
    "smoke": Profile("shapes", train=320, test=100, epochs=3, seeds=1, batch=64),
    "laptop": Profile("cifar10", train=2560, test=2000, epochs=5, seeds=3),
}


def ours(net: nn.Module, images: Tensor, labels: Tensor, goal: int | None, seed: int, profile: Profile) -> Patch:
    attack = GAP(net, profile.size, target=goal, steps=profile.steps, batch=profile.batch, lr=OUR_RATE, seed=seed,
                 rotation=ROTATION, scale=SCALE)
    return attack.fit(images, labels)


def arts(
    net: nn.Module, images: Tensor, labels: Tensor, goal: int | None, seed: int, profile: Profile, rate: float
) -> Patch:
    torch.manual_seed(seed)
    np.random.seed(seed)  # ART draws its transformations from the global generators
    classes = int(labels.max()) + 1
    estimator = PyTorchClassifier(net, nn.CrossEntropyLoss(), tuple(images.shape[1:]), classes, clip_values=(0, 1),
                                  device_type="cpu")
    share = profile.size / images.shape[-1]  # ART's scale is relative to the image
    attack = AdversarialPatchPyTorch(
        estimator, rotation_max=ROTATION, scale_min=SCALE[0] * share, scale_max=SCALE[1] * share, learning_rate=rate,
        max_iter=profile.epochs, batch_size=profile.batch, patch_shape=(images.shape[1], profile.size, profile.size),
        patch_type="square", optimizer="Adam", targeted=goal is not None, verbose=False,
    )
    wanted = labels if goal is None else torch.full_like(labels, goal)
    pixels, _ = attack.generate(images.numpy(), np.eye(classes, dtype=np.float32)[wanted.numpy()])
    pixels = torch.from_numpy(np.asarray(pixels, dtype=np.float32)).clamp(0, 1)
    return Patch(pixels, make_mask("square", profile.size), goal).rounded()


def judge(net: nn.Module, patch: Patch, images: Tensor, labels: Tensor, goal: int | None) -> dict[str, float]:
    """Success of the plain patch, with interval, and of the rotated and scaled one."""
    generator = torch.Generator().manual_seed(0)
    places = sample_places("random", len(images), tuple(images.shape[-2:]), patch.size, generator)
    angle = (2 * torch.rand(len(images), generator=generator) - 1) * math.radians(ROTATION)
    scale = SCALE[0] + (SCALE[1] - SCALE[0]) * torch.rand(len(images), generator=generator)
    plain = attack_success(net, images, apply_patch(patch, images, places), labels, goal)
    turned = transformed(images, patch.pixels, patch.mask, places, angle, scale).clamp(0, 1)
    robust = attack_success(net, images, turned, labels, goal)
    return {"n": plain.n, "asr": plain.asr, "ci_low": plain.ci_low, "ci_high": plain.ci_high,
            "asr_transformed": robust.asr}


def compare(profile: Profile) -> pd.DataFrame:
    net = zoo.load("float", profile.dataset).at(32).eval()
    train, test = load(profile.dataset, "train"), load(profile.dataset, "test")
    images, labels = train.take(balanced_subset(train, profile.train))
    test_images, test_labels = test.take(balanced_subset(test, profile.test))
    tools: dict[str, Callable] = {"qpatch": ours}
    for rate in ART_RATES:
        tools[f"ART, lr {rate:.3f}"] = lambda *args, rate=rate: arts(*args, rate)
    rows = []
    for goal in profile.goals:
        name = "untargeted" if goal is None else f"class {goal}"
        for seed in range(profile.seeds):
            for tool, make in tools.items():
                start = time.perf_counter()
                patch = make(net, images, labels, goal, seed, profile)
                seconds = time.perf_counter() - start
                result = judge(net, patch, test_images, test_labels, goal)
                rows.append({"goal": name, "seed": seed, "tool": tool, "seconds": seconds, **result})
                print(f"{name}, seed {seed}, {tool}: success {result['asr']:.3f}, {seconds:.1f} s", flush=True)
            noise = judge(net, noise_patch(profile.size, images.shape[1], seed=seed), test_images, test_labels, goal)
            rows.append({"goal": name, "seed": seed, "tool": "noise patch", "seconds": math.nan, **noise})
    return pd.DataFrame(rows)


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Per goal and tool: mean success over the seeds, and time relative to ours."""
    table = rows.groupby(["goal", "tool"], sort=False)[["asr", "asr_transformed", "seconds"]].mean().reset_index()
    own = table[table["tool"] == "qpatch"].set_index("goal")["seconds"]
    return table.assign(time_ratio=table["seconds"] / table["goal"].map(own))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", choices=PROFILES, default="laptop")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch")
    parser.add_argument("--out", type=Path, help="folder of patch_vs_art.csv (laptop: figures/benchmarks)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    profile = PROFILES[arguments.profile]
    rows = compare(profile)
    table = summary(rows)
    print(f"\n{profile.dataset}, {profile.size}×{profile.size}, {profile.steps} steps of {profile.batch} images, "
          f"{profile.seeds} seed(s), {profile.test} test images\n")
    print(table.to_string(index=False, float_format="%.3f"))
    for goal, group in table.groupby("goal", sort=False):
        success = group.set_index("tool")["asr"]
        best = success[success.index.str.startswith("ART")].max()
        print(f"{goal}: ours {success['qpatch']:.3f}, ART's better one {best:.3f}: "
              f"{'at least as often' if success['qpatch'] >= best else 'LESS OFTEN'}")
    folder = arguments.out or (ROOT / "figures" / "benchmarks" if arguments.profile == "laptop" else None)
    if folder is not None:
        write_atomic(folder / "patch_vs_art.csv", rows.to_csv(index=False, float_format="%.6g"))
        print(f"wrote {folder / 'patch_vs_art.csv'}")


if __name__ == "__main__":
    main()
