"""Patches of 50×50 pixels on networks of ImageNet size, image by image: what ships instead of hours of attacks.

Every photograph is judged, and never by a universal patch that was made on it: each patch is made on two thirds of the
photographs and judged on the last third, in all three ways. `python -m qpatch.zoo imagenet` makes it again, patch by
patch; an interrupted run goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import timm
import torch
from torch import Tensor

from qpatch import store
from qpatch.attacks import GAP, LaVAN, make_mask, paste, sample_places
from qpatch.attacks import base as attack_base
from qpatch.attacks.controls import noise_pixels, photo_pixels
from qpatch.errors import DataError
from qpatch.measure.success import predict
from qpatch.models.pretrained import origin
from qpatch.zoo import imagenet, networks
from qpatch.zoo.bits import pack, unpack
from qpatch.zoo.imagenet import (
    BITS,
    FOLDS,
    MAIN,
    NETWORKS,
    SETTINGS,
    View,
    judged_on,
    made_on,
    pictures,
    view_of,
    views,
)

PATH = Path(__file__).parent / "imagenet" / "photographs.safetensors"
ATTACKS = {"LaVAN": LaVAN, "GAP": GAP}
OPTIONS = {"LaVAN": 0.1, "GAP": 0.05}  # first step size of universal patches, as on CIFAR-10
CONTROLS = ("noise", "grey", "photo")
_BATCH = 25  # photographs per forward pass


@dataclass(frozen=True)
class Made:
    """One patch, or one patch for each image.

    Attributes:
        network, bits: the view that it is made on.
        attack: "LaVAN" or "GAP".
        fold: see `imagenet.FOLDS`; also the seed.
        scope: "universal", or "image-specific": made on the judged pictures themselves.
    """

    network: str
    bits: int
    attack: str
    fold: int = 0
    scope: str = "universal"

    def leads(self, names: Sequence[str]) -> bool:
        """Is it one of those that are looked at most closely: universal, made on the first network's float view?"""
        return (self.network, self.bits, self.scope) == (names[0], 32, "universal")

    def views(self, names: Sequence[str]) -> list[View]:
        """What it is shown to: every network and width; if it leads, also the other policies."""
        return [view for view in views(tuple(names)) if view.policy == MAIN or self.leads(names)]


@dataclass(frozen=True, eq=False)
class Study:
    """Who is fooled by which patch.

    Attributes:
        names: the networks, the one that is looked at most closely first.
        right: (fold, view) → bool (N,): the clean picture is classified correctly.
        hits: (made, view) → bool (N,), or fewer for image-specific patches: the picture is not given its class.
        controls: (fold, control, view) → the same for squares that nobody optimised.
        pixels: made → float32 (3, h, w) on the 8-bit lattice: universal patches of fold 0, and of all folds those made
            on the first network's float view.
        card: where it comes from.
    """

    names: tuple[str, ...]
    right: dict[tuple[int, View], Tensor]
    hits: dict[tuple[Made, View], Tensor]
    controls: dict[tuple[int, str, View], Tensor]
    pixels: dict[Made, Tensor]
    card: dict


def wanted(names: Sequence[str]) -> list[Made]:
    """All patches of the study: on the first network as float and at the last width but one, on others as float.

    The lowest width is left out because these networks do not survive it (notebook 36, section 2).
    """
    first, *others = names
    sources = [(first, BITS[0]), (first, BITS[-2]), *((name, BITS[0]) for name in others)]
    universal = [Made(*source, name, fold) for source in sources for name in ATTACKS for fold in FOLDS]
    specific = [Made(*source, "LaVAN", scope="image-specific") for source in sources]
    return [*universal, *specific, Made(first, 32, "GAP", scope="image-specific")]


def load_study(
    dataset: str = "photographs", names: Sequence[str] = NETWORKS, *, retrain: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Study:  # fmt: skip
    """The stored study, or one made now and kept in the store (on photographs that takes hours).

    Raises:
        DataError: it must be made, and weights or photographs are missing.
        StoreError: the shipped file is damaged.
    """
    if dataset == "photographs" and tuple(names) == NETWORKS and not retrain:
        if not PATH.exists():
            raise DataError("the run on photographs does not ship yet; make it with: python -m qpatch.zoo imagenet")
        return _study(*store.load_tensors(PATH))
    return _study(*_make(dataset, tuple(names), progress or (lambda _: None)))


def ship() -> None:
    """Attack the two networks on the photographs and write the results into the package."""
    store.save_tensors(PATH, *_make("photographs", NETWORKS, store.say))


def places(dataset: str, n: int) -> Tensor:
    """Where patches and controls lie in the n pictures of a third: int64 (n, 2), the same for all."""
    setting = SETTINGS[dataset]
    return sample_places("random", n, setting.pixels, setting.size, torch.Generator().manual_seed(0))


def shown(pixels: Tensor, images: Tensor, dataset: str, of: int | None = None) -> Tensor:
    """Pictures with a patch at its places; pixels (3, h, w), or (n, 3, h, w) for one of its own in each.

    Args:
        of: how many pictures the third has, where `images` are only the first of them.
    """
    mask = make_mask("square", SETTINGS[dataset].size)
    return paste(images, pixels, mask, places(dataset, of or len(images))[: len(images)])


def control_pixels(name: str, fold: int, dataset: str, n: int) -> Tensor:
    """A square that nobody optimised: noise or a shrunk photograph of the other half for each image, or plain grey."""
    size = SETTINGS[dataset].size
    if name == "grey":
        return torch.full((3, size, size), 0.5)
    if name == "noise":
        return noise_pixels(n, 3, size)
    return photo_pixels(n, *pictures(dataset).take(made_on(fold, dataset)[:100]), None, size)


def attack(made: Made, dataset: str, **changed):
    """The attack that makes a patch of the study, ready to be called; `changed` replaces settings."""
    setting, universal = SETTINGS[dataset], made.scope == "universal"
    steps = setting.steps if universal else setting.specific_steps
    options = {"steps": steps, "batch": setting.batch, "seed": made.fold, "lr": OPTIONS[made.attack] if universal else 0.1}
    return ATTACKS[made.attack](view_of(View(made.network, made.bits), dataset), setting.size, **{**options, **changed})


def patch(made: Made, dataset: str) -> Tensor:
    """A universal patch as float32 (3, h, w), from the store or made now."""
    def make() -> tuple[dict[str, Tensor], dict]:
        images, labels = pictures(dataset).take(made_on(made.fold, dataset))
        return {"pixels": _bytes(attack(made, dataset).fit(images, labels).pixels)}, {}

    parts = _parts(made, dataset, [View(made.network, made.bits)])
    return store.fetch("imagenet", parts, make)[0]["pixels"].float() / 255


def judged(made: Made, names: Sequence[str], dataset: str) -> Tensor:
    """Whom it fools: bool (views, n), from the store or found now."""
    targets = made.views(names)
    parts = {**_parts(made, dataset, [View(made.network, made.bits), *targets]), "judged": True}
    if made.scope == "universal":
        pixels = patch(made, dataset)
        parts["pixels"] = store.tensors_fingerprint({"pixels": pixels})

    def make() -> tuple[dict[str, Tensor], dict]:
        third = judged_on(made.fold, dataset)
        if made.scope == "universal":
            images, labels = pictures(dataset).take(third)
            patched = shown(pixels, images, dataset)
        else:
            images, labels = pictures(dataset).take(third[: SETTINGS[dataset].specific_images])
            patched = attack(made, dataset)(images, labels)
        return {"hits": pack(wrong(patched, labels, targets, dataset))}, {"n": len(labels)}

    tensors, card = store.fetch("imagenet", parts, make)
    return unpack(tensors["hits"], card["n"])


def wrong(images: Tensor, labels: Tensor, targets: Sequence[View], dataset: str) -> Tensor:
    """bool (views, n): the pictures that a view does not give their class."""
    return torch.stack([predict(view_of(view, dataset), images, _BATCH) != labels for view in targets])


def _unpatched(fold: int, name: str, names: Sequence[str], dataset: str) -> Tensor:
    """bool (views, n), wrong without a patch (name "clean") or under a control."""
    targets = views(tuple(names))

    def make() -> tuple[dict[str, Tensor], dict]:
        images, labels = pictures(dataset).take(judged_on(fold, dataset))
        if name != "clean":
            images = shown(control_pixels(name, fold, dataset, len(images)), images, dataset)
        return {"hits": pack(wrong(images, labels, targets, dataset))}, {"n": len(labels)}

    tensors, card = store.fetch("imagenet", {**_parts(name, dataset, targets), "fold": fold}, make)
    return unpack(tensors["hits"], card["n"])


def _parts(what: Made | str, dataset: str, targets: Sequence[View]) -> dict:
    pairs = sorted({(view.network, view.policy) for view in targets})
    code = [attack_base, *ATTACKS.values(), attack, shown, places, control_pixels]
    return {
        "what": what if isinstance(what, str) else asdict(what), "setting": asdict(SETTINGS[dataset]),
        "options": OPTIONS, "views": [asdict(view) for view in targets], "data": pictures(dataset).fingerprint,
        "networks": [imagenet.fingerprint(*pair, dataset) for pair in pairs],
        "source": store.source_fingerprint(*code),
    }  # fmt: skip


def _make(dataset: str, names: tuple[str, ...], say: Callable[[str], None]) -> tuple[dict[str, Tensor], dict]:
    started, tensors, patches = time.perf_counter(), {}, wanted(names)
    for fold in FOLDS:
        for name in ("clean", *CONTROLS):
            tensors[f"{name}/{fold}"] = pack(_unpatched(fold, name, names, dataset))
            say(f"fold {fold}: {name} pictures judged, {time.perf_counter() - started:.0f} s")
    for number, made in enumerate(patches):
        tensors[f"hits/{number}"] = pack(judged(made, names, dataset))
        if made.leads(names) or (made.scope == "universal" and made.fold == 0):
            tensors[f"pixels/{number}"] = _bytes(patch(made, dataset))
        say(f"{made.scope} {made.attack} on {made.network} at {made.bits} bits, fold {made.fold}: {number + 1} of "
            f"{len(patches)}, {time.perf_counter() - started:.0f} s")  # fmt: skip
    return tensors, {
        "networks": list(names), "dataset": dataset, "made": [asdict(made) for made in patches],
        "images": [len(judged_on(fold, dataset)) for fold in FOLDS], "setting": asdict(SETTINGS[dataset]),
        "options": OPTIONS, "weights": {name: origin(name) if dataset == "photographs" else "random" for name in names},
        "fingerprints": {name: imagenet.fingerprint(name, MAIN, dataset) for name in names},
        "data": pictures(dataset).fingerprint, "timm": timm.__version__,
        "torch": torch.__version__, "threads": torch.get_num_threads(), "commit": networks._commit(),
        "seconds": round(time.perf_counter() - started, 1),
    }  # fmt: skip


def _study(tensors: dict[str, Tensor], card: dict) -> Study:
    names, right, hits, controls, pixels = tuple(card["networks"]), {}, {}, {}, {}
    for fold in FOLDS:
        n = card["images"][fold]
        for name in ("clean", *CONTROLS):
            for view, row in zip(views(names), unpack(tensors[f"{name}/{fold}"], n), strict=True):
                if name == "clean":
                    right[fold, view] = ~row
                else:
                    controls[fold, name, view] = row
    for number, made in enumerate(Made(**entry) for entry in card["made"]):
        n = card["images"][made.fold]
        n = n if made.scope == "universal" else min(n, card["setting"]["specific_images"])
        rows = unpack(tensors[f"hits/{number}"], n)
        hits |= {(made, view): row for view, row in zip(made.views(names), rows, strict=True)}
        if f"pixels/{number}" in tensors:
            pixels[made] = tensors[f"pixels/{number}"].float() / 255
    return Study(names, right, hits, controls, pixels, card)


def _bytes(pixels: Tensor) -> Tensor:
    return (pixels * 255).round().to(torch.uint8)
