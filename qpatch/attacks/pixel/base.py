"""What the ten attacks share: a description of each, the seeding of three random generators, and the networks' wraps.

A *gradient* attack gets the network's logits and their gradients. A *query* attack gets probabilities and nothing else:
its network is hidden behind a function from arrays to arrays, so that no gradient can be asked for.
"""

from __future__ import annotations

import hashlib
import inspect
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from art.estimators.classification import BlackBoxClassifierNeuralNetwork, PyTorchClassifier
from torch import Tensor, nn

from qpatch.errors import InputError

BATCH = 100  # images per forward pass
_REMEMBERED = 100_000  # answers to queries


@dataclass(frozen=True)
class PixelAttack:
    """One attack variant of paper C.

    Attributes:
        name: as in the table of published parameters.
        family: the attack's name in the paper's count of ten.
        norm: what it keeps small: "L0", "L2" or "Linf".
        kind: "gradient" or "query".
        sees: what of the network: "gradients", "scores" (probabilities) or "labels" (the predicted class).
        library: who runs it.
        run: (net, images, labels, **parameters) → adversarial images.
        one_by_one: the library works on one image after the other; each then gets a seed of its own.
    """

    name: str
    family: str
    norm: str
    kind: str
    sees: str
    library: str
    run: Callable[..., Tensor]
    one_by_one: bool = False

    @property
    def module(self) -> ModuleType:
        """The file that runs it, for fingerprints and for showing its source."""
        return sys.modules[inspect.unwrap(getattr(self.run, "func", self.run)).__module__]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed numpy, Python and torch, which the libraries draw from, and give them back their states afterwards."""
    states = np.random.get_state(), random.getstate()
    with torch.random.fork_rng():
        try:
            np.random.seed(seed % 2**32)
            random.seed(seed)
            torch.manual_seed(seed)
            yield
        finally:
            np.random.set_state(states[0])
            random.setstate(states[1])


class Probabilities(nn.Module):
    """A float network with a softmax at its end, which counts the images it is asked for: what a query attack sees.

    Args:
        net: images in [0, 1] to logits.

    Attributes:
        queries: number of images evaluated so far.
    """

    precision = "float"

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net, self.queries = net, 0
        self.train(net.training)

    def forward(self, images: Tensor) -> Tensor:
        self.queries += len(images)
        return self.net(images).softmax(dim=1)


class Anchored(nn.Module):
    """A network with at least one parameter, because torchattacks reads the device off the first one."""

    def __init__(self, net: nn.Module, device: torch.device):
        super().__init__()
        self.net = net
        self.anchor = nn.Parameter(torch.zeros((), device=device), requires_grad=False)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)


class LogitClassifier(PyTorchClassifier):
    """ART's wrap of a network, with less work for the same results.

    ART takes the gradients of a batch with mixed labels class by class. Images do not mix in eval mode, so one backward
    pass of Σᵢ logits[i, labelᵢ] gives the gradient of each image. And several attacks ask again and again for a whole
    batch of which few images still change: what did not change since the last call is not computed again.
    """

    def predict(self, x: np.ndarray, batch_size: int = BATCH, **_) -> np.ndarray:
        return self._changed("predict", x, self._predict)

    def class_gradient(self, x: np.ndarray, label=None, **_) -> np.ndarray:
        if label is None:
            return self._changed("gradients", x, lambda part: self._gradients(part, range(self.nb_classes)))
        return self._gradients(x, [np.broadcast_to(label, len(x)).copy()])

    def _predict(self, x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return torch.cat([self.model(part) for part in self._tensor(x).split(BATCH)]).cpu().numpy()

    def _gradients(self, x: np.ndarray, labels) -> np.ndarray:
        """For each of some labels (one for all images, or one per image): (N, labels, C, H, W)."""
        images = self._tensor(x).requires_grad_()
        logits = self.model(images)
        rows = torch.arange(len(x), device=logits.device)
        chosen = [logits[rows, torch.as_tensor(label, device=logits.device)].sum() for label in labels]
        found = [torch.autograd.grad(total, images, retain_graph=total is not chosen[-1])[0] for total in chosen]
        return torch.stack(found, dim=1).cpu().numpy()

    def _changed(self, what: str, x: np.ndarray, compute: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """`compute(x)`, where only the images are computed that differ from the last call's at the same place."""
        last = self.__dict__.setdefault("_last", {}).get(what)
        if last is None or last[0].shape != x.shape:
            result = compute(x)
        else:
            fresh, result = (last[0] != x).reshape(len(x), -1).any(1), last[1].copy()
            if fresh.any():
                result[fresh] = compute(x[fresh])
        self._last[what] = x.copy(), result
        return result.copy()

    def _tensor(self, x: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(x, dtype=np.float32, order="C")).to(self.device)


def logit_classifier(net: nn.Module, images: Tensor) -> LogitClassifier:
    """The network for ART's gradient attacks: logits, images in [0, 1], no preprocessing.

    Raises:
        InputError: the network's output has no gradient with respect to the images.
    """
    with torch.enable_grad():
        logits = net(images[:1].detach().requires_grad_())
    if not logits.requires_grad:
        raise InputError("a gradient attack needs a network with gradients; take the float one or tflite.twin(...).")
    kind = "cpu" if images.device.type == "cpu" else "gpu"
    shape, classes = tuple(images.shape[1:]), logits.shape[1]
    return LogitClassifier(net, nn.CrossEntropyLoss(), shape, classes, clip_values=(0.0, 1.0), preprocessing=None,
                           device_type=kind)  # fmt: skip


def query_classifier(net: nn.Module, images: Tensor) -> BlackBoxClassifierNeuralNetwork:
    """The network for ART's query attacks: a function from images to probabilities, with no way to a gradient.

    Some attacks leave [0, 1] while they probe; what they ask for is clipped, since no image has such pixels. What is no
    number (ART's Square divides by zero where no noise is left) gets no scores, so that the attack rejects it. And what
    was asked before is answered from memory and costs no query: ART's Square asks three times for what it needs once.

    Raises:
        InputError: the network does not give probabilities.
    """
    memory: dict[bytes, np.ndarray] = {}

    @torch.no_grad()
    def ask(x: np.ndarray) -> np.ndarray:
        x = np.array(x, dtype=np.float32, order="C")
        keys = [hashlib.blake2b(image, digest_size=16).digest() for image in x]
        new = {key: number for number, key in enumerate(keys) if key not in memory}
        if len(memory) + len(new) > _REMEMBERED:
            memory.clear()
            new = {key: number for number, key in enumerate(keys)}
        if new:
            batch = torch.from_numpy(x[list(new.values())]).to(images.device)
            scores = net(batch.nan_to_num(0.0).clamp_(0, 1))
            scores[batch.flatten(1).isnan().any(1)] = torch.nan
            memory.update(zip(new, scores.cpu().numpy()))
        return np.stack([memory[key] for key in keys])

    first = ask(images[:1].cpu().numpy())
    if first.min() < 0 or abs(first.sum() - 1) > 0.1:
        raise InputError("a query attack needs probabilities; take tflite.network(...), or Probabilities(net) of logits.")
    shape, classes = tuple(images.shape[1:]), first.shape[1]
    return BlackBoxClassifierNeuralNetwork(ask, shape, classes, clip_values=(0.0, 1.0), preprocessing=None)
