"""Tumours as rows of a table: Breast Cancer Wisconsin (Diagnostic), which scikit-learn carries.

Street, W. N., Wolberg, W. H., Mangasarian, O. L. Nuclear feature extraction for breast tumor diagnosis. SPIE 1905,
1993 (UCI Machine Learning Repository, CC BY 4.0).
"""

from __future__ import annotations

import os

import numpy as np
import torch

from qpatch.data.dataset import Dataset

CLASSES = ("malignant", "benign")
SHAPE = (3, 10)  # mean, error and worst of ten measures


def load_tumours(split: str, root: str | os.PathLike | None = None) -> Dataset:
    """Ten measures of cell nuclei, each as mean, error and worst: float32 N×1×3×10 in [0, 1], two classes.

    The rows at even places of the table train (285), the others test (284). Each feature is scaled so that its smallest
    and largest value over the training rows become 0 and 1; what lies beyond on the test rows is clipped.

    Args:
        split: "train" or "test".
        root: not used; the table comes with scikit-learn.
    """
    from sklearn.datasets import load_breast_cancer  # here, because its import takes seconds and few need it

    rows, labels = load_breast_cancer(return_X_y=True)
    low, high = rows[::2].min(0), rows[::2].max(0)
    scaled = ((rows - low) / (high - low)).clip(0, 1).astype(np.float32).reshape(-1, 1, *SHAPE)
    part = slice(0, None, 2) if split == "train" else slice(1, None, 2)
    images = torch.from_numpy(scaled[part].copy())
    return Dataset("tumours", split, images, torch.from_numpy(labels[part].astype(np.int64)), CLASSES)
