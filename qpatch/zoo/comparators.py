"""Input defenses of paper A's Table 6 under universal patches, image by image, as `qpatch.zoo.patched` has it for networks.

Jedi stands in front of the undefended network. It meets the patches that were made without it ("surrogate"), and ones
made through it with a straight-through gradient ("own"). Since it cleans an image without looking at the network, one
cleaned image serves all widths. `python -m qpatch.zoo.comparators` makes what ships; an interrupted run goes on.

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
from qpatch.attacks import base as attack_base
from qpatch.attacks.controls import noise_pixels, photo_pixels
from qpatch.defenses import Defended, dwq
from qpatch.defenses import input as defended
from qpatch.defenses import jedi as method
from qpatch.measure.success import predict
from qpatch.quant import WIDTHS
from qpatch.zoo import networks, patched, scenarios
from qpatch.zoo.jedi import load_jedi
from qpatch.zoo.patched import CONTROLS, Patched
from qpatch.zoo.patches import OPTIONS, evaluation_subset
from qpatch.zoo.scenarios import ATTACKS, MEAN, SETTINGS, SURROGATE, Shot

FOLDER = Path(__file__).parent / "compared"


def jedi_views(dataset: str = "cifar10", retrain: bool = False) -> dict[int, nn.Module]:
    """Width → the undefended network behind Jedi, with the gradient of `Defended`."""
    jedi = load_jedi(dataset, retrain=retrain)
    return {width: Defended(view, jedi) for width, view in scenarios.deployed_views(SURROGATE, dataset, retrain).items()}


def knowing_shots(seeds: int = scenarios.SEEDS) -> list[Shot]:
    """Patches to make through Jedi: one per attack, setting and seed, on all widths."""
    return [shot for shot in scenarios.own_shots(seeds) if shot.source == MEAN]


def load_jedi_run(
    dataset: str = "cifar10", *, seeds: int = scenarios.SEEDS, retrain: bool = False, shots: Iterable[Shot] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Patched:  # fmt: skip
    """Who is fooled behind Jedi: the shipped results, or ones made now and kept in the store.

    Args:
        dataset: "cifar10" (ships) or "shapes".
        seeds: patches of each kind.
        retrain: make network, Jedi and patches anew.
        shots: the patches made through Jedi; None takes `knowing_shots`, an empty list leaves them out.
        progress: gets a line per patch.

    Raises:
        StoreError: a shipped file is damaged.
    """
    knowing = knowing_shots(seeds) if shots is None else list(shots)
    if dataset == "cifar10" and not retrain and _path().exists():
        tensors, made = store.load_tensors(_path())
        if made["seeds"] >= seeds and {Shot(**shot) for shot in made["own"]} >= set(knowing):
            return patched._patched("jedi", tensors, made, seeds)
    parts = {
        **_parts(dataset, retrain), "shots": [asdict(shot) for shot in knowing], "seeds": seeds,
        "judged": data.load(dataset, "test").fingerprint, "makes": store.source_fingerprint(_make_run, patched.shown),
    }  # fmt: skip
    made = store.fetch("judged", parts, lambda: _make_run(dataset, seeds, retrain, knowing, progress))
    return patched._patched("jedi", *made, seeds)


def made_through_jedi(shot: Shot, dataset: str = "cifar10", *, retrain: bool = False) -> Tensor:
    """A universal patch made on the undefended network behind Jedi: uint8 (3, h, w); kept in the store."""
    images = patched._fit_images(data.load(dataset, "train"))
    parts = {**_parts(dataset, retrain), "shot": asdict(shot), "setting": list(SETTINGS[shot.setting]), "options": OPTIONS}
    make = lambda: patched._fit(jedi_views(dataset, retrain), shot, patched._steps(dataset), *images)  # noqa: E731
    return store.fetch("patched", parts, make)[0]["pixels"]


def ship(seeds: int = scenarios.SEEDS) -> None:
    """Make Jedi's run on CIFAR-10 and write it into the package."""
    store.save_tensors(_path(), *_make_run("cifar10", seeds, False, knowing_shots(seeds), store.say))


def _path() -> Path:
    return FOLDER / "jedi.safetensors"


def _parts(dataset: str, retrain: bool) -> dict:
    jedi = load_jedi(dataset, retrain=retrain)
    return {
        "network": patched._fingerprint(SURROGATE, dataset, retrain), "data": data.load(dataset, "train").fingerprint,
        "completion": store.tensors_fingerprint(jedi.completion.state_dict()), "steps": patched._steps(dataset),
        "jedi": [jedi.mean, jedi.std, jedi.windows, jedi.levels, jedi.tolerance, jedi.rule, jedi.least],
        "source": store.source_fingerprint(attack_base, *ATTACKS.values(), dwq.RandomPrecision, defended, method),
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
        return patched._pack(classes != labels if target is None else classes == target)

    tensors = {"label": labels.to(torch.uint8), "right": patched._pack(~patched._unpack(hits(images), len(images)))}
    for access, shots in (("surrogate", surrogate), ("own", knowing)):
        for number, shot in enumerate(shots):
            pixels = foreign[shot] if access == "surrogate" else made_through_jedi(shot, dataset, retrain=retrain)
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


if __name__ == "__main__":
    ship()
