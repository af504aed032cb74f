"""The PixelCNN of the zoo: how it is trained, what its card says, and how it is loaded."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from qpatch import data, store, training
from qpatch.data import Dataset
from qpatch.models import pixelcnn as model
from qpatch.models.pixelcnn import PixelCNN
from qpatch.zoo.networks import FOLDER, _commit

PATH = FOLDER / "pixelcnn.safetensors"
_KEEP_EVERY = 500  # steps between two stored states


@dataclass(frozen=True)
class PixelRecipe:
    """Everything that decides the outcome of the training besides the data.

    Attributes:
        hidden, blocks: size of the network, see `PixelCNN`.
        steps: Adam steps.
        batch_size: images per step.
        lr: peak learning rate: linear warm-up over the first 2 % of the steps, then half a cosine down to zero.
        places: pixels per image whose bytes enter the loss of a step, drawn anew at every step. The head is half of
            the network's cost and neighbouring pixels say much the same, so a part of them is enough.
        seed: of the weights, the data order and the places.
    """

    hidden: int = 32
    blocks: int = 4
    steps: int = 24000
    batch_size: int = 8
    lr: float = 1e-3
    places: int = 128
    seed: int = 0


RECIPE = PixelRecipe()
SMALL = replace(RECIPE, hidden=12, blocks=1, steps=150)  # for `shapes`: smoke runs and tests


def load_pixelcnn(
    dataset: str = "cifar10", *, retrain: bool = False, report: Callable[[str], None] = store.say
) -> PixelCNN:
    """A trained PixelCNN in eval mode: the shipped one, or one made now and kept in the store.

    Args:
        dataset: "cifar10" (shipped) or "shapes" (a small one, trained on the spot in seconds).
        retrain: train from scratch even if trained weights ship; the result is kept in the store.
        report: gets progress lines while training.

    Raises:
        StoreError: the shipped checkpoint is damaged, or the store cannot be written.
        DataError: training needs CIFAR-10 and it is not to be had.
    """
    if dataset == "cifar10" and PATH.exists() and not retrain:
        tensors, made = store.load_tensors(PATH)
    else:
        tensors, made = train_pixelcnn(dataset, report=report)
    net = PixelCNN(made["recipe"]["hidden"], made["recipe"]["blocks"])
    training.load_network_tensors(net, tensors)
    return net.eval()


def card() -> dict:
    """The card of the shipped PixelCNN: recipe, bits per dimension, training time, limits."""
    return store.load_tensors(PATH)[1]


def train_pixelcnn(
    dataset: str = "cifar10", *, report: Callable[[str], None] = store.say
) -> tuple[dict[str, Tensor], dict]:
    """Train the PixelCNN unless the store holds it; an interrupted training goes on from its last stored state.

    Returns:
        tensors and card, as `store.fetch` gives them.
    """
    images, recipe = data.load(dataset, "train"), RECIPE if dataset == "cifar10" else SMALL
    source = store.source_fingerprint(model, train, _loss, _batch)
    parts = {"name": "pixelcnn", "recipe": asdict(recipe), "data": images.fingerprint, "source": source}
    state = store.cache_dir() / "training" / f"{store.key(**parts)}.safetensors"
    made = store.fetch("zoo", parts, lambda: _make(dataset, images, recipe, state, report))
    for path in (state, state.with_suffix(".json")):
        path.unlink(missing_ok=True)
    return made


def ship() -> None:
    """Train on CIFAR-10, unless the store holds the result, and write it with its card into the package."""
    tensors, made = train_pixelcnn()
    made.pop("parts", None)
    store.save_tensors(PATH, tensors, made)


def train(
    images: Tensor, recipe: PixelRecipe, *, state_path: Path | None = None, report: Callable[[str], None] = print
) -> tuple[PixelCNN, float]:
    """Train a PixelCNN by maximum likelihood.

    Args:
        images: uint8 (N, 3, H, W).
        recipe: see `PixelRecipe`.
        state_path: where the resumable state is kept; None keeps nothing.
        report: gets a line whenever a state is stored.

    Returns:
        the network in eval mode, and the seconds that all of its training took.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        net = PixelCNN(recipe.hidden, recipe.blocks).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), recipe.lr)
    first, seconds = _resume(net, optimizer, recipe, state_path)
    started, running = time.perf_counter(), 0.0
    for step in range(first, recipe.steps):
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        batch = _batch(images, recipe, step)
        places = torch.randperm(batch[0, 0].numel(), generator=generator)[: recipe.places]
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * training.learning_rate_factor(step, recipe.steps, 0.02 * recipe.steps)
        loss = _loss(net, batch, places)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        running += float(loss.detach()) / math.log(2)
        if (step + 1) % _KEEP_EVERY == 0:
            spent = seconds + time.perf_counter() - started
            report(f"step {step + 1}/{recipe.steps}  {running / _KEEP_EVERY:.3f} bits/dim  {spent:.0f} s")
            running = 0.0
            if state_path is not None:
                _keep(net, optimizer, recipe, step + 1, spent, state_path)
    return net.eval(), seconds + time.perf_counter() - started


def bits_per_dim(net: PixelCNN, dataset: Dataset, batch: int = 50) -> float:
    """Mean −log2 p(byte | bytes before it) over a data set: 8 for a uniform guess, less is better."""
    total = 0.0
    with torch.no_grad():
        for images in dataset.images.split(batch):
            total += float(_loss(net, images, torch.arange(images[0, 0].numel()))) * len(images)
    return total / len(dataset) / math.log(2)


def _loss(net: PixelCNN, images: Tensor, places: Tensor) -> Tensor:
    """Mean −ln p of the bytes at some places of each image (uint8).

    In float32: the eight significant bits of bfloat16 cannot tell neighbouring bytes apart, which costs 0.3 bits/dim.
    """
    x = (images.float() / 255).contiguous(memory_format=torch.channels_last)
    chosen = net.features(x).permute(0, 2, 3, 1).flatten(1, 2)[:, places]
    logits = net.classify(chosen.unsqueeze(1).permute(0, 3, 1, 2))
    bytes_there = images.flatten(2)[:, :, places].transpose(1, 2)
    return F.cross_entropy(logits.reshape(-1, model.LEVELS), bytes_there.reshape(-1).long())


def _batch(images: Tensor, recipe: PixelRecipe, step: int) -> Tensor:
    """The images of a step; every epoch is a new order that depends on the seed and its number only."""
    steps_per_epoch = len(images) // recipe.batch_size
    epoch, index = divmod(step, steps_per_epoch)
    generator = torch.Generator().manual_seed(recipe.seed * 100_003 + epoch)
    order = torch.randperm(len(images), generator=generator)
    return images[order[index * recipe.batch_size :][: recipe.batch_size]]


def _make(dataset: str, images: Dataset, recipe: PixelRecipe, state: Path, report) -> tuple[dict[str, Tensor], dict]:
    net, seconds = train(images.images, recipe, state_path=state, report=lambda line: report(f"pixelcnn: {line}"))
    tensors = {name: tensor.contiguous() for name, tensor in training.network_tensors(net).items()}
    test = data.load(dataset, "test")
    measured = bits_per_dim(net, test)
    report(f"pixelcnn: {measured:.4f} bits/dim on {len(test)} test images")
    epochs = recipe.steps * recipe.batch_size / len(images)
    return tensors, {
        "name": "pixelcnn",
        "recipe": asdict(recipe),
        "dataset": dataset,
        "data_fingerprint": images.fingerprint,
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "epochs": round(epochs, 2),
        "test_bits_per_dim": measured,
        "test_images": len(test),
        "training_seconds": round(seconds, 1),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "hardware": f"{platform.machine()}, {platform.system()}",
        "commit": _commit(),
        "licence": "MIT; trained on CIFAR-10 (Krizhevsky 2009)" if dataset == "cifar10" else "MIT",
        "limits": f"The released network of David and Goliath has 128 features per colour in the trunk and is trained "
        f"for 75 epochs; this one has {2 * recipe.hidden} features for all colours together and {epochs:.1f} epochs. "
        "van den Oord et al. 2016 report 3.14 bits/dim for a larger PixelCNN.",
    }


def _keep(net: PixelCNN, optimizer, recipe: PixelRecipe, step: int, seconds: float, path: Path) -> None:
    tensors = {f"net.{name}": tensor for name, tensor in training.network_tensors(net).items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{name}": tensor for name, tensor in state.items()}
    store.save_tensors(path, tensors, {"recipe": asdict(recipe), "step": step, "seconds": seconds})


def _resume(net: PixelCNN, optimizer, recipe: PixelRecipe, path: Path | None) -> tuple[int, float]:
    """Load the stored state if there is one for this very recipe; return its step and its seconds."""
    if path is None or not Path(path).exists():
        return 0, 0.0
    try:
        tensors, card = store.load_tensors(path)
    except store.StoreError:
        return 0, 0.0  # a half-written state is worth one lost training, not a crash
    if card["recipe"] != asdict(recipe):
        return 0, 0.0
    training.load_network_tensors(net, {name[4:]: t for name, t in tensors.items() if name.startswith("net.")})
    packed = optimizer.state_dict()
    packed["state"] = {}
    for name, tensor in tensors.items():
        if name.startswith("adam."):
            _, index, moment = name.split(".")
            packed["state"].setdefault(int(index), {})[moment] = tensor
    optimizer.load_state_dict(packed)
    return card["step"], card["seconds"]
