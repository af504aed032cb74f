"""Input defenses of paper A's Table 6 under universal patches, image by image, as in `qpatch.zoo.patched`.

Jedi stands in front of the undefended network. It meets the patches that were made without it ("surrogate"), and ones
whose maker knows that it looks at grey levels only: LaVAN in one shade of grey ("own", `qpatch.attacks.Equiluminant`).
Since Jedi cleans an image without looking at the network, one cleaned image serves all widths.
`python -m qpatch.zoo comparators` makes what ships; an interrupted run goes on.

PBCAT is a network of the zoo. DiffPure runs where its weights are present: `qpatch.defenses.diffpure.load_predictor`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from qpatch import data, store
from qpatch.attacks import Equiluminant
from qpatch.attacks import base as attack_base
from qpatch.attacks import equiluminant, lavan
from qpatch.attacks.controls import noise_pixels, photo_pixels
from qpatch.defenses import Defended, dwq
from qpatch.defenses import jedi as method
from qpatch.measure.success import predict
from qpatch.quant import WIDTHS
from qpatch.zoo import networks, patched, scenarios
from qpatch.zoo.bits import pack, unpack
from qpatch.zoo.jedi import load_jedi
from qpatch.zoo.patched import CONTROLS, Patched
from qpatch.zoo.patches import OPTIONS, evaluation_subset
from qpatch.zoo.scenarios import MEAN, SETTINGS, SURROGATE, Shot, attacked_view

FOLDER = Path(__file__).parent / "compared"


def jedi_views(dataset: str = "cifar10", retrain: bool = False) -> dict[int, nn.Module]:
    """Width → the undefended network behind Jedi, with the straight-through gradient of `Defended`."""
    jedi = load_jedi(dataset, retrain=retrain)
    views = scenarios.deployed_views(SURROGATE, dataset, retrain)
    return {width: Defended(view, jedi) for width, view in views.items()}


def knowing_shots(seeds: int = scenarios.SEEDS) -> list[Shot]:
    """Patches whose maker knows Jedi: one per setting and seed, on all widths."""
    return [shot for shot in scenarios.own_shots(seeds) if (shot.attack, shot.source) == ("LaVAN", MEAN)]


def load_jedi_run(
    dataset: str = "cifar10", *, seeds: int = scenarios.SEEDS, retrain: bool = False,
    shots: Iterable[Shot] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Patched:  # fmt: skip
    """Who is fooled behind Jedi: the shipped results, or ones made now and kept in the store.

    Args:
        dataset: "cifar10" (ships) or "shapes".
        seeds: patches of each kind.
        retrain: make network, Jedi and patches anew.
        shots: the patches that know Jedi; None takes `knowing_shots`, an empty list leaves them out.
        progress: gets a line per patch.

    Raises:
        StoreError: a shipped file is damaged.
    """
    knowing = knowing_shots(seeds) if shots is None else list(shots)
    if dataset == "cifar10" and not retrain and _path().exists():
        tensors, made = store.load_tensors(_path())
        if made["seeds"] >= seeds and {Shot(**shot) for shot in made["own"]} >= set(knowing):
            return patched._patched("jedi", tensors, made, seeds)
    parts = {**_parts(dataset, retrain), "shots": [asdict(shot) for shot in knowing], "seeds": seeds}
    made = store.fetch("judged", parts, lambda: _make_run(dataset, seeds, retrain, knowing, progress))
    return patched._patched("jedi", *made, seeds)


def made_knowing(shot: Shot, dataset: str = "cifar10", *, retrain: bool = False) -> Tensor:
    """An equiluminant patch made on the undefended network: uint8 (3, h, w); kept in the store.

    Its brightness is the centre of the middle one of Jedi's grey levels.
    """
    levels, train = load_jedi(dataset, retrain=retrain).levels, data.load(dataset, "train")
    grey, steps = (levels // 2 + 0.5) / levels, patched._steps(dataset)
    size, place, target = SETTINGS[shot.setting]
    views = scenarios.deployed_views(SURROGATE, dataset, retrain)
    parts = {
        "shot": asdict(shot), "setting": [size, place, target], "grey": grey, "steps": steps,
        "options": OPTIONS["LaVAN"], "data": train.fingerprint,
        "network": patched._fingerprint(SURROGATE, dataset, retrain),
        "source": store.source_fingerprint(attack_base, lavan, equiluminant, dwq.RandomPrecision),
    }  # fmt: skip

    def make():
        attack = Equiluminant(
            attacked_view(views, shot.source, shot.seed), size, grey=grey, target=target, place=place, steps=steps,
            seed=shot.seed, **OPTIONS["LaVAN"],
        )  # fmt: skip
        return {"pixels": (attack.fit(*patched._fit_images(train)).pixels * 255).round().to(torch.uint8)}, {}

    return store.fetch("patched", parts, make)[0]["pixels"]


def ship(seeds: int = scenarios.SEEDS) -> None:
    """Make Jedi's run on CIFAR-10 and write it into the package."""
    store.save_tensors(_path(), *_make_run("cifar10", seeds, False, knowing_shots(seeds), store.say))


def _path() -> Path:
    return FOLDER / "jedi.safetensors"


def _parts(dataset: str, retrain: bool) -> dict:
    jedi = load_jedi(dataset, retrain=retrain)
    return {
        "network": patched._fingerprint(SURROGATE, dataset, retrain), "data": data.load(dataset, "test").fingerprint,
        "completion": store.tensors_fingerprint(jedi.completion.state_dict()), "steps": patched._steps(dataset),
        "jedi": [jedi.mean, jedi.std, jedi.windows, jedi.levels, jedi.tolerance, jedi.rule, jedi.least],
        "source": store.source_fingerprint(attack_base, lavan, equiluminant, method, patched.shown, _make_run),
    }  # fmt: skip


def _make_run(
    dataset: str, seeds: int, retrain: bool, knowing: list[Shot], progress: Callable[[str], None] | None
) -> tuple[dict[str, Tensor], dict]:
    started, test = time.perf_counter(), data.load(dataset, "test")
    jedi, views = load_jedi(dataset, retrain=retrain), scenarios.deployed_views(SURROGATE, dataset, retrain)
    images, labels = test.take(evaluation_subset(test))
    foreign = patched.made_patches(SURROGATE, dataset, seeds=seeds, retrain=retrain, progress=progress)
    surrogate = scenarios.surrogate_shots(seeds)

    def hits(shown: Tensor, target: int | None = None) -> Tensor:
        cleaned = jedi(shown)
        classes = torch.stack([predict(views[width], cleaned) for width in WIDTHS])
        return pack(classes != labels if target is None else classes == target)

    tensors = {"label": labels.to(torch.uint8), "right": pack(~unpack(hits(images), len(images)))}
    for access, shots in (("surrogate", surrogate), ("own", knowing)):
        for number, shot in enumerate(shots):
            pixels = foreign[shot] if access == "surrogate" else made_knowing(shot, dataset, retrain=retrain)
            if access == "own":
                tensors[f"pixels/{number}"], pixels = pixels, pixels.float() / 255
            tensors[f"{access}/{number}"] = hits(patched.shown(shot, pixels, images), SETTINGS[shot.setting].target)
            if progress:
                progress(f"jedi: {access} patch {number + 1} of {len(shots)}")
    for setting, (size, _, target) in SETTINGS.items():
        photos = photo_pixels(len(images), *patched._photos(dataset), target, size)
        controls = (noise_pixels(len(images), 3, size), torch.full((3, size, size), 0.5), photos)
        for name, pixels in zip(CONTROLS, controls):
            shown = patched.shown(Shot("LaVAN", setting, "32", 0), pixels, images)
            tensors[f"control/{setting}/{name}"] = hits(shown, target)
    return tensors, {
        "network": "jedi", "dataset": dataset, "seeds": seeds, "images": len(images),
        "own": [asdict(shot) for shot in knowing], "surrogate": [asdict(shot) for shot in surrogate],
        "seconds": round(time.perf_counter() - started, 1), "commit": networks._commit(),
    }  # fmt: skip
