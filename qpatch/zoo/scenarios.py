"""Seen and unseen patches, defined once for all defenses.

A defense of papers A and B has trained with patches of one size, under one rule of place, untargeted, and (but for
A-QAPA) made at one width: the setting "seen". Every other setting changes one of these, and "all" changes them all.

| kind    | size | place  | target    | made at            |
|---------|------|--------|-----------|--------------------|
| seen    | 6    | away   | none      | float              |
| width   | 6    | away   | none      | another width      |
| size 8  | 8    | away   | none      | float              |
| size 10 | 10   | away   | none      | float              |
| place   | 6    | center | none      | float              |
| target  | 6    | away   | class 3   | float              |
| all     | 10   | center | class 3   | another width      |

The other attack is a column of its own: patches in training are plain image-specific ones, LaVAN's way; GAP adds
rotation and scale, and both are made here as universal patches, on images that are not the judged ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import nn

from qpatch.attacks import GAP, LaVAN
from qpatch.defenses import NoisyActivations, RandomPrecision
from qpatch.errors import DataError, one_of
from qpatch.quant import WIDTHS, fused
from qpatch.zoo.networks import load, shipped
from qpatch.zoo.recipes import entry
from qpatch.zoo.remote import on_chosen_device

ATTACKS = {"LaVAN": LaVAN, "GAP": GAP}
MEAN = "mean"
"""The source of a patch that was made on all widths: every image of every step meets a width drawn at random."""


class Setting(NamedTuple):
    """What a patch is like: side in pixels, rule of place, target class or None."""

    size: int = 6
    place: str = "away"
    target: int | None = None


SETTINGS = {
    "seen": Setting(), "size 8": Setting(size=8), "size 10": Setting(size=10), "place": Setting(place="center"),
    "target": Setting(target=3), "all": Setting(10, "center", 3),
}  # fmt: skip
KINDS = ("seen", "width", "size 8", "size 10", "place", "target", "all")
OTHER_WIDTH = 4  # at which the surrogate makes the patches of "all"
SURROGATE = "joint"  # undefended, and what every defended network was trained on from: the strongest one for a transfer
SEEDS = 3
SEEDS_OF = {f"triqdef-without-{part}": 2 for part in ("fdp", "fdp-s1", "gpdp", "gpdp-s1", "bact")}
"""Fewer patches of each kind on networks that stand in the ablation only, where most rows are trained twice."""


@dataclass(frozen=True)
class Shot:
    """One universal patch.

    Attributes:
        attack: one of `ATTACKS`.
        setting: one of `SETTINGS`.
        source: the width of the view that it is made on, as text, or `MEAN`.
        seed: of the attack.
    """

    attack: str
    setting: str
    source: str
    seed: int

    def __post_init__(self):
        one_of(self.attack, ATTACKS, "attack")
        one_of(self.setting, SETTINGS, "setting")
        one_of(self.source, (*map(str, WIDTHS), MEAN), "source")

    @property
    def kind(self) -> str:
        """The row of the module's table; patches made on all widths count under their setting."""
        return "width" if self.setting == "seen" and self.source not in ("32", MEAN) else self.setting


def own_shots(seeds: int = SEEDS) -> list[Shot]:
    """Patches made on the defended network itself: seen ones at every width and on all, unseen ones on all widths."""
    made_at = {"seen": (*map(str, WIDTHS), MEAN)}
    return _shots({name: made_at.get(name, (MEAN,)) for name in SETTINGS}, seeds)


def surrogate_shots(seeds: int = SEEDS) -> list[Shot]:
    """Patches made on the undefended network, as in papers A and B: on its float view, or at another width."""
    made_at = {"seen": (*map(str, WIDTHS), MEAN), "all": (str(OTHER_WIDTH),)}
    return _shots({name: made_at.get(name, ("32",)) for name in SETTINGS}, seeds)


def deployed_views(
    network: str, dataset: str = "cifar10", retrain: bool = False, *, whole: bool = False
) -> dict[int, nn.Module]:
    """Width → network as it is deployed, `fused` and on the device of `on_chosen_device`.

    GIR's second reading keeps its noise at inference, and so its modules.

    Args:
        whole: with all modules, for who looks inside.
    """
    net, wanted = load(network, dataset, retrain=retrain), entry(network, dataset)
    views = {width: net.at(width) for width in net.bits}
    if wanted.defense == "qadtr-gir-activations":
        views = {width: NoisyActivations(view, seed=width) for width, view in views.items()}
    elif not whole:
        views = {width: fused(view) for width, view in views.items()}
    return {width: on_chosen_device(view) for width, view in views.items()}


def ready(
    names: Iterable[str], folder: Path, command: str, dataset: str = "cifar10", retrain: bool = False
) -> tuple[list[str], list[str]]:
    """Which networks have stored results that load without hours of training or attacks.

    On CIFAR-10 these are the networks that ship with their results; on "shapes", and with `retrain`, all.

    Args:
        names: of the zoo. folder: where results ship, NAME.safetensors. command: of `python -m qpatch.zoo` that makes them.

    Returns:
        those that have them, the undefended network first; and those that have not.

    Raises:
        DataError: the undefended network has none, and every other one is compared with it.
    """
    wanted, known = list(dict.fromkeys([SURROGATE, *names])), shipped()
    made_here = dataset != "cifar10" or retrain
    there = [name for name in wanted if made_here or (name in known and (folder / f"{name}.safetensors").exists())]
    if SURROGATE not in there:
        raise DataError(
            f"the {command} results of {SURROGATE} do not ship yet, and every other network is compared with it; "
            f"make them with: python -m qpatch.zoo {command} {SURROGATE}"
        )
    return there, [name for name in wanted if name not in there]


def attacked_view(views: Mapping[int, nn.Module], source: str, seed: int = 0) -> nn.Module:
    """The network that a patch is made on: one view, or all of them by turns."""
    return RandomPrecision(views, seed) if source == MEAN else views[int(source)]


def _shots(made_at: Mapping[str, Iterable[str]], seeds: int) -> list[Shot]:
    return [
        Shot(attack, setting, source, seed)
        for setting, sources in made_at.items()
        for attack in ATTACKS
        for source in sources
        for seed in range(seeds)
    ]
