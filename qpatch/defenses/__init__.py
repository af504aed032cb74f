"""Defenses, one per file. A train-time defense is a loss for `qpatch.training.train`."""

from qpatch.defenses.adversarial_training import AdversarialTraining
from qpatch.defenses.distillation import Distillation
from qpatch.defenses.ensemble import EnsembleAdversarialTraining
from qpatch.defenses.inner import linf_pgd
from qpatch.defenses.quantization_shift import QuantizationShiftTraining
from qpatch.defenses.sinkhorn import SinkhornTraining, sinkhorn_divergence

__all__ = [
    "AdversarialTraining", "Distillation", "EnsembleAdversarialTraining", "QuantizationShiftTraining",
    "SinkhornTraining", "linf_pgd", "sinkhorn_divergence",
]  # fmt: skip
