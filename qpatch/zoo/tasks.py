"""Paper C's three tasks, and two beyond images: which network on which data, and whether both are on this machine."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from qpatch import data
from qpatch.data import Dataset, coffee, vww
from qpatch.errors import DataError, one_of
from qpatch.zoo import mlperf, networks


@dataclass(frozen=True)
class Task:
    """One task of paper C, or one beyond it, as this project can run it.

    Attributes:
        name: as in the tables.
        title: for figures and prose.
        zoo: name of the float network in the zoo, or of MLPerf Tiny's (`qpatch.zoo.mlperf`) after "mlperf:".
        dataset: for `qpatch.data.load`.
        classes: number of classes.
        size: longer side of the images, in pixels or features.
        parameters: the task whose attack parameters apply.
        note: what differs from the paper.
    """

    name: str
    title: str
    zoo: str
    dataset: str
    classes: int
    size: int
    parameters: str
    note: str = ""

    def load(self, split: str) -> Dataset:
        """The data, "train" or "test".

        Raises:
            DataError: they are not on this machine; the message says how to get them.
        """
        return data.load(self.dataset, split)

    def network(self, retrain: bool = False) -> nn.Module:
        """The float network in eval mode: [0, 1] images to logits.

        Raises:
            DataError: MLPerf Tiny's weights are not on this machine; the message says how to get them.
        """
        kind, _, name = self.zoo.rpartition(":")
        if kind == "mlperf":
            return mlperf.load(name)
        return networks.load(name, self.dataset, retrain=retrain).at(32)


_TASKS = (
    Task("cifar10", "CIFAR-10", "tiny", "cifar10", 10, 32, "cifar10", "own weights"),
    Task("vww", "Visual Wake Words", "mlperf:mobilenetv1_025", "vww", 2, 96, "vww", "the paper's own weights"),
    Task("coffee", "coffee leaves", "coffee-cnn", "coffee", 5, 224, "coffee", "public leaves, 5 classes, own weights"),
    Task("speech", "spoken digits", "speech-dscnn", "speech", 10, 16, "cifar10", "beyond images: MFCC of 16 frames"),
    Task("tumours", "tumours", "tumours-mlp", "tumours", 2, 10, "cifar10", "beyond images: a table of 30 features"),
    Task("shapes", "shapes", "tiny", "shapes", 10, 32, "cifar10", "procedural stand-in for CIFAR-10, for smoke runs"),
)
TASKS = {task.name: task for task in _TASKS}


def available(name: str) -> tuple[bool, str]:
    """Whether a task's data and network are on this machine; if not, what to do about it.

    Raises:
        ParameterError: no such task.
    """
    task = TASKS[one_of(name, TASKS, "task")]
    try:
        if task.dataset == "vww":
            vww.folder()
            mlperf.path(mlperf.SOURCES["mobilenetv1_025"].weights)
        elif task.dataset == "coffee":
            coffee.folder()
        else:
            task.load("test")
    except DataError as error:
        return False, str(error)
    return True, ""
