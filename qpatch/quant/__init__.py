"""Quantizers, straight-through estimators, and the network that is seen at many bit-widths."""

from qpatch.quant.calibrate import calibrate, post_training_quantize
from qpatch.quant.fused import fused
from qpatch.quant.isolate import PARTS, isolate
from qpatch.quant.multibit import WIDTHS, MultiBit, Policy
from qpatch.quant.quantizers import QUANTIZERS
from qpatch.quant.ste import fake_quantize, to_integers

__all__ = [
    "PARTS",
    "QUANTIZERS",
    "WIDTHS",
    "MultiBit",
    "Policy",
    "calibrate",
    "fake_quantize",
    "fused",
    "isolate",
    "post_training_quantize",
    "to_integers",
]
