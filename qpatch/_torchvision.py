"""Let a torchvision built for CUDA import beside a CPU build of torch.

timm and torchattacks import torchvision. Where its compiled operators cannot load, `import torchvision` stops
at two missing operator schemas. Declaring them first is enough; `torchvision.ops.nms` then stays unusable,
which nothing here needs. Where the operators load, this does nothing.
"""

import importlib.util
import pathlib

import torch

_library = None  # must outlive the import of torchvision


def ensure_torchvision() -> None:
    """Load torchvision's operators, or declare the two schemas that its import needs."""
    global _library
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    for library in pathlib.Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(library))
            return
        except OSError:
            break
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for op in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, op):
            _library.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
