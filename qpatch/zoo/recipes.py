"""What is in the zoo, as data: every network's start, widths, policy and training recipe.

The float network is trained from a seed. `qat-b` is fine-tuned from it at one width; `indep-b` the same from another
float network of another seed; `joint` trains all widths at once, from the float network as well.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from qpatch.errors import one_of
from qpatch.quant import WIDTHS, Policy
from qpatch.training import Recipe

FLOAT = Recipe(epochs=60, lr=0.2, weight_decay=5e-4, bf16=True)
FLOAT_AGAIN = replace(FLOAT, epochs=16)
FINE_TUNE = Recipe(epochs=3, lr=0.02, weight_decay=1e-4, warmup=0.5)
FINE_TUNE_2 = replace(FINE_TUNE, epochs=10, lr=0.04)
JOINT = Recipe(epochs=8, lr=0.04, weight_decay=1e-4, warmup=0.5, bf16=True)

# Papers A and B do not say how scales are found in training; learned scales are what a two-bit network needs.
TRAINED = Policy(quantizer="symmetric", learned=True)
CALIBRATED = Policy(quantizer="symmetric", learned=False)


@dataclass(frozen=True)
class Entry:
    """One network of the zoo.

    Attributes:
        name: how to ask for it.
        bits: the widths of its views.
        trained: the widths that were trained (and measured on the card).
        recipe: None for post-training quantization.
        start: the zoo network that it starts from, or None for random weights.
        init_seed: seed of the random weights.
        policy: how it is quantized.
        note: what limits it, for the card.
        model: timm name.
    """

    name: str
    bits: tuple[int, ...]
    trained: tuple[int, ...]
    recipe: Recipe | None
    start: str | None = None
    init_seed: int = 0
    policy: Policy = TRAINED
    note: str = ""
    model: str = "qpatch_resnet8"


def _entries() -> dict[str, Entry]:
    size_limit = "78 k parameters: the size of the network limits its accuracy, not the number of epochs alone."
    entries = [Entry("float", (32,), (32,), FLOAT, note=size_limit)]
    entries.append(
        Entry(
            "ptq", WIDTHS, WIDTHS, None, "float", policy=CALIBRATED,
            note="No training after quantization. Ternary weights and four activation levels found by least squares "
            "alone destroy the network at 2 bits; 4 bits lose several points.",
        )  # fmt: skip
    )
    for seed, width in enumerate((8, 5, 4, 2), start=1):
        tune = replace(FINE_TUNE_2 if width == 2 else FINE_TUNE, seed=seed)
        limit = "Ternary weights and four activation levels; first and last layer have 8 bits." if width == 2 else ""
        entries.append(Entry(f"qat-{width}", (32, width), (width,), tune, "float", note=limit))
        entries.append(
            Entry(f"float-s{seed}", (32,), (32,), replace(FLOAT_AGAIN, seed=seed), init_seed=seed, note=size_limit)
        )
        entries.append(Entry(f"indep-{width}", (32, width), (width,), tune, f"float-s{seed}", note=limit))
    entries.append(
        Entry(
            "joint", WIDTHS, WIDTHS, JOINT, "float",
            note="One set of weights serves five widths: the two-bit view pulls the weights to ternary values, "
            "the others pay for it; BatchNorm is switched per width.",
        )  # fmt: skip
    )
    return {entry.name: entry for entry in entries}


ENTRIES = _entries()


def entry(name: str, dataset: str = "cifar10") -> Entry:
    """The zoo entry `name`; on `shapes` with a recipe of a few epochs, for smoke runs and tests.

    Raises:
        ParameterError: no such network.
    """
    found = ENTRIES[one_of(name, ENTRIES, "zoo network")]
    if dataset == "shapes" and found.recipe is not None:
        epochs = 6 if found.start is None else 2
        found = replace(found, recipe=replace(found.recipe, epochs=epochs, batch_size=64))
    return found
