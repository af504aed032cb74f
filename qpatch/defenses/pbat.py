"""PBAT: patch-based adversarial training with location optimisation (Rao, Stutz, Schiele 2020)."""

from __future__ import annotations

from dataclasses import dataclass

from qpatch.defenses.patch_training import PatchTraining


@dataclass(frozen=True)
class PBAT(PatchTraining):
    """½·CE(f(x), y) + ½·CE(f(A(P, x)), y), P = the patch and the place that raise the cross-entropy of this image.

    "Adversarial Training against Location-Optimized Adversarial Patches", arXiv 2005.02313; papers A and B call it PBAT.
    The patch is 10 signed steps of 0.1 from uniform noise, on the *float* view, outside the central third of the
    image; at every step a move by 2 pixels is tried: all four directions ("full", AT-FullLO) or one at random
    ("random", AT-RandLO). The method knows no bit-widths; so that it can be seen at all of them, each step trains
    one view, drawn at random, on patches of the float view.

    Deviations from the released code: 6×6 pixels as in papers A and B (there 8×8), 10 iterations (the parser's default;
    the text has 25), ResNet-8, and the training budget on the network's card (there 200 epochs).
    """

    location: str = "random"
