"""PGD of paper C's thirteen sizes, made on a float network: the adversarial images, and who is fooled by them.

Twenty restarts take an hour or more on two cores, so what ships, in `sweeps/`, is who is right about which image; the
noisy images themselves are too large. `python -m qpatch.zoo sweeps` makes them again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn import functional as F

from qpatch import store
from qpatch.attacks.pixel import BATCH, attack, published
from qpatch.errors import one_of
from qpatch.measure.stats import wilson
from qpatch.measure.success import predict
from qpatch.zoo import networks
from qpatch.zoo.deployed import deploy
from qpatch.zoo.tasks import TASKS

FOLDER = Path(__file__).parent / "sweeps"
EPSILONS = (0.0, 2e-4, 4e-4, 6e-4, 8e-4, 1e-3, 2e-3, 3e-3, 4e-3, 5e-3, 6e-3, 7e-3, 8e-3)
NORMS = ("L0", "L1", "L2", "Linf")
FIRST = ", one restart"
REACH = 0.25
"""A restart is tried only where the first one left a margin below this share of the margin that it took away.

Chosen on CIFAR-10, where all 20 restarts were run on all images for ε = 0.003 to 0.008: of the 44 images that a later
restart fooled, the one farthest away had 0.072 left. The loss is nearly linear in so little noise.
"""


@dataclass(frozen=True)
class Sweep:
    """One sweep over ε.

    Attributes:
        task: one of `qpatch.zoo.TASKS`: its float network makes the noise.
        images: the first so many test images, as in paper C.
        restarts: of PGD, 20 in paper C; all else is as published.
        shifted: attack images that were shifted by a random part of a pixel, and so lie off the lattice of k/255.
        seed: of PGD's starts and of the shifts.
    """

    task: str
    images: int
    restarts: int
    shifted: bool = False
    seed: int = 0

    @property
    def path(self) -> Path:
        return FOLDER / f"pgd-{self.task}{'-shifted' if self.shifted else ''}.safetensors"


STANDARD = {"cifar10": (1000, 20), "coffee": (500, 5), "vww": (200, 1), "shapes": (60, 1)}
"""Images and restarts of each task's sweep; the paper has 1,000 and 20 for every task."""


def standard(task: str, shifted: bool = False) -> Sweep:
    """The sweep of a task that notebook 12 shows; shifted images, which are a control, get one restart."""
    images, restarts = STANDARD[one_of(task, STANDARD, "task")]
    return Sweep(task, images, 1 if shifted else restarts, shifted)


SHIPPED = {made.path.stem: made for made in (standard("cifar10"), standard("cifar10", True), standard("coffee"))}


@dataclass(frozen=True, eq=False)
class Verdicts:
    """Who is right about which image.

    Attributes:
        sweep: what was run.
        epsilons: E sizes of the noise, in [0, 1] image units.
        right: view → bool (E, N): the view classifies the image correctly. A name that ends in `FIRST` is for the noise
            of the first restart alone.
        norms: "made" (in float) and "received" (after rounding to 1/255) → float64 (E, 4, 2): mean and largest of the
            noise in L0, L1, L2 and L∞, in [0, 1] image units.
        card: where they come from.
    """

    sweep: Sweep
    epsilons: tuple[float, ...]
    right: Mapping[str, Tensor]
    norms: Mapping[str, Tensor]
    card: dict

    def table(self) -> pd.DataFrame:
        """One row per ε and view: accuracy, Wilson interval, n."""
        rows = []
        for view, right in self.right.items():
            for epsilon, hits in zip(self.epsilons, right.sum(dim=1).tolist()):
                low, high = wilson(hits, right.shape[1])
                rows.append({"task": self.sweep.task, "epsilon": epsilon, "view": view, "n": right.shape[1],
                             "accuracy": hits / right.shape[1], "ci_low": low, "ci_high": high})  # fmt: skip
        return pd.DataFrame(rows)

    def norm_table(self) -> pd.DataFrame:
        """One row per ε: mean and largest norm of the noise, as made and as received."""
        rows = [{"task": self.sweep.task, "epsilon": epsilon} for epsilon in self.epsilons]
        for where, norms in self.norms.items():
            for row, of_size in zip(rows, norms.tolist()):
                for name, (mean, largest) in zip(NORMS, of_size):
                    row |= {f"{name}_{where}": mean, f"{name}_{where}_max": largest}
        return pd.DataFrame(rows)


class RoundedInput(nn.Module):
    """A network whose input is first rounded to the nearest of 0, 1/steps, 2/steps, …, 1, halves upwards.

    With 255 steps this is what an int8 network of paper C does to its input (scale 1/255), with 32,767 an int16 one,
    and nothing else of quantization. It has no useful gradient.
    """

    def __init__(self, net: nn.Module, steps: int):
        super().__init__()
        self.net, self.steps = net, steps
        self.train(net.training)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(self.received(images))

    def received(self, images: Tensor) -> Tensor:
        """What the network inside gets."""
        return torch.floor(images * self.steps + 0.5).clamp(0, self.steps) / self.steps


def clean_images(sweep: Sweep) -> tuple[Tensor, Tensor]:
    """The images that are attacked, float32 in [0, 1], and their labels."""
    test = TASKS[sweep.task].load("test")
    images, labels = test.take(slice(0, sweep.images))
    return (shift_within_pixel(images, sweep.seed) if sweep.shifted else images), labels


def shift_within_pixel(images: Tensor, seed: int) -> Tensor:
    """Each image moved up and left by two random parts of a pixel, bilinearly, the border repeated.

    A stand-in for the random rotation and zoom of paper C's loader for Visual Wake Words: values are then no multiples
    of 1/255 any more.
    """
    generator = torch.Generator().manual_seed(seed)
    up, left = torch.rand(2, len(images), 1, 1, 1, generator=generator).to(images)
    rows = F.pad(images, (0, 1, 0, 1), mode="replicate")
    rows = (1 - up) * rows[:, :, :-1] + up * rows[:, :, 1:]
    return ((1 - left) * rows[..., :-1] + left * rows[..., 1:]).clamp(0, 1)


def views(task: str, net: nn.Module) -> dict[str, nn.Module]:
    """Name → network that is shown the noise: the float network, its int16 and int8 files, and two controls.

    The controls are the float network with nothing but its input rounded, as the int8 and the int16 file round theirs.
    """
    calibration = networks.calibration_images(TASKS[task].load("train"))
    controls = {"float, input 1/255": RoundedInput(net, 255), "float, input 1/32767": RoundedInput(net, 32767)}
    return deploy(net, calibration) | controls


def adversarial(sweep: Sweep, epsilon: float, net: nn.Module | None = None) -> tuple[Tensor, Tensor]:
    """The noisy images: of the first restart alone, and of all; float32 (N, C, H, W) in [0, 1].

    An image that a restart has fooled gets no other, and neither does one that is out of `REACH`; an image that none
    fools keeps the first restart's noise.

    Args:
        net: the float network that the noise is made on; the task's own by default.
    """
    net = TASKS[sweep.task].network() if net is None else net
    images, labels = clean_images(sweep)
    if epsilon == 0:
        return images, images
    net = fuse(net).eval()  # BatchNorm goes into the convolutions: the same function, a third faster
    images = images.contiguous(memory_format=torch.channels_last)
    size = BATCH if images.shape[-1] <= 100 else BATCH // 5  # a large batch of large images is three times slower

    def pgd(index: Tensor, restarts: int, seed: int) -> Tensor:
        run = {"eps": epsilon, "task": TASKS[sweep.task].parameters, "restarts": restarts}
        parts = [attack("PGD", net, images[k], labels[k], seed=seed + int(k[0]), **run) for k in index.split(size)]
        return torch.cat(parts)

    first = pgd(torch.arange(len(images)), 1, sweep.seed)
    every, left, before = first.clone(), _margins(net, first, labels), _margins(net, images, labels)
    near = torch.nonzero((left >= 0) & (left < REACH * (before - left))).flatten()
    if sweep.restarts > 1 and len(near):
        tried = pgd(near, sweep.restarts - 1, sweep.seed + 10**6)
        fooled = _margins(net, tried, labels[near]) < 0
        every[near[fooled]] = tried[fooled]
    return first, every


@torch.no_grad()
def _margins(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Score of the true class minus the best other one, (N,); negative where the network is wrong."""
    scores = torch.cat([net(part) for part in images.split(BATCH)])
    true = scores.gather(1, labels[:, None])
    return (true - scores.scatter(1, labels[:, None], -torch.inf).amax(1, keepdim=True)).flatten()


def judge(
    sweep: Sweep, epsilons: Iterable[float], net: nn.Module, shown: Mapping[str, nn.Module], stored: bool = True
) -> Verdicts:
    """Make the noise of every ε and show it to every view.

    Args:
        epsilons: sizes in [0, 1] image units; any iterable, for instance one that shows progress.
        net: the float network that the noise is made on.
        shown: view → network in eval mode, logits or probabilities.
        stored: keep the verdicts of each ε in the store, so that a long sweep can be interrupted.
    """
    card = _card(sweep, net, shown)

    def of_size(epsilon: float) -> dict[str, Tensor]:
        if not stored:
            return _verdicts(sweep, epsilon, net, shown)
        make = lambda: (_verdicts(sweep, epsilon, net, shown), {})  # noqa: E731
        return store.fetch("pgd", card | {"epsilon": epsilon}, make)[0]

    found = {epsilon: of_size(epsilon) for epsilon in epsilons}
    names = next(iter(found.values()))
    tensors = {name: torch.stack([own[name] for own in found.values()]) for name in names}
    return _from_tensors(sweep, tensors | {"epsilon": torch.tensor(list(found), dtype=torch.float64)}, card)


def load(sweep: Sweep, epsilons: Iterable[float] = EPSILONS, retrain: bool = False) -> Verdicts:
    """A whole sweep: the shipped one if it is this one, or one made now and kept in the store.

    Args:
        epsilons: for one that is made now.
        retrain: make the network and the sweep anew; hours, with all restarts.

    Raises:
        DataError: the task's data are not on this machine.
        StoreError: a shipped sweep is damaged.
    """
    if sweep.path.exists() and not retrain:
        tensors, card = store.load_tensors(sweep.path)
        if card["sweep"] == asdict(sweep):
            return _from_tensors(sweep, tensors, card)
    net = TASKS[sweep.task].network(retrain)
    return judge(sweep, epsilons, net, views(sweep.task, net))


def ship(sweep: Sweep) -> None:
    """Make the sweep, or take it from the store, and write it into the package."""
    net = TASKS[sweep.task].network()
    made = judge(sweep, EPSILONS, net, views(sweep.task, net))
    tensors = {f"right: {view}": right for view, right in made.right.items()}
    tensors |= {f"norms: {where}": norms for where, norms in made.norms.items()}
    tensors["epsilon"] = torch.tensor(made.epsilons, dtype=torch.float64)
    store.save_tensors(sweep.path, tensors, made.card)


def _verdicts(sweep: Sweep, epsilon: float, net: nn.Module, shown: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    images, labels = clean_images(sweep)
    first, every = adversarial(sweep, epsilon, net)
    tensors = {f"right: {view}": predict(network, every) == labels for view, network in shown.items()}
    if sweep.restarts > 1:
        tensors |= {f"right: {view}{FIRST}": predict(network, first) == labels for view, network in shown.items()}
    received = RoundedInput(net, 255).received
    noise = {"made": every - images, "received": received(every) - received(images)}
    return tensors | {f"norms: {where}": _norms(change) for where, change in noise.items()}


def _norms(noise: Tensor) -> Tensor:
    """Mean and largest L0, L1, L2 and L∞ over the images: float64 (4, 2)."""
    flat = noise.flatten(1).double().abs()
    each = torch.stack([(flat > 0).double().sum(1), flat.sum(1), flat.norm(dim=1), flat.amax(1)])
    return torch.stack([each.mean(dim=1), each.amax(dim=1)], dim=1)


def _from_tensors(sweep: Sweep, tensors: Mapping[str, Tensor], card: dict) -> Verdicts:
    parts = {"right: ": {}, "norms: ": {}}
    for prefix, part in parts.items():
        part |= {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return Verdicts(sweep, tuple(tensors["epsilon"].tolist()), parts["right: "], parts["norms: "], card)


def _card(sweep: Sweep, net: nn.Module, shown: Mapping[str, nn.Module]) -> dict:
    """What decides the verdicts, but ε: for the card of a sweep and the keys of its parts."""
    fingerprints = {name: store.tensors_fingerprint(view.state_dict()) for name, view in {"": net, **shown}.items()}
    return {
        "sweep": asdict(sweep),
        "parameters": published("PGD", TASKS[sweep.task].parameters, restarts=sweep.restarts),
        "network": fingerprints.pop(""),
        "views": fingerprints,
        "data": TASKS[sweep.task].load("test").fingerprint,
        "torchattacks": version("torchattacks"),
    }
