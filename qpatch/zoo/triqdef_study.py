"""What notebook 32 shows of TriQDef's training: its terms, its course, and whether the penalties reach their aim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from qpatch import data, training
from qpatch.attacks import make_mask, paste, sample_places
from qpatch.defenses import Likeness, TriQDef
from qpatch.maps import cosine, edge_mask, hog, mask_iou, to_maps
from qpatch.measure.penalties import OTHER, SAME, width_maps
from qpatch.measure.stats import wilson
from qpatch.measure.success import accuracy
from qpatch.quant import WIDTHS, MultiBit, calibrate
from qpatch.training import Batch
from qpatch.zoo import networks
from qpatch.zoo.attackers import label
from qpatch.zoo.calibration import calibration_images
from qpatch.zoo.losses import make_loss
from qpatch.zoo.patches import evaluation_subset
from qpatch.zoo.recipes import entry
from qpatch.zoo.scenarios import SETTINGS


def first_steps(name: str, dataset: str, steps: int, batch: int, *, retrain: bool = False) -> pd.DataFrame:
    """The first training steps of a TriQDef network from the float network, its curriculum squeezed into them.

    Returns:
        one row per step and term ("clean", "adversarial", "features", "gradients"): network, step, widths (their number),
        term, value (without its weight).
    """
    wanted = entry(name, dataset)
    load = lambda which: networks.load(which, dataset, retrain=retrain)  # noqa: E731
    loss, train = make_loss(wanted, load), data.load(dataset, "train")
    net = calibrate(MultiBit(load(wanted.start).at(32), wanted.bits, wanted.policy).eval(), calibration_images(train))
    part = data.balanced_subset(train, steps * batch)
    few = replace(train, images=train.images[part], labels=train.labels[part])
    starts = tuple(round(steps * number / len(loss.stages)) for number in range(len(loss.stages)))
    watched = _Watched(replace(loss, starts=starts))
    recipe = replace(wanted.recipe, epochs=1, batch_size=batch, warmup=0.0, lr=wanted.recipe.lr / 4)
    training.train(net, watched, few, recipe, report=lambda line: None)
    return pd.DataFrame(watched.rows).assign(network=name)


def accuracy_rows(names: Sequence[str], dataset: str = "cifar10", retrain: bool = False) -> pd.DataFrame:
    """Clean accuracy per width of each network: from its card where it ships (all test images), else on the judged ones.

    Returns:
        one row per network and width: defense, training_seed, target_bits, value, low, high (Wilson), n.
    """
    found = []
    for name, width in ((name, width) for name in names for width in WIDTHS):
        if dataset == "cifar10" and not retrain:
            card = networks.card(name)
            value, n = card["clean_accuracy"][str(width)], card["test_images"]
        else:
            test = data.load(dataset, "test")
            images, labels = test.take(evaluation_subset(test))
            value, n = accuracy(networks.load(name, dataset, retrain=retrain).at(width), images, labels), len(labels)
        low, high = wilson(value * n, n)
        defense, seed = label(name)
        found.append({"dataset": dataset, "network": name, "defense": defense, "training_seed": seed, "target_bits": width,
                      "value": value, "low": low, "high": high, "n": n})  # fmt: skip
    return pd.DataFrame(found)


def course_rows(names: Sequence[str], dataset: str = "cifar10", retrain: bool = False) -> pd.DataFrame:
    """The accuracy of every width after every epoch of the training, on a part of the test images; from the cards.

    Returns:
        one row per network, epoch and width: network, epoch, target_bits, value, loss, seconds.
    """
    found = []
    for name in names:
        shipped = dataset == "cifar10" and not retrain
        card = networks.card(name) if shipped else networks.train_entry(name, dataset, fresh=retrain)[1]
        for row in card["history"]:
            for width, value in row["accuracy"].items():
                found.append({"dataset": dataset, "network": name, "epoch": row["epoch"], "target_bits": int(width),
                              "value": value, "loss": row["loss"], "seconds": row["seconds"]})  # fmt: skip
    return pd.DataFrame(found)


def aim_rows(
    nets: Mapping[str, MultiBit], patch: Tensor, images: Tensor, labels: Tensor, layers: Sequence[str],
    bits: Sequence[int] = WIDTHS, likeness: Likeness = Likeness(),
) -> pd.DataFrame:  # fmt: skip
    """Did the penalties reach their aim? Hard similarity of the widths on patched test images, network by network.

    Args:
        nets: name → network. patch: float32 (C, h, w), pasted at the places of the seen setting.
        images, labels: of the test. layers: whose features are compared. bits: the widths.

    Returns:
        one row per network, map, measure ("edges": Edge IoU, "orientations": HOG cosine) and comparison (the same image, or
        another one in the second width: the chance level): value (mean over images of the mean over pairs), low, high
        (normal), n.
    """
    size = patch.shape[-1]
    places = sample_places(SETTINGS["seen"].place, len(images), images.shape[-2:], size, torch.Generator().manual_seed(0))
    patched, found = paste(images, patch, make_mask("square", size), places), []
    for name, net in nets.items():
        for where, stack in width_maps(net, patched, labels, layers, bits).items():
            maps = [to_maps(values, likeness.reduction) for values in stack]
            cell = min(maps[0].shape[-2:]) // likeness.cells
            masks = [edge_mask(each, likeness.quantile) for each in maps]
            histograms = [hog(each, cell, likeness.bins, likeness.block, likeness.norm) for each in maps]
            for compared, shift in ((SAME, 0), (OTHER, 1)):
                pairs = list(combinations(range(len(bits)), 2))
                values = {
                    "edges": [mask_iou(masks[i], masks[j].roll(shift, 0)) for i, j in pairs],
                    "orientations": [cosine(histograms[i], histograms[j].roll(shift, 0)) for i, j in pairs],
                }
                for measure, each in values.items():
                    by_image = torch.stack(each).nanmean(dim=0)
                    by_image = by_image[~by_image.isnan()]
                    mean, half = float(by_image.mean()), 1.96 * float(by_image.std()) / len(by_image) ** 0.5
                    found.append({"network": name, "map": where, "measure": measure, "compared": compared, "value": mean,
                                  "low": mean - half, "high": mean + half, "n": len(by_image)})  # fmt: skip
    return pd.DataFrame(found)


def set_beside(scores: pd.DataFrame, whole: str = "triqdef", without: str = "triqdef-without-bact") -> pd.DataFrame:
    """Accuracies beside those of plain joint training, and what the curriculum changes.

    Args:
        scores: of `accuracy_rows`, with the network "joint".

    Returns:
        the same with the columns undefended, training_gap (`spread_of_trainings`) and, for the whole defense, margin:
        accuracy minus that without the curriculum minus twice the gap, with margin_low and margin_high (images).
    """
    by_width = lambda name: scores[scores["network"] == name].set_index("target_bits")  # noqa: E731
    found = scores.assign(undefended=scores["target_bits"].map(by_width("joint")["value"]))
    gap, other = spread_of_trainings(scores), by_width(without)
    found["training_gap"] = gap
    found["margin"] = (found["value"] - found["target_bits"].map(other["value"]) - 2 * gap).where(found["defense"] == whole)
    halves = [(rows["high"] - rows["low"]) / 2 for rows in (found, other)]
    half = np.hypot(halves[0], found["target_bits"].map(halves[1]))
    return found.assign(margin_low=found["margin"] - half, margin_high=found["margin"] + half)


def spread_of_trainings(rows: pd.DataFrame) -> float:
    """Root mean square difference between two trainings of the same defense, over defenses and widths; nan if none."""
    wide = rows.pivot_table(index=["defense", "target_bits"], columns="training_seed", values="value")
    return float(np.sqrt(np.square(wide[0] - wide[1]).mean())) if 1 in wide else float("nan")


class _Watched:
    """A TriQDef loss that writes its terms down."""

    def __init__(self, loss: TriQDef):
        self.loss, self.rows = loss, []

    def __call__(self, net: MultiBit, batch: Batch, step: int) -> Tensor:
        terms = self.loss.terms(net, batch, step)
        widths = len(self.loss.active(step))
        origin = {"step": step, "widths": widths}
        self.rows += [origin | {"term": name, "value": float(value.detach())} for name, value in terms.items()]
        return self.loss.total(terms)
