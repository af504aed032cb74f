"""What an attacker who knows the network tries: one cell is one attack, made on one view, with a patch for each image.

Every cell's patches are shown to the network at all widths. In the papers' threat model (6×6, away from the centre):

| attack              | made on                            | what it adds                                                   |
|---------------------|------------------------------------|----------------------------------------------------------------|
| transfer            | the undefended network, each width | the papers' attacker; stands for no knowledge at all           |
| few steps, white-box, more steps | each width            | LaVAN; the very same start and place, longer and longer        |
| most steps          | 32 and 2 bits                      | the same, three times as long again                            |
| restart             | each width                         | a new start and a new place, for images that stood so far      |
| other estimator     | each quantized width               | the other straight-through gradient through the same network   |
| all widths          | a width drawn per image and pass   | expectation over bit-widths, four draws per step               |
| own randomness      | each width                         | expectation over the noise of a defense that draws lots        |
| together            | three widths at once               | control of the next: the mean margin of the widths             |
| matching            | three widths at once               | pulls together what FDP and GPDP push apart (`AlignedLaVAN`)   |
| Sparse-RS           | each width                         | random search without gradients: pixels and place              |
| Sparse-RS in place  | each width                         | the same at the very places of white-box: pixels alone         |
| Sparse-RS universal | each width                         | the same for one patch, made on training images                |
| through the defense | each width; Jedi only              | LaVAN whose gradient passes straight through the cleaning      |

And beyond it: larger (10×10), centre (over the object), whole image (32×32, which must succeed always).

"Each width" is 32, 4 and 2 bits: the costly attacks leave out 8 and 5, whose views see nearly what the float view sees.
Jedi stands in front of the undefended network; there "LaVAN" is `Equiluminant`, made without Jedi and judged behind it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from qpatch import data
from qpatch.attacks import Equiluminant, LaVAN
from qpatch.attacks.aligned import AlignedLaVAN
from qpatch.attacks.expectation import Expectation, other_estimator
from qpatch.attacks.sparse_rs import SparseRS
from qpatch.defenses import Likeness, NoisyActivations, RandomPrecision
from qpatch.errors import one_of
from qpatch.measure.success import predict
from qpatch.quant import WIDTHS, fused
from qpatch.zoo import comparators, scenarios
from qpatch.zoo.families import FAMILIES, family
from qpatch.zoo.jedi import load_jedi
from qpatch.zoo.patched import shown
from qpatch.zoo.patches import FIT_IMAGES, OPTIONS
from qpatch.zoo.scenarios import MEAN, SETTINGS, SURROGATE, Shot

JEDI = "jedi"
MADE_AT, MOST_AT = (32, 4, 2), (32, 2)
TOGETHER = "together"  # as a source: all of MADE_AT at once
TRANSFER, FEW, WHITE, LONG, MOST = "transfer", "few steps", "white-box", "more steps", "most steps"
RESTART, ESTIMATOR, EVERYWHERE, LOTS = "restart", "other estimator", "all widths", "own randomness"
CONTROL, MATCHING, THROUGH = "together", "matching", "through the defense"
SEARCH, IN_PLACE, UNIVERSAL = "Sparse-RS", "Sparse-RS in place", "Sparse-RS universal"
LARGER, CENTRE, WHOLE = "larger", "centre", "whole image"
GRADIENT = (FEW, WHITE, LONG, MOST, RESTART, ESTIMATOR, EVERYWHERE, LOTS, CONTROL, MATCHING, THROUGH)
FREE = (SEARCH, IN_PLACE, UNIVERSAL)  # of gradients
WITHIN = (TRANSFER, *GRADIENT, *FREE)
BEYOND = (LARGER, CENTRE, WHOLE)
_STOP = 0.9  # LaVAN's own: an image is finished at this probability of success
_OTHER = {"cifar10": "qat-finetuned", "shapes": "ptq"}  # undefended networks that the surrogate meets patches of
_OTHER_LOTS = 10_000  # seeds of the judging, which no attacker has met
_PLACE = {LARGER: (10, "away"), CENTRE: (6, "center")}


@dataclass(frozen=True)
class Budget:
    """How much each attack may spend.

    Attributes:
        images: that are attacked, the first of `evaluation_subset`.
        few, steps, more, most: optimisation steps. together: of the attacks on three widths.
        restarts: at most so many beyond the first start; no further one is made after one that adds less than `enough`.
        queries: of Sparse-RS per image, and universal: of a universal patch, each a minibatch.
        draws: per step of an expectation. repeats: how often a network that draws lots is judged.
    """

    images: int = 500
    few: int = 10
    steps: int = 30
    more: int = 90
    most: int = 270
    together: int = 15
    restarts: int = 2
    enough: float = 0.01
    queries: int = 200
    universal: int = 250
    draws: int = 4
    repeats: int = 6


BUDGETS = {"cifar10": Budget(), "shapes": Budget(12, 1, 2, 3, 4, 2, 1, 0.01, 4, 4, 2, 4)}


@dataclass(frozen=True)
class Cell:
    """One attack of the module's table.

    Attributes:
        attack: one of `WITHIN` or `BEYOND`.
        source: the width of the view that it is made on, as text, `MEAN` or `TOGETHER`.
        seed: the number of a restart, from 1; 0 otherwise.
    """

    attack: str
    source: str
    seed: int = 0

    def __post_init__(self):
        one_of(self.attack, (*WITHIN, *BEYOND), "attack")
        one_of(self.source, (*map(str, WIDTHS), MEAN, TOGETHER), "source")


def cells(network: str, random: bool) -> list[Cell]:
    """All cells of a network but the restarts, whose number follows from their success.

    Args:
        random: does the network draw lots?
    """
    each = [FEW, WHITE, LONG, *([LOTS] if random else []), *([THROUGH] if network == JEDI else []), *FREE, *BEYOND]
    found = [Cell(attack, str(width)) for attack in (TRANSFER, *each) for width in MADE_AT]
    found += [Cell(MOST, str(width)) for width in MOST_AT]
    found += [Cell(ESTIMATOR, str(width)) for width in MADE_AT if width != 32]
    found.append(Cell(EVERYWHERE, MEAN))
    return found if network == JEDI else [*found, Cell(CONTROL, TOGETHER), Cell(MATCHING, TOGETHER)]


@dataclass(frozen=True)
class Bench:
    """A network and its data: where cells are run. What draws lots is loaded anew each time, to start from its seed."""

    network: str
    dataset: str = "cifar10"
    retrain: bool = False

    @property
    def budget(self) -> Budget:
        return BUDGETS[self.dataset]

    def deployed(self) -> dict[int, nn.Module]:
        """Width → network as it answers."""
        return self._load() if self.random else self._views

    @property
    def random(self) -> bool:
        """Does it draw lots for every answer?"""
        return any(isinstance(view, NoisyActivations) for view in self._views.values())

    @cached_property
    def _views(self) -> dict[int, nn.Module]:
        return self._load()

    def _load(self, whole: bool = False) -> dict[int, nn.Module]:
        if self.network == JEDI:
            return comparators.jedi_views(self.dataset, self.retrain)
        if self.network in FAMILIES and self.network != SURROGATE:
            views = family(self.network, self.dataset, retrain=self.retrain)
            return views if whole else {width: fused(view) for width, view in views.items()}
        return scenarios.deployed_views(self.network, self.dataset, self.retrain, whole=whole)

    def attacked(self, cell: Cell) -> dict[int, nn.Module]:
        """Width → network whose gradient is followed. A transfer from the undefended network to itself is none: there the
        patches come from another family of undefended networks."""
        if cell.attack == TRANSFER:
            other = _OTHER[self.dataset] if self.network == SURROGATE else SURROGATE
            return Bench(other, self.dataset, self.retrain).deployed()
        if self.network == JEDI and cell.attack not in (THROUGH, *FREE):
            return scenarios.deployed_views(SURROGATE, self.dataset, self.retrain)
        return self._load(whole=True) if cell.attack in (CONTROL, MATCHING) else self.deployed()

    def patched(self, cell: Cell, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The images with the patches of a cell, float32 (N, C, H, W), the patched pixels on the 8-bit lattice.

        And what else is worth keeping: of Sparse-RS `first`, int16 (N,), the query that first succeeded, 0 if none did.
        """
        if cell.attack in FREE:
            return self._searched(cell, images, labels)
        return self._attack(cell, images)(images, labels), {}

    def _attack(self, cell: Cell, images: Tensor, steps: int | None = None) -> LaVAN:
        """The gradient attack of a cell, with its own number of steps or another."""
        views, budget = self.attacked(cell), self.budget
        size, place = _PLACE.get(cell.attack, SETTINGS["seen"][:2])
        if cell.attack == WHOLE:
            size, place = tuple(images.shape[-2:]), (0, 0)
        own = {FEW: budget.few, LONG: budget.more, MOST: budget.most}
        own |= {CONTROL: budget.together, MATCHING: budget.together}
        options = {"place": place, "lr": 0.1, "seed": cell.seed, "steps": steps or own.get(cell.attack, budget.steps)}
        options |= {"stop_at": _STOP} if cell.attack in (LONG, MOST, RESTART, *BEYOND) else {}
        if cell.attack in (CONTROL, MATCHING):
            several = {width: views[width] for width in MADE_AT}
            weights = {"likeness": Likeness()} if cell.attack == MATCHING else {"features": 0.0, "gradients": 0.0}
            return AlignedLaVAN(several, size, **weights, **options)
        view = RandomPrecision(views, cell.seed) if cell.source == MEAN else views[int(cell.source)]
        if cell.attack in (EVERYWHERE, LOTS):
            view = Expectation(view, budget.draws)
        if cell.attack == ESTIMATOR:
            view = other_estimator(view)
        if self.network == JEDI and cell.attack not in (TRANSFER, THROUGH):
            levels = load_jedi(self.dataset, retrain=self.retrain).levels
            return Equiluminant(view, size, grey=(levels // 2 + 0.5) / levels, **options)  # the centre of a grey level
        return LaVAN(view, size, **options)

    def judged(self, images: Tensor, labels: Tensor) -> Tensor:
        """Whom these images fool: bool (D, W, N), one draw for a network without lots; widths in the order of `WIDTHS`."""
        views = self.deployed()
        if self.network == JEDI:  # it cleans without looking at the network: once for all widths
            images, views = views[32].defense(images), {width: view.net for width, view in views.items()}
        noisy = [view for view in views.values() if isinstance(view, NoisyActivations)]
        for number, view in enumerate(noisy):
            view.generator.manual_seed(_OTHER_LOTS + number)
        repeats = self.budget.repeats if noisy else 1
        return torch.stack([_wrong(views, images, labels) for _ in range(repeats)])

    def margins(self, cell: Cell, patched: Tensor, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """LaVAN's margin on the view that a cell attacks, below zero for a success: at its start and at its end, (N,)."""
        start = self._attack(cell, images, steps=1)(images, labels)
        view, found = self.attacked(cell)[int(cell.source)], {}
        for name, seen in (("start", start), ("end", patched)):
            parts = zip(seen.split(100), labels.split(100))
            with torch.no_grad():
                found[name] = torch.cat([LaVAN(view).objective(view(part), truth, False) for part, truth in parts]).half()
        return found

    def describe(self, cell: Cell) -> dict:
        """What a cell depends on besides the networks, the images and the code."""
        return {"cell": asdict(cell), "budget": asdict(self.budget), "setting": list(SETTINGS["seen"])}

    def _searched(self, cell: Cell, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        view, (size, place, _), budget = self.attacked(cell)[int(cell.source)], SETTINGS["seen"], self.budget
        if cell.attack != UNIVERSAL:
            gradient = self._attack(Cell(WHITE, cell.source), images, steps=1)  # with the places of all its lengths
            places = gradient.fit_each(images, labels)[1].cpu() if cell.attack == IN_PLACE else None
            found = SparseRS(view, size, place=place, queries=budget.queries).run(images, labels, places)
            return found.images, {"first": found.first.to(torch.int16)}
        train = data.load(self.dataset, "train")
        fit = train.take(data.balanced_subset(train, min(FIT_IMAGES, len(train) // 10 * 10), seed=0))
        made = SparseRS(view, size, place=place, queries=budget.universal, batch=OPTIONS["LaVAN"]["batch"]).fit(*fit)
        return shown(Shot("LaVAN", "seen", cell.source, 0), made.pixels, images), {}


def _wrong(views: Mapping[int, nn.Module], images: Tensor, labels: Tensor) -> Tensor:
    return torch.stack([predict(views[width], images) != labels for width in WIDTHS])
