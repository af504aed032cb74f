"""The one training loop. A defense only supplies its loss: `loss(net, batch, step) -> scalar tensor`.

It resumes after being killed: after every epoch the weights, the optimizer's state and the history are stored, and
the data order of an epoch depends on the seed and the epoch's number only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qpatch.data import Dataset
from qpatch.data.dataset import scaled
from qpatch.errors import ParameterError, StoreError, one_of
from qpatch.quant import MultiBit
from qpatch.store import load_tensors, save_tensors


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the outcome of a training besides the loss, the network and the data.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step.
        lr: peak learning rate; linear warm-up over `warmup` epochs, then half a cosine down to zero.
        momentum: Nesterov momentum of SGD.
        optimizer: "sgd" or "adam".
        weight_decay: on convolution and linear weights only, not on BatchNorm, biases or quantizer scales.
        warmup: epochs of linear warm-up.
        crop: zero padding of the random crop, in pixels; 0 switches it off.
        flip: random horizontal flips.
        label_smoothing: of the cross-entropy.
        bf16: run float views under bfloat16 autocast, where `has_bf16`. Quantized views always run in float32, because eight
            significant bits make eight-bit codes collide.
        seed: of data order and augmentation. The initial weights have their own seed.
    """

    epochs: int
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup: float = 1.0
    crop: int = 4
    flip: bool = True
    label_smoothing: float = 0.0
    bf16: bool = False
    seed: int = 0
    optimizer: str = "sgd"

    def __post_init__(self):
        one_of(self.optimizer, ("sgd", "adam"), "optimizer")


class Batch(NamedTuple):
    """Augmented training images (float32 NCHW in [0, 1]) and their labels (int64)."""

    images: Tensor
    labels: Tensor


class Loss(Protocol):
    """What a defense supplies. It may also have `adjust_gradients(net, step)`, called before the optimizer's step."""

    def __call__(self, net: MultiBit, batch: Batch, step: int) -> Tensor: ...


class CrossEntropy:
    """Mean cross-entropy over the given widths: plain training (32), QAT (one width), joint training (several).

    Args:
        bits: the widths whose views are trained.
        label_smoothing: as in `torch.nn.functional.cross_entropy`.
        bf16: run the float view under bfloat16 autocast.
    """

    def __init__(self, bits: tuple[int, ...], label_smoothing: float = 0.0, bf16: bool = False):
        self.bits, self.label_smoothing, self.bf16 = tuple(bits), label_smoothing, bf16

    def __call__(self, net: MultiBit, batch: Batch, step: int) -> Tensor:
        total = batch.images.new_zeros(())
        for width in self.bits:
            logits = logits_of(net.at(width), batch.images, self.bf16 and width == 32)
            total = total + F.cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing)
        return total / len(self.bits)


def logits_of(view: nn.Module, images: Tensor, bf16: bool = False) -> Tensor:
    """The view's logits in float32; computed under bfloat16 autocast if asked, and if the processor has it."""
    device = images.device.type
    with torch.autocast(device, torch.bfloat16) if bf16 and has_bf16(device) else nullcontext():
        return view(images).float()


def has_bf16(device: str) -> bool:
    """Whether bfloat16 is faster than float32 there. Processors without its instructions emulate it, at half the speed."""
    return device != "cpu" or torch.cpu._is_avx512_bf16_supported()


def train(
    net: MultiBit,
    loss: Loss,
    dataset: Dataset,
    recipe: Recipe,
    *,
    state_path: Path | None = None,
    device: str | torch.device = "cpu",
    report: Callable[[str], None] = print,
    watch: Callable[[MultiBit], dict] | None = None,
) -> list[dict]:
    """Train `net` in place and leave it in eval mode.

    Args:
        net: the multi-bit network; every parameter that gets a gradient from `loss` is trained.
        loss: see `Loss`.
        dataset: training images.
        recipe: see `Recipe`.
        state_path: where to keep the resumable state (safetensors + JSON); None keeps nothing.
        device: where to train.
        report: gets one line per epoch.
        watch: measures the network, in eval mode, after every epoch; what it gives joins the epoch's row.

    Returns:
        One dict per epoch: epoch, loss, seconds, images per second.

    Raises:
        ParameterError: a recipe without epochs or with an empty batch.
        StoreError: the loss became NaN or infinite; what had been stored stays as it was.
    """
    if recipe.epochs < 1 or recipe.batch_size < 1:
        raise ParameterError("a recipe needs at least one epoch and one image per batch.")
    net.to(device, memory_format=torch.channels_last)
    optimizer = _optimizer(net, recipe)
    steps_per_epoch = len(dataset) // recipe.batch_size or 1
    history = _resume(net, optimizer, recipe, state_path)
    batches = _Batches(dataset, recipe, device)
    adjust = getattr(loss, "adjust_gradients", lambda net, step: None)
    for epoch in range(len(history), recipe.epochs):
        net.train()
        started, running = time.perf_counter(), torch.zeros((), device=device)
        for index, batch in enumerate(batches.epoch(epoch)):
            step = epoch * steps_per_epoch + index
            rate = recipe.lr * learning_rate_factor(step / steps_per_epoch, recipe.epochs, recipe.warmup)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
            value = loss(net, batch, step)
            value.backward()
            adjust(net, step)
            optimizer.step()
            running += value.detach()
        mean = float(running) / steps_per_epoch
        if not math.isfinite(mean):
            raise StoreError(f"the loss became {mean} in epoch {epoch + 1}; lower the learning rate ({recipe.lr}).")
        seconds = time.perf_counter() - started
        rate = steps_per_epoch * recipe.batch_size / seconds
        history.append({"epoch": epoch + 1, "loss": mean, "seconds": seconds, "images_per_second": rate})
        if watch is not None:
            history[-1] |= watch(net.eval())
        report(f"epoch {epoch + 1}/{recipe.epochs}  loss {mean:.4f}  {seconds:.0f} s  {rate:.0f} images/s")
        if state_path is not None:
            _keep(net, optimizer, recipe, history, state_path)
    net.eval()
    return history


def learning_rate_factor(epoch: float, epochs: int, warmup: float) -> float:
    """Linear warm-up from 0 to 1, then half a cosine down to 0. `epoch` may be fractional."""
    if epoch < warmup:
        return (epoch + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / max(epochs - warmup, 1e-9)))


class _Batches:
    """Shuffled, cropped and flipped batches; no Python loop over images."""

    def __init__(self, dataset: Dataset, recipe: Recipe, device):
        (height, width), pad = dataset.images.shape[-2:], recipe.crop
        self.images, self.labels = F.pad(dataset.images, (pad,) * 4), dataset.labels
        # a view of every crop of every image: N × C × offset × offset × height × width, without copying
        self.crops = self.images.unfold(2, height, 1).unfold(3, width, 1)
        self.recipe, self.device = recipe, device

    def epoch(self, number: int):
        recipe = self.recipe
        generator = torch.Generator().manual_seed(recipe.seed * 100_003 + number)
        order = torch.randperm(len(self.labels), generator=generator)
        whole = len(order) // recipe.batch_size * recipe.batch_size
        for chosen in order[: whole or None].split(recipe.batch_size):
            row, column = torch.randint(0, 2 * recipe.crop + 1, (2, len(chosen)), generator=generator)
            images = scaled(self.crops[chosen, :, row, column])
            if recipe.flip:
                flipped = torch.rand(len(chosen), 1, 1, 1, generator=generator) < 0.5
                images = torch.where(flipped, images.flip(3), images)
            images = images.to(self.device, memory_format=torch.channels_last)
            yield Batch(images, self.labels[chosen].to(self.device))


def _optimizer(net: MultiBit, recipe: Recipe) -> torch.optim.Optimizer:
    weights = [p for p in net.parameters() if p.dim() > 1]
    others = [p for p in net.parameters() if p.dim() <= 1]
    groups = [{"params": weights, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if recipe.optimizer == "adam":
        return torch.optim.Adam(groups, lr=recipe.lr)
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0)


def network_tensors(net: nn.Module) -> dict[str, Tensor]:
    """The network's state without repeats: a weight shared by all views is kept once, under its first name."""
    seen: dict[int, str] = {}
    tensors = {}
    for name, tensor in net.state_dict().items():
        if tensor.data_ptr() not in seen or tensor.numel() == 0:
            seen[tensor.data_ptr()] = name
            tensors[name] = tensor
    return tensors


def load_network_tensors(net: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Inverse of `network_tensors`: shared weights reach every view because they are the same Parameter.

    Raises:
        StoreError: a tensor is missing, left over, or of another shape.
    """
    wanted = network_tensors(net)
    if wanted.keys() != tensors.keys():
        odd = sorted(wanted.keys() ^ tensors.keys())
        raise StoreError(f"the checkpoint does not fit the network; differing entries: {', '.join(odd[:5])}.")
    with torch.no_grad():
        for name, tensor in tensors.items():
            if wanted[name].shape != tensor.shape:
                raise StoreError(f"checkpoint entry {name} is {tuple(tensor.shape)}, expected {tuple(wanted[name].shape)}.")
    net.load_state_dict(tensors, strict=False)


def _keep(net, optimizer, recipe, history, path: Path) -> None:
    tensors = {f"net.{name}": tensor.contiguous() for name, tensor in network_tensors(net).items()}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():  # SGD: momentum_buffer; Adam: step, exp_avg, exp_avg_sq
            if value is not None:
                tensors[f"optimizer.{index}.{name}"] = value.contiguous()
    save_tensors(path, tensors, {"recipe": asdict(recipe), "history": history})


def _resume(net, optimizer, recipe, path: Path | None) -> list[dict]:
    """Load the stored state if there is one for this very recipe; return its history."""
    if path is None or not Path(path).exists():
        return []
    try:
        tensors, card = load_tensors(path)
    except StoreError:
        return []  # a half-written state is worth one lost training, not a crash
    if card["recipe"] != asdict(recipe):
        return []
    load_network_tensors(net, {name[4:]: tensor for name, tensor in tensors.items() if name.startswith("net.")})
    packed = optimizer.state_dict()
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, field = name.split(".")
            packed["state"].setdefault(int(index), {})[field] = tensor
    optimizer.load_state_dict(packed)
    return card["history"]
