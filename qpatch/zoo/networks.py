"""Loading and making the zoo's networks."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import timm
import torch
from torch import Tensor

import qpatch.models  # noqa: F401  (registers our networks with timm)
from qpatch import data, models, quant, store, training
from qpatch.measure.success import accuracy
from qpatch.models.normalize import absorb_normalization
from qpatch.quant import MultiBit, calibrate
from qpatch.zoo.calibration import calibration_images
from qpatch.zoo.losses import make_loss
from qpatch.zoo.recipes import ENTRIES, Entry, entry

FOLDER = Path(__file__).parent / "checkpoints"
_WATCHED_IMAGES = 1_000
_LICENCES = {
    "cifar10": "MIT; trained on CIFAR-10 (Krizhevsky 2009)",
    "coffee": "MIT; trained on coffee leaves (Esgario et al. 2020, BRACOL, CC BY 4.0)",
    "speech": "MIT; trained on the Free Spoken Digit Dataset (CC BY-SA 4.0)",
    "tumours": "MIT; trained on Breast Cancer Wisconsin (Street et al. 1993, UCI, CC BY 4.0)",
}


def shipped() -> tuple[str, ...]:
    """Names of the networks whose trained weights ship with the package."""
    return tuple(name for name in ENTRIES if (FOLDER / f"{name}.safetensors").exists())


def load(
    name: str,
    dataset: str | None = None,
    *,
    retrain: bool = False,
    device: str | torch.device = "cpu",
    report: Callable[[str], None] = store.say,
) -> MultiBit:
    """A trained network, in eval mode: the shipped one, or one made now and kept in the store.

    Args:
        name: one of `ENTRIES`.
        dataset: None for the one it was trained on (shipped), or "shapes" in place of CIFAR-10 (small networks
            trained on the spot, for smoke runs).
        retrain: train from scratch even if trained weights ship; the result is kept in the store.
        device: where the network goes.
        report: gets progress lines while training.

    Raises:
        ParameterError: no such network or data set.
        StoreError: a shipped checkpoint is damaged, or the store cannot be written.
        DataError: training needs CIFAR-10 and it is not to be had.
    """
    wanted = entry(name, dataset)
    path = FOLDER / f"{name}.safetensors"
    if wanted.dataset != "shapes" and path.exists() and not retrain:
        tensors, _ = store.load_tensors(path)
    else:
        tensors, _ = train_entry(name, wanted.dataset, fresh=retrain, device=device, report=report)
    net = _build(wanted)
    training.load_network_tensors(net, tensors)
    return net.eval().to(device, memory_format=torch.channels_last)


def card(name: str) -> dict:
    """The card of a shipped network: recipe, accuracy per width, training time, machine.

    Raises:
        StoreError: the network does not ship, or its files are damaged.
    """
    entry(name)
    return store.load_tensors(FOLDER / f"{name}.safetensors")[1]


def train_entry(
    name: str,
    dataset: str | None = None,
    *,
    fresh: bool = False,
    device: str | torch.device = "cpu",
    report: Callable[[str], None] = store.say,
) -> tuple[dict[str, Tensor], dict]:
    """Train one zoo network, and first the one it starts from, unless the store already holds them.

    With `fresh` the network that it starts from is trained here as well, even if trained weights of it ship.

    An interrupted training goes on from its last whole epoch.

    Returns:
        tensors and card, as `store.fetch` gives them.
    """
    wanted = entry(name, dataset)
    dataset = wanted.dataset
    images = data.load(dataset, "train")
    parts = {
        "name": name,
        "entry": asdict(wanted),
        "start": _parts(wanted.start, dataset),
        "data": images.fingerprint,
        "source": _source(wanted),
    }
    if fresh:
        parts["fresh"] = True  # its start may differ from the shipped one in the last digits
    state = store.cache_dir() / "training" / f"{store.key(**parts)}.safetensors"
    made = store.fetch("zoo", parts, lambda: _make(wanted, dataset, state, fresh, device, report))
    for path in (state, state.with_suffix(".json")):
        path.unlink(missing_ok=True)  # needed only until the network is in the store
    return made


def ship(name: str, *, device: str | torch.device = "cpu") -> None:
    """Train a network on CIFAR-10, unless the store holds it, and write it with its card into the package."""
    tensors, made = train_entry(name, device=device)
    made.pop("parts", None)
    store.save_tensors(FOLDER / f"{name}.safetensors", tensors, made)


def _parts(name: str | None, dataset: str) -> dict | None:
    """What the starting network is made of, down to random weights."""
    if name is None:
        return None
    start = entry(name, dataset)
    return {"entry": asdict(start), "start": _parts(start.start, dataset)}


def _source(wanted: Entry) -> str:
    from qpatch.models import mobilenet, plain, resnet
    from qpatch.quant import calibrate as calibrate_function
    from qpatch.quant import multibit, quantizers, ste

    modules = (mobilenet, plain, resnet)
    own = sys.modules[timm.model_entrypoint(wanted.model).__module__]
    modules += () if own in modules else (own,)
    return store.source_fingerprint(*modules, multibit, quantizers, ste, calibrate_function, training.train)


def _build(wanted: Entry) -> MultiBit:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(wanted.init_seed)
        model = timm.create_model(wanted.model, num_classes=wanted.classes)
    return MultiBit(model, wanted.bits, wanted.policy)


def _same_views(wanted: Entry) -> bool:
    """Does it go on from a network with the very same views, quantizers and BatchNorm of each width included?"""
    if wanted.start is None:
        return False
    start = entry(wanted.start, wanted.dataset)
    return (start.model, start.bits, start.policy) == (wanted.model, wanted.bits, wanted.policy)


def _continued(wanted: Entry, start: MultiBit) -> MultiBit:
    """The network before its training: the start itself, or new views of the start's float network."""
    if _same_views(wanted):
        return start
    model = start.at(32)
    if wanted.model != entry(wanted.start).model:
        model = absorb_normalization(model)
    return MultiBit(model, wanted.bits, wanted.policy)


def _make(wanted: Entry, dataset: str, state: Path, fresh: bool, device, report) -> tuple[dict[str, Tensor], dict]:
    images, test = data.load(dataset, "train"), data.load(dataset, "test")
    net = _build(wanted)
    if wanted.start is not None:
        start = load(wanted.start, dataset, retrain=fresh, device=device, report=report)
        net = _continued(wanted, start.cpu())
    if len(wanted.bits) > 1 and not _same_views(wanted):
        calibrate(net.eval(), calibration_images(images))
    history = []
    if wanted.recipe is not None:
        others = lambda name: load(name, dataset, retrain=fresh, device=device, report=report)  # noqa: E731
        loss = make_loss(wanted, others)
        history = training.train(
            net, loss, images, wanted.recipe, state_path=state, device=device,
            report=lambda line: report(f"{wanted.name}: {line}"), watch=_Watch(wanted, test),
        )  # fmt: skip
    net.eval().cpu()
    tensors = {name: tensor.contiguous() for name, tensor in training.network_tensors(net).items()}
    if wanted.half:
        tensors = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
        training.load_network_tensors(net, tensors)
    clean = {str(bits): accuracy(net.at(bits), test.floats(), test.labels) for bits in wanted.trained}
    report(f"{wanted.name}: test accuracy " + ", ".join(f"{bits} bits {value:.4f}" for bits, value in clean.items()))
    return tensors, {
        "name": wanted.name,
        "entry": asdict(wanted),
        "dataset": dataset,
        "data_fingerprint": images.fingerprint,
        "test_images": len(test),
        "clean_accuracy": clean,
        "training_seconds": round(sum(row["seconds"] for row in history), 1),
        "final_loss": history[-1]["loss"] if history else None,
        "history": history,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "bfloat16": wanted.recipe is not None and wanted.recipe.bf16 and training.has_bf16(torch.device(device).type),
        "hardware": f"{platform.machine()}, {platform.system()}" if device == "cpu" else str(device),
        "commit": _commit(),
        "licence": _LICENCES.get(dataset, "MIT"),
        "limits": wanted.note,
    }


class _Watch:
    """The accuracy of every trained width on a fixed part of the test images, for the history on the card.

    Nothing is chosen by it: every training runs to its end.
    """

    def __init__(self, wanted: Entry, test: data.Dataset):
        self.widths = wanted.trained
        few = len(test) <= _WATCHED_IMAGES
        self.images, self.labels = test.take(slice(None) if few else data.balanced_subset(test, _WATCHED_IMAGES))

    def __call__(self, net: MultiBit) -> dict:
        device = next(net.parameters()).device
        images, labels = self.images.to(device), self.labels.to(device)
        return {"accuracy": {str(width): accuracy(net.at(width), images, labels) for width in self.widths}}


def _commit() -> str:
    """The commit of the checkout that trained this, or "unknown" outside of git."""
    try:
        folder = Path(models.__file__).parent
        done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=folder, capture_output=True, text=True)
        return done.stdout.strip() or "unknown"
    except OSError:
        return "unknown"
