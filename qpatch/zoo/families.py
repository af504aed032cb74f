"""Four ways to come to a low bit-width, each as one set of views: the rows of every transfer table.

| training          | the view at b bits                                                        |
|-------------------|---------------------------------------------------------------------------|
| ptq               | the float network, quantized after training                               |
| qat-finetuned     | fine-tuned at b bits from the same float network                          |
| qat-independent   | fine-tuned at b bits from another float network, of another seed          |
| joint             | one network trained at all widths at once                                 |

At 32 bits the first three hold the same float network. `INDEPENDENT_FLOATS` are the float networks from which
`qat-independent` starts: they tell what another initialisation does without any quantization.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from qpatch.attacks import Patch
from qpatch.errors import one_of
from qpatch.quant import WIDTHS
from qpatch.zoo.networks import load
from qpatch.zoo.patches import PatchEntry, load_patch, load_specific

_NAMES = {"ptq": "ptq", "qat-finetuned": "qat-{}", "qat-independent": "indep-{}", "joint": "joint"}
FAMILIES = tuple(_NAMES)
INDEPENDENT_FLOATS = ("float-s1", "float-s2", "float-s3", "float-s4")


def members(training: str, bits: Iterable[int] = WIDTHS) -> dict[int, str]:
    """Width → the zoo network that a family shows at this width, for the widths asked for.

    Raises:
        ParameterError: no such family, or a width that the zoo does not hold.
    """
    pattern = _NAMES[one_of(training, FAMILIES, "family")]
    for width in bits:
        one_of(width, WIDTHS, "bit-width")
    return {width: "float" if width == 32 and training != "joint" else pattern.format(width) for width in bits}


def family(
    training: str, dataset: str = "cifar10", *, bits: Iterable[int] = WIDTHS, retrain: bool = False
) -> dict[int, nn.Module]:
    """Width → view in eval mode, ready to attack; see the module's table.

    Raises:
        ParameterError: no such family.
    """
    names = members(training, bits)
    nets = {name: load(name, dataset, retrain=retrain) for name in dict.fromkeys(names.values())}
    return {width: nets[name].at(width) for width, name in names.items()}


def family_patches(
    training: str,
    attack: str,
    seeds: int,
    dataset: str = "cifar10",
    *,
    bits: Iterable[int] = WIDTHS,
    retrain: bool = False,
) -> dict[tuple[int, int], Patch]:
    """(source bits, seed) → universal patch made on that member of the family."""
    return {
        (width, seed): load_patch(PatchEntry(name, width, attack, seed), dataset, retrain=retrain)
        for width, name in members(training, bits).items()
        for seed in range(seeds)
    }


def family_specific(
    training: str,
    attack: str,
    seeds: int,
    dataset: str = "cifar10",
    *,
    bits: Iterable[int] = WIDTHS,
    retrain: bool = False,
) -> dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]]:
    """(source bits, seed) → image-specific pixels and places, for the images of `evaluation_subset`."""
    return {
        (width, seed): load_specific(PatchEntry(name, width, attack, seed, "image-specific"), dataset, retrain=retrain)
        for width, name in members(training, bits).items()
        for seed in range(seeds)
    }
