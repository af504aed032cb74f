"""What notebook 36 does in front of the reader: the same network without our code, a part of the study judged again."""

from __future__ import annotations

import os

import numpy as np
import pandas as pd
import timm
import torch
from PIL import Image
from torch import Tensor

from qpatch.attacks import paste
from qpatch.data import folders, photographs
from qpatch.errors import DataError
from qpatch.measure.stats import wilson
from qpatch.measure.success import predict
from qpatch.models.pretrained import PACKAGES
from qpatch.zoo.imagenet import BITS, FOLDS, View, float_network, judged_on, pictures, short, view_of
from qpatch.zoo.imagenet_runs import Made, Study, control_pixels, shown, wrong

NOISE = "noise square"
_COLUMNS = ["patch", "target", "bits", "n", "value", "low", "high", "stored", "agreement"]
_BATCH = 25


def missing(names: tuple[str, ...], dataset: str = "photographs") -> str:
    """Why nothing can be computed here, in one line that says what to do; empty if photographs and weights are there."""
    try:
        pictures(dataset)
        for name in names:
            float_network(name, dataset)
    except DataError as error:
        return str(error)
    return ""


def plain_classes(name: str, n: int) -> Tensor:
    """The classes of the first n photographs without any code of ours: pandas, PIL, timm and torch alone, int64 (n,).

    Raises:
        DataError: the photographs of the competition are not there. KeyError: a network without a package of weights.
    """
    folder = folders.find(photographs.FOLDERS, None, ["images.csv"], photographs.HOW)
    table = pd.read_csv(os.path.join(folder, "images.csv")).sort_values("ImageId").head(n)
    there = {file.stem: file for file in folder.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg", ".png")}
    model = timm.create_model(name).eval()
    weights = torch.load(PACKAGES[name].path, weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), weights.values())))
    mean, std = (np.array(model.pretrained_cfg[key], np.float32) for key in ("mean", "std"))
    classes = []
    for image in table["ImageId"]:
        pixels = np.asarray(Image.open(there[image]).convert("RGB").resize((224, 224), Image.BILINEAR), np.float32)
        inputs = torch.from_numpy(((pixels / 255 - mean) / std).transpose(2, 0, 1))[None]
        with torch.no_grad():
            classes.append(int(model(inputs).argmax()))
    return torch.tensor(classes)


def compared(name: str, n: int, dataset: str = "photographs") -> pd.DataFrame:
    """The float network without our code and as a view of ours, picture by picture.

    On procedural pictures both get the same pixels, and the plain one is the network before it became a view.

    Returns:
        one row per picture: label, plain and ours (classes).
    """
    images, labels = pictures(dataset).take(slice(n))
    ours = predict(view_of(View(name, 32), dataset), images, _BATCH)
    plain = plain_classes(name, n) if dataset == "photographs" else predict(float_network(name, dataset), images, 1)
    return pd.DataFrame({"label": labels, "plain": plain, "ours": ours})


def rejudged(study: Study, n: int, dataset: str = "photographs") -> pd.DataFrame:
    """The leading patches and a square of noise judged again, on n pictures, a third of them from each fold.

    They are shown to the first network at every width and to the other networks' float views.

    Returns:
        one row per patch and view: patch, target, bits, n (pictures that count), value, low, high (Wilson), stored
        (the stored rate on the same pictures), agreement (share of all the pictures on which both say the same). The
        last two are nan on other photographs than the stored ones. No rows where weights or photographs are missing.
    """
    if missing(study.names, dataset):
        return pd.DataFrame(columns=_COLUMNS)
    targets = [View(study.names[0], bits) for bits in BITS] + [View(name, 32) for name in study.names[1:]]
    found: dict[tuple[str, View], list[Tensor]] = {}
    for fold in FOLDS:
        third = judged_on(fold, dataset)
        images, labels = pictures(dataset).take(third[: len(range(fold, n, len(FOLDS)))])
        right = ~wrong(images, labels, targets, dataset)
        leading = [made for made in study.pixels if made.leads(study.names) and made.fold == fold]
        patches = {made.attack: (study.pixels[made], made) for made in leading}
        patches[NOISE] = (control_pixels("noise", fold, dataset, len(third))[: len(images)], None)
        for name, (pixels, made) in patches.items():
            hits = wrong(shown(pixels, images, dataset, len(third)), labels, targets, dataset)
            for view, own, before in zip(targets, hits, right):
                stored = study.controls[fold, "noise", view] if made is None else study.hits[made, view]
                parts = [before, own, study.right[fold, view][: len(images)], stored[: len(images)]]
                found.setdefault((name, view), []).append(torch.stack(parts))
    rows = pd.DataFrame([_live_row(*key, torch.cat(parts, 1)) for key, parts in found.items()], columns=_COLUMNS)
    if pictures(dataset).fingerprint != study.card["data"]:
        rows[["stored", "agreement"]] = float("nan")
    return rows


def examples(study: Study, count: int, dataset: str = "photographs") -> tuple[Tensor, list[str], list[bool]]:
    """A few pictures that the float network gets right: plain, with the LaVAN patch, and the same at the fourth width.

    Returns:
        images (3 · count, 3, H, W), what the network says about each, and whether that is wrong. Where weights or
        photographs are missing: the patch on grey, once.
    """
    made, low = Made(study.names[0], 32, "LaVAN"), BITS[-2]
    if missing(study.names, dataset):
        side = study.card["setting"]["pixels"]
        place = torch.tensor([[(side - size) // 2 for size in study.pixels[made].shape[1:]]])
        grey = torch.full((1, 3, side, side), 0.5)
        return paste(grey, study.pixels[made], torch.ones_like(study.pixels[made][:1]), place), ["the patch"], [False]
    third = judged_on(0, dataset)
    number = study.right[0, View(study.names[0], 32)].nonzero()[:count, 0]
    images, labels = pictures(dataset).take(third[number])
    patched = shown(study.pixels[made], pictures(dataset).floats(third), dataset)[number]
    names, said = pictures(dataset).classes, []
    for bits, seen in ((32, images), (32, patched), (low, patched)):
        said.append(predict(view_of(View(study.names[0], bits), dataset), seen, _BATCH))
    classes = torch.cat(said)
    titles = [names[index] if len(names[index]) < 15 else f"{names[index][:13]}…" for index in classes.tolist()]
    return torch.cat([images, patched, patched]), titles, (classes != labels.repeat(3)).tolist()


def _live_row(patch: str, view: View, parts: Tensor) -> dict:
    """parts: bool (4, N), right and hit now, right and hit in the stored run."""
    right, hit, right_then, hit_then = parts
    n, won = int(right.sum()), int((right & hit).sum())
    low, high = wilson(won, n)
    share = lambda top, base: int((top & base).sum()) / int(base.sum()) if base.any() else float("nan")  # noqa: E731
    return {
        "patch": patch, "target": short(view.network), "bits": view.bits, "n": n, "value": share(hit, right),
        "low": low, "high": high, "stored": share(hit_then, right_then),
        "agreement": float((hit == hit_then).float().mean()),
    }  # fmt: skip
