"""What is in the zoo, as data: every network's start, widths, policy and training recipe.

The float network is trained from a seed. `qat-b` is fine-tuned from it at one width; `indep-b` the same from another
float network of another seed; `joint` trains all widths at once, from the float network as well.

Paper B's defended networks go on from `joint`, see `_paper_b`.

Paper C's networks are float networks that are quantized on the spot by `qpatch.quant.tflite`: `tiny` (ResNet-8 on
plain [0, 1] images), its defended versions `tiny-…`, a small VGG that ensemble adversarial training takes attacks
from, the coffee-leaf networks, and two networks for what is no picture, `speech-dscnn` and `tumours-mlp`.
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
TINY = Recipe(epochs=10, lr=0.05, weight_decay=2e-4, warmup=0.5, bf16=True)
DEFENDED = Recipe(epochs=5, lr=0.02, weight_decay=1e-4, warmup=0.25, bf16=True)
DISTILLED = Recipe(epochs=20, lr=0.1, weight_decay=2e-4, bf16=True)
AUXILIARY = Recipe(epochs=10, lr=0.1, weight_decay=5e-4, bf16=True)
PATCHED = Recipe(epochs=4, lr=0.02, weight_decay=1e-4, warmup=0.25, bf16=True)
TRIQDEF = Recipe(epochs=6, lr=0.04, weight_decay=1e-4, warmup=0.5, bf16=True)
SPEECH = Recipe(epochs=40, batch_size=64, lr=4e-3, crop=0, flip=False, weight_decay=1e-4, optimizer="adam")
TABULAR = Recipe(epochs=60, batch_size=32, lr=4e-3, crop=0, flip=False, weight_decay=1e-3, optimizer="adam")
COFFEE = Recipe(epochs=60, batch_size=32, lr=1e-3, warmup=2, crop=16, weight_decay=1e-4, optimizer="adam")

# Papers A and B do not say how scales are found in training; learned scales are what a two-bit network needs.
TRAINED = Policy(quantizer="symmetric", learned=True)
CALIBRATED = Policy(quantizer="symmetric", learned=False)

# paper C's train-time defenses by their names in tables, and the zoo network under each
DEFENDED_BY = {"PGD": "tiny-pgd", "distillation": "tiny-distilled", "ensemble": "tiny-ensemble", "Sinkhorn": "tiny-sinkhorn"}

# paper B: defense → number of training seeds
PATCH_DEFENSES = {
    "patch-one": 1, "patch-all": 1, "pbat-random": 2, "pbat-full": 1, "dwq": 1, "dwq-mild": 1, "qadtr": 2,
    "qadtr-without-aqapa": 1, "qadtr-without-dbwt": 1, "qadtr-without-gir": 1, "qadtr-gir-activations": 1, "qadtr-gir-agreement": 1,
}  # fmt: skip

# paper A: defense → number of training seeds
TRIQDEF_DEFENSES = {
    "triqdef": 2, "triqdef-without-fdp": 2, "triqdef-without-gpdp": 2, "triqdef-without-both": 2,
    "triqdef-without-bact": 1, "triqdef-online": 1, "triqdef-online-without-both": 1,
}  # fmt: skip

# paper A's Table 6: the comparator that is a training
COMPARATORS = {"pbcat": 1}


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
        dataset: what it is trained on.
        defense: what is trained against, one of `qpatch.zoo.losses.LOSSES`; "none" is plain cross-entropy.
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
    dataset: str = "cifar10"
    defense: str = "none"

    @property
    def classes(self) -> int:
        """Number of logits."""
        return {"coffee": 5, "tumours": 2}.get(self.dataset, 10)

    @property
    def half(self) -> bool:
        """Whether its numbers are rounded to float16 before it is measured: it then ships in half the space."""
        return self.defense in TRIQDEF_DEFENSES or self.defense in COMPARATORS


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
    return {entry.name: entry for entry in entries + _paper_c(size_limit) + _paper_b() + _paper_a()}


def _paper_c(size_limit: str) -> list[Entry]:
    """The networks of David and Goliath; its training budgets are 50 epochs (distillation 200), ours are on the card."""
    plain = "qpatch_resnet8_plain"
    entries = [
        Entry("tiny", (32,), (32,), TINY, "float", note=size_limit, model=plain),
        Entry("aux-vgg", (32,), (32,), AUXILIARY, init_seed=11, model="qpatch_vgg11_quarter"),
    ]
    for defense, recipe, start in (
        ("pgd", DEFENDED, "tiny"), ("sinkhorn", DEFENDED, "tiny"), ("ensemble", DEFENDED, "tiny"),
        ("distilled", DISTILLED, None),
    ):  # fmt: skip
        entries.append(Entry(f"tiny-{defense}", (32,), (32,), recipe, start, 13, model=plain, defense=defense))
    shared = Policy("symmetric", range="max", batchnorm="shared")  # so that the float view is the network that is exported
    entries.append(Entry("tiny-shift", (32, 8, 4), (32, 8, 4), DEFENDED, "tiny", policy=shared, model=plain, defense="shift"))
    cnn, leaves = "qpatch_coffee_cnn", "coffee"
    entries += [
        Entry("coffee-cnn", (32,), (32,), COFFEE, init_seed=14, model=cnn, dataset=leaves),
        Entry("coffee-dscnn", (32,), (32,), COFFEE, init_seed=15, model="qpatch_coffee_dscnn", dataset=leaves),
        Entry("coffee-cnn-pgd", (32,), (32,), replace(COFFEE, epochs=10, lr=3e-4), "coffee-cnn", model=cnn,
              dataset=leaves, defense="pgd"),
        Entry("coffee-cnn-distilled", (32,), (32,), COFFEE, init_seed=16, model=cnn, dataset=leaves, defense="distilled"),
    ]  # fmt: skip
    return entries + _policies(plain) + _beyond_images()


def _beyond_images() -> list[Entry]:
    """A keyword spotter and a table's network, for paper C's open question C-OQ3."""
    return [
        Entry("speech-dscnn", (32,), (32,), SPEECH, init_seed=17, model="qpatch_keyword_dscnn", dataset="speech",
              note="2,000 recordings; the same six speakers in training and test."),
        Entry("tumours-mlp", (32,), (32,), TABULAR, init_seed=18, model="qpatch_tabular_mlp", dataset="tumours",
              note="285 training rows."),
    ]  # fmt: skip


def _paper_b() -> list[Entry]:
    """PBAT, Double-Win Quant and QADT-R, whole and in parts, with their controls, and PBCAT; each goes on from `joint`.

    One width is trained per step, in all of them: so they differ in nothing but the defense.
    """
    note = "Fine-tuned for four epochs from `joint`, one width per step; Rao et al. train 200 epochs, Fu et al. 160."
    entries = []
    for name, seeds in (PATCH_DEFENSES | COMPARATORS).items():
        for seed in range(seeds):
            tag = f"-s{seed}" if seed else ""
            entries.append(Entry(name + tag, WIDTHS, WIDTHS, replace(PATCHED, seed=seed), "joint", note=note, defense=name))
    return entries


def _paper_a() -> list[Entry]:
    """TriQDef, whole and in parts; each starts at `float`, as `joint` did, because its curriculum adds the widths."""
    note = "Six epochs from `float`; the curriculum adds 5, 4 and 2 bits after one, two and three. The paper trains 200."
    return [
        Entry(name + (f"-s{seed}" if seed else ""), WIDTHS, WIDTHS, replace(TRIQDEF, seed=seed), "float", note=note, defense=name)
        for name, seeds in TRIQDEF_DEFENSES.items()
        for seed in range(seeds)
    ]


def _policies(model: str) -> list[Entry]:
    """`tiny` fine-tuned under other quantization policies, for paper C's open question C-OQ1."""
    tunes = {8: replace(FINE_TUNE, epochs=2), 4: FINE_TUNE, 2: replace(FINE_TUNE, epochs=5, lr=0.04)}
    entries = []
    for quantizer in ("symmetric", "asymmetric", "dorefa", "pact", "lsq"):
        policy = Policy(quantizer, learned=quantizer in ("lsq", "pact"), range="max" if quantizer == "asymmetric" else "mse")
        for bits, tune in tunes.items():
            if bits > 2 or quantizer == "lsq":
                if quantizer in ("dorefa", "pact"):  # their weights start far from the float ones
                    tune = replace(tune, epochs=5, lr=0.05)
                entries.append(Entry(f"tiny-{quantizer}-{bits}", (32, bits), (bits,), tune, "tiny", policy=policy, model=model))
    binary = Policy("binaryconnect", first_last=None)
    note = "Binary weights in every layer, the first and the last included; float activations."
    return [*entries, Entry("tiny-binaryconnect", (32, 1), (1,), replace(FINE_TUNE, epochs=6, lr=0.05), "tiny",
                            policy=binary, note=note, model=model)]  # fmt: skip


ENTRIES = _entries()
NOT_SHIPPED = (
    "aux-vgg",  # needed only to train `tiny-ensemble` again
    # not trained yet; asking for them trains them
    "triqdef-online",
    "triqdef-online-without-both",
)  # fmt: skip


def entry(name: str, dataset: str | None = None) -> Entry:
    """The zoo entry `name`; on `shapes` with a recipe of a few epochs, for smoke runs and tests.

    Args:
        name: of the network.
        dataset: None takes the network's own.

    Raises:
        ParameterError: no such network, or one that does not fit the data set.
    """
    found = ENTRIES[one_of(name, ENTRIES, "zoo network")]
    fitting = (found.dataset, "shapes") if found.dataset == "cifar10" else (found.dataset,)
    if dataset is None or one_of(dataset, fitting, f"data set for the network {name}") == found.dataset:
        return found
    recipe = found.recipe
    if recipe is not None:
        recipe = replace(recipe, epochs=6 if found.start is None else 2, batch_size=64)
    return replace(found, recipe=recipe, dataset="shapes")
