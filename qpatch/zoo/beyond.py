"""Paper C's attacks on what is no picture: a keyword spotter and a table's network, at three precisions.

Every network is small enough to be attacked on the spot, so nothing but the two float networks ships.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pandas as pd
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from qpatch.attacks import pixel
from qpatch.attacks.pixel import small
from qpatch.errors import one_of
from qpatch.measure import boundary
from qpatch.measure.arrival import arrival, margins
from qpatch.measure.gradient_rows import bootstrap
from qpatch.measure.integers import deployed_rows
from qpatch.measure.stats import median_ratio, wilson
from qpatch.measure.success import predict
from qpatch.quant import tflite
from qpatch.zoo.calibration import calibration_images
from qpatch.zoo.deployed import files
from qpatch.zoo.policies import InSteps
from qpatch.zoo.sweep import RoundedInput
from qpatch.zoo.tasks import TASKS, Task

STEP = 1 / 255
"""One input step of an int8 file, as a share of a feature's range over the training inputs."""

FEATURES = ("as measured", "as bytes")
ROUNDED = "float, input rounded"
COARSE = "float, input and scores rounded"
BEFORE = "int8, before its softmax"


@dataclass(frozen=True, eq=False)
class Bench:
    """One task with its network at three precisions, and the test inputs that are attacked.

    Attributes:
        task: see `qpatch.zoo.TASKS`.
        float: the float network.
        calibration: the training inputs from which its files take their ranges.
        files: precision → .tflite that gives logits.
        images, labels: float32 (N, 1, H, W) in [0, 1] and int64 (N,): the first test inputs.
    """

    task: Task
    float: nn.Module
    calibration: Tensor
    files: Mapping[str, bytes]
    images: Tensor
    labels: Tensor

    @property
    def views(self) -> dict[str, nn.Module]:
        """Name → network that is shown the noise: three precisions, and the float network behind the int8 rounding."""
        integers = {name: tflite.network(self.files[name]) for name in ("int16", "int8")}
        return {"float": self.float, **integers, ROUNDED: RoundedInput(self.float, 255)}

    @property
    def maker(self) -> nn.Module:
        """The float network with BatchNorm in its convolutions, on which noise is made: the same function, twice as fast."""
        return fuse(self.float).eval()

    def features(self, kind: str) -> Tensor:
        """The inputs as they were measured, or as a recorder would keep them that stores each feature as a byte."""
        one_of(kind, FEATURES, "kind of features")
        return self.images if kind == FEATURES[0] else RoundedInput(self.float, 255).received(self.images)


def bench(task: str, inputs: int, retrain: bool = False) -> Bench:
    """A task, ready to be attacked on its first `inputs` test inputs, or on all if there are fewer.

    Raises:
        DataError: its data are not on this machine; the message says how to get them.
    """
    chosen = TASKS[one_of(task, TASKS, "task")]
    net = chosen.network(retrain)
    calibration = calibration_images(chosen.load("train"))
    made = files(net, calibration, ("int16", "int8"))
    return Bench(chosen, net, calibration, made, *chosen.load("test").take(slice(0, inputs)))


def clean_rows(of: Bench) -> pd.DataFrame:
    """Clean accuracy of every view, and its change against float, see `measure.deployed_rows`."""
    return deployed_rows(of.views, of.images, of.labels).assign(task=of.task.name)


def noise_rows(of: Bench, sizes: Iterable[float], features: str, seed: int = 0) -> pd.DataFrame:
    """PGD made on the float network (paper C's 20 steps of ε/10, one restart), shown to every view.

    Args:
        sizes: of the noise, in input steps of 1/255.
        features: see `Bench.features`.
        seed: of PGD's starts and of the bootstrap.

    Returns:
        One row per size and view: accuracy with Wilson interval, and the share of the noise's effect that arrives, see
        `measure.arrival`.
    """
    images, views, rows = of.features(features), of.views, []
    maker, before = of.maker, {name: margins(view, images, of.labels) for name, view in views.items()}
    for size in sizes:
        noisy = pixel.attack("PGD", maker, images, of.labels, seed=seed, eps=size * STEP, restarts=1)
        after = {name: margins(view, noisy, of.labels) for name, view in views.items()}
        drops = {name: before[name] - after[name] for name in views}
        for name, view in views.items():
            right, n = int((predict(view, noisy) == of.labels).sum()), len(noisy)
            low, high = wilson(right, n)
            share, share_low, share_high = arrival(drops[name], drops["float"], seed)
            rows.append({"task": of.task.name, "features": features, "steps": size, "view": name, "n": n,
                         "accuracy": right / n, "accuracy_low": low, "accuracy_high": high,
                         "arrives": share, "arrives_low": share_low, "arrives_high": share_high})  # fmt: skip
    return pd.DataFrame(rows)


def square_rows(of: Bench, size: float, queries: int, seed: int = 0) -> pd.DataFrame:
    """Square, asking each network itself for its probabilities.

    `BEFORE` are the int8 file's logits, scaled back, with a float softmax. "int8" is the file as paper C has it, with a
    softmax in steps of 1/256. `COARSE` is the float network, which rounds its input and tells its scores as that file.

    Args:
        size: of the noise, in input steps of 1/255.
        queries: most squares per input.
        seed: of the draws and of the bootstrap.

    Returns:
        One row per network: accuracy under the attack with Wilson interval; `reach`, of the inputs that it gets right
        when clean the share that is fooled; `gap` with interval, its accuracy minus that of `COARSE`, input by input.
    """
    asked = {
        "float": pixel.Probabilities(of.float),
        BEFORE: tflite.network(of.files["int8"]),
        "int8": tflite.network(tflite.convert(of.float, of.calibration, "int8", softmax=True)),
        COARSE: InSteps(RoundedInput(of.float, 255), tflite.twin(of.files["int8"]).step),
    }
    right, rows = {}, []
    for name, net in asked.items():
        made = small.square(net, of.images, of.labels, eps=size * STEP, queries=queries, seed=seed)
        right[name] = predict(net, made) == of.labels
    for name, net in asked.items():
        clean, n = predict(net, of.images) == of.labels, len(of.labels)
        low, high = wilson(int(right[name].sum()), n)
        gap, gap_low, gap_high = bootstrap(right[name].double() - right[COARSE].double(), seed=seed)
        reach = float((~right[name][clean]).double().mean())
        rows.append({"task": of.task.name, "view": name, "steps": size, "n": n, "accuracy": float(right[name].double().mean()),
                     "low": low, "high": high, "reach": reach, "gap": gap, "gap_low": gap_low, "gap_high": gap_high})  # fmt: skip
    return pd.DataFrame(rows)


def distance_rows(of: Bench, search: int, seed: int = 0) -> pd.DataFrame:
    """The L2 distance to the boundary, see `measure.boundary`, each input against itself on another network.

    Args:
        search: gradient steps of the search.
        seed: of the bootstrap.

    Returns:
        One row per pair of networks and measure, "handed in" or "received": the first one's median distance, and the
        median of the ratios with interval.
    """
    maker = of.maker
    judged = {"float": (of.float, maker), ROUNDED: (RoundedInput(of.float, 255), maker),
              "int8": (tflite.network(of.files["int8"]), tflite.twin(of.files["int8"]))}  # fmt: skip
    made = boundary.minimal_change(maker, of.images, of.labels, steps=search)
    found = {name: boundary.boundary_distance(net, of.images, of.labels, gradient=gradient, directions=[made], steps=search)
             for name, (net, gradient) in judged.items()}  # fmt: skip
    rows = []
    for name, versus in ((ROUNDED, "float"), ("int8", "float"), ("int8", ROUNDED)):
        for measured, part in (("handed in", "distance"), ("received", "received")):
            mine, other = getattr(found[name], part), getattr(found[versus], part)
            rows.append({"task": of.task.name, "view": name, "versus": versus, "measured": measured,
                         "distance": float(mine[mine.isfinite()].median()), **median_ratio(mine, other, seed)})  # fmt: skip
    return pd.DataFrame(rows)


def answers(clean: pd.DataFrame, noise: pd.DataFrame, square: pd.DataFrame, distance: pd.DataFrame) -> pd.DataFrame:
    """What the ledger's rule for C-OQ3 reads: one row per task, question and view, with value, interval and n.

    "clean": accuracy minus float's. "arrives": share of the noise's effect on float. "square": accuracy minus that of
    `COARSE`. "distance": ratio to `ROUNDED`, as handed in.
    """
    ratio = distance[(distance["versus"] == ROUNDED) & (distance["measured"] == "handed in")]
    parts = {
        "clean": clean.rename(columns={"change": "value", "value": "_", "low": "_low", "high": "_high",
                                       "change_low": "low", "change_high": "high"}),
        "arrives": noise.rename(columns={"arrives": "value", "arrives_low": "low", "arrives_high": "high"}),
        "square": square.drop(columns=["low", "high"]).rename(columns={"gap": "value", "gap_low": "low", "gap_high": "high"}),
        "distance": ratio.rename(columns={"ratio": "value", "ratio_low": "low", "ratio_high": "high"}),
    }  # fmt: skip
    columns = ["question", "task", "features", "view", "steps", "value", "low", "high", "n", "reach"]
    defaults = {"features": FEATURES[0], "steps": 0.0, "reach": 1.0}
    rows = [rows.assign(question=name, **{key: value for key, value in defaults.items() if key not in rows})[columns]
            for name, rows in parts.items()]  # fmt: skip
    return pd.concat(rows, ignore_index=True)
