"""What PatchAttack is asked to do to each network: settings, budgets, seeds and numbers of images, defined once.

A question to a network costs a forward pass, so the budget goes where the tables need it. On one thread a network takes
some minutes.

| access    | setting          | asks                                | images | seeds |
|-----------|------------------|-------------------------------------|--------|-------|
| own       | seen             | the view itself, at 32, 5, 4, 2     | 1,000  | 3     |
| own       | seen             | the view itself, at 8               | 400    | 1     |
| own       | each unseen one  | the view itself, at 32, 5, 4, 2     | 400    | 1     |
| own       | seen, controls   | the view itself, at 32 and 2        | 400    | 1     |
| surrogate | each             | the undefended network, as in A     | 1,000  | 3     |

Patches are mono-coloured where the attacker chooses the place, and cut from textures where the place is given: there a
colour alone leaves 64 patches to choose from. Controls are the random policy, which shows what learning adds, and the
textured variant.
"""

from __future__ import annotations

from dataclasses import dataclass

from qpatch.attacks.patch_attack import POLICIES, VARIANTS
from qpatch.errors import one_of
from qpatch.quant import WIDTHS
from qpatch.zoo.scenarios import OTHER_WIDTH, SEEDS, SETTINGS

QUERIES = {"cifar10": 100, "shapes": 3}  # per image; a smoke run shows that everything works, not how well
IMAGES = {"cifar10": (1000, 400), "shapes": (24, 12)}  # of main probes and of all others: the first of the subset
ASKED = (32, 5, 4, 2)  # widths of paper A's Table 5


@dataclass(frozen=True)
class Probe:
    """One run of PatchAttack over the images.

    Attributes:
        setting: one of `SETTINGS`.
        source: the width of the view that is asked, as text.
        seed: of the attack.
        variant, policy: see `QueryPatchAttack`; None takes the usual variant of the setting. Policy "random" is the
            control that learns nothing.
    """

    setting: str
    source: str
    seed: int
    variant: str | None = None
    policy: str = "reinforce"

    def __post_init__(self):
        given = SETTINGS[one_of(self.setting, SETTINGS, "setting")].place not in ("random", "away")
        if self.variant is None:
            object.__setattr__(self, "variant", "texture" if given else "mono")
        one_of(self.source, map(str, WIDTHS), "source")
        one_of(self.variant, VARIANTS, "variant")
        one_of(self.policy, POLICIES, "policy")

    def kind(self, access: str) -> str:
        """The row of `qpatch.zoo.scenarios`: who asks the deployed view itself never comes from another width."""
        return "width" if access == "surrogate" and self.setting == "seen" and self.source != "32" else self.setting

    @property
    def main(self) -> bool:
        """Does it ask the network itself in the seen setting, and is it run on all images?"""
        return self.setting == "seen" and self.source != "8" and (self.variant, self.policy) == ("mono", "reinforce")


def own_probes(seeds: int = SEEDS) -> list[Probe]:
    """What asks the network itself: seen patches with all seeds, all else with one.

    Seen patches at paper A's widths and, once, at 8 bits; every unseen setting at paper A's widths; and at the two ends
    the textured variant and the random control.
    """
    seen = [Probe("seen", str(width), seed) for seed in range(seeds) for width in ASKED]
    unseen = [Probe(setting, str(width), 0) for setting in SETTINGS if setting != "seen" for width in ASKED]
    kinds, ends = (("texture", "reinforce"), ("mono", "random")), (ASKED[0], ASKED[-1])
    controls = [Probe("seen", str(width), 0, *kind) for kind in kinds for width in ends]
    return [*seen, Probe("seen", "8", 0), *unseen, *controls]


def surrogate_probes(seeds: int = SEEDS) -> list[Probe]:
    """What asks the undefended network, in every setting: on its float view, or at another width."""
    at_width = [Probe(setting, str(OTHER_WIDTH), seed) for setting in ("seen", "all") for seed in range(seeds)]
    return [Probe(setting, "32", seed) for setting in SETTINGS if setting != "all" for seed in range(seeds)] + at_width
