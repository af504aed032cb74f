"""One network under many quantization policies, each as its attackers meet it; the rows of notebook 16.

All start from `tiny`. Post-training rows hold its very weights; fine-tuned rows were trained on under their policy.
A control of each fine-tuned row has the same weights and the same rounding of the image, but sixteen bits elsewhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from qpatch import data, store
from qpatch.attacks.patch import round_to_bytes
from qpatch.attacks.pixel import Probabilities
from qpatch.errors import one_of
from qpatch.quant import Policy, post_training_quantize, tflite
from qpatch.quant.multibit import QuantizedLayer
from qpatch.quant.quantizers import Float
from qpatch.quant.widen import widened
from qpatch.zoo.calibration import calibration_images
from qpatch.zoo.networks import load

_POST_TRAINING = {"symmetric": Policy("symmetric"), "asymmetric": Policy("asymmetric", range="max")}
_TFLITE = {"int8": ("int8", 8), "int16x8": ("int16", 8), "int8-w4": ("int8", 4)}
TUNED = tuple(f"{name}-{bits}" for name in ("symmetric", "asymmetric", "dorefa", "pact", "lsq") for bits in (8, 4)) + (
    "lsq-2", "binaryconnect-1")  # fmt: skip


@dataclass(frozen=True)
class PolicyEntry:
    """One row of the comparison.

    Attributes:
        name: how to ask for it.
        policy: what it is called in tables.
        bits: of the weights, and of the activations where these are quantized; 32 is float.
        training: "not quantized", "post-training" or "fine-tuned".
        control: the row with the same weights and the same rounding of the image that rounds nothing else; "" if none.
    """

    name: str
    policy: str
    bits: int
    training: str
    control: str = ""

    @property
    def is_control(self) -> bool:
        """Whether it is no policy but the control of one."""
        return self.name == "float-rounded" or self.name.endswith("-wide")

    @property
    def label(self) -> str:
        """A short name for figures."""
        if self.policy.startswith("TFLite"):
            return f"{self.policy}, 4-bit weights" if self.bits == 4 else self.policy
        return self.policy if self.bits == 32 else f"{self.bits}-bit {self.policy}"


@dataclass(frozen=True, eq=False)
class Contender:
    """A network as its attackers meet it.

    Attributes:
        entry: which row it is.
        net: what is judged: the integers of the .tflite, or the view; images to scores.
        gradient: images to logits with a (straight-through) gradient, for white-box attacks.
        scores: images to probabilities, from the logits, in as fine steps as these have; for query attacks.
        output: the same as a file tells them that ends in a softmax, as paper C's do, where a row has such an output;
            else None.
        fingerprint: of its weights or of its file.

    `net` has a method `received` if it rounds its images.
    """

    entry: PolicyEntry
    net: nn.Module
    gradient: nn.Module
    scores: nn.Module
    output: nn.Module | None
    fingerprint: str


class Behind(nn.Module):
    """A network behind a rounding of its images; the gradient passes straight through.

    Args:
        net: images to logits.
        rounding: images to what the network receives.
    """

    def __init__(self, net: nn.Module, rounding: Callable[[Tensor], Tensor]):
        super().__init__()
        self.net, self.rounding = net, rounding
        self.train(net.training)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images + (self.rounding(images) - images).detach())

    def received(self, images: Tensor) -> Tensor:
        """What the network gets: float32 of the images' shape, in their units."""
        return self.rounding(images)


class Logits(nn.Module):
    """A .tflite as a network that gives the scores before its softmax."""

    def __init__(self, net: tflite.Network):
        super().__init__()
        self.net = net
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.net.logits(images)


class InSteps(nn.Module):
    """A network that tells its scores as coarsely as an int8 file: logits in steps, probabilities in steps of 1/256.

    Args:
        net: images to logits.
        step: of the logits.
    """

    def __init__(self, net: nn.Module, step: float):
        super().__init__()
        self.net, self.step = net, step
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        logits = (self.net(images) / self.step).round() * self.step
        return (logits.softmax(dim=1) * 256).round().clamp_max(255) / 256


def _entries() -> dict[str, PolicyEntry]:
    rows = [
        PolicyEntry("float", "float", 32, "not quantized"),
        PolicyEntry("float-rounded", "float, image rounded", 32, "not quantized"),
    ]
    for name, (_, bits) in _TFLITE.items():
        control = "float" if name == "int16x8" else "float-rounded"
        title = "TFLite int16×8" if name == "int16x8" else "TFLite int8"
        rows.append(PolicyEntry(f"tflite-{name}", title, bits, "post-training", control))
    rows += [PolicyEntry(f"ptq-{name}-{bits}", name, bits, "post-training", "float-rounded")
             for name in _POST_TRAINING for bits in (8, 4, 2)]  # fmt: skip
    titles = {"dorefa": "DoReFa", "pact": "PACT", "lsq": "LSQ", "binaryconnect": "BinaryConnect"}
    for name in TUNED:
        kind, _, bits = name.rpartition("-")
        wide = "" if kind == "binaryconnect" else f"tuned-{name}-wide"
        rows.append(PolicyEntry(f"tuned-{name}", titles.get(kind, kind), int(bits), "fine-tuned", wide))
        if wide:
            rows.append(PolicyEntry(wide, f"{titles.get(kind, kind)}, widened", int(bits), "fine-tuned"))
    return {row.name: row for row in rows}


POLICIES = _entries()


def contender(name: str, dataset: str = "cifar10", *, retrain: bool = False) -> Contender:
    """The network of one row, in eval mode.

    Args:
        name: one of `POLICIES`.
        dataset: "cifar10", or "shapes" for smoke runs.
        retrain: make the zoo's networks anew.

    Raises:
        ParameterError: no such row.
        DataError: calibration needs CIFAR-10 and it is not to be had.
    """
    entry = POLICIES[one_of(name, POLICIES, "policy")]
    kind, _, rest = name.partition("-")
    if kind == "tflite":
        activations, bits = _TFLITE[rest]
        parts = _float(dataset, retrain), _calibration(dataset), activations, bits
        file, whole = (tflite.convert(*parts, softmax=softmax) for softmax in (False, True))
        judge = tflite.network(file)
        fingerprint = hashlib.sha256(file + whole).hexdigest()
        return Contender(entry, judge, tflite.twin(file), Probabilities(Logits(judge)), tflite.network(whole), fingerprint)
    view, output = _view(kind, rest, dataset, retrain), None
    if name == "float-rounded":
        output = InSteps(view, contender("tflite-int8", dataset, retrain=retrain).gradient.step)
    return Contender(entry, view, view, Probabilities(view), output, store.tensors_fingerprint(view.state_dict()))


def _view(kind: str, rest: str, dataset: str, retrain: bool) -> nn.Module:
    if kind == "float":
        net = _float(dataset, retrain)
        return Behind(net, round_to_bytes) if rest else net
    policy, bits = rest.removesuffix("-wide").split("-")
    if kind == "ptq":
        model = _float(dataset, retrain)
        net = post_training_quantize(model, _calibration(dataset), [int(bits)], _POST_TRAINING[policy])
    else:
        stored = f"tiny-{policy}" if policy == "binaryconnect" else f"tiny-{policy}-{bits}"
        net = load(stored, dataset, retrain=retrain)
    view = net.at(int(bits))
    view = widened(view) if rest.endswith("-wide") else view
    first = next(layer for layer in view.modules() if isinstance(layer, QuantizedLayer)).input_quantizer
    return view if isinstance(first, Float) else Behind(view, first).eval()


def _float(dataset: str, retrain: bool) -> nn.Module:
    return load("tiny", dataset, retrain=retrain).at(32)


def _calibration(dataset: str) -> Tensor:
    return calibration_images(data.load(dataset, "train"))
