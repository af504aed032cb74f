"""Defenses, one per file. A train-time defense is a loss for `qpatch.training.train`; an input defense cleans images."""

from qpatch.defenses.adversarial_training import AdversarialTraining
from qpatch.defenses.diffpure import DiffPure
from qpatch.defenses.distillation import Distillation
from qpatch.defenses.dwq import DoubleWinQuant, RandomPrecision
from qpatch.defenses.ensemble import EnsembleAdversarialTraining
from qpatch.defenses.feature_squeezing import FeatureSqueezing
from qpatch.defenses.inner import linf_pgd
from qpatch.defenses.input import Defended
from qpatch.defenses.jedi import Jedi
from qpatch.defenses.jpeg import JPEG
from qpatch.defenses.likeness import Likeness
from qpatch.defenses.patch_training import PatchTraining
from qpatch.defenses.patchers import OnlinePatches, PatchPool
from qpatch.defenses.pbat import PBAT
from qpatch.defenses.pbcat import PBCAT
from qpatch.defenses.pixel_defend import PixelDefend
from qpatch.defenses.qadt_r import QADTR, NoisyActivations
from qpatch.defenses.quantization_shift import QuantizationShiftTraining
from qpatch.defenses.sinkhorn import SinkhornTraining, sinkhorn_divergence
from qpatch.defenses.triqdef import CURRICULUM, TriQDef

__all__ = [
    "AdversarialTraining", "CURRICULUM", "Defended", "DiffPure", "Distillation", "DoubleWinQuant",
    "EnsembleAdversarialTraining", "FeatureSqueezing", "JPEG", "Jedi", "Likeness", "NoisyActivations", "OnlinePatches",
    "PBAT", "PBCAT", "PatchPool", "PatchTraining", "PixelDefend", "QADTR", "QuantizationShiftTraining", "RandomPrecision",
    "SinkhornTraining", "TriQDef", "linf_pgd", "sinkhorn_divergence",
]  # fmt: skip
