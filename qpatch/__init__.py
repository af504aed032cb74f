"""qpatch: adversarial patches on quantized neural networks, an executable companion to three papers."""

from qpatch._torchvision import ensure_torchvision

ensure_torchvision()  # before anything imports timm or torchattacks

__version__ = "0.1.0"
