"""The images from which the zoo's quantizers take their ranges."""

from torch import Tensor

from qpatch.data import Dataset, balanced_subset

IMAGES = 500


def calibration_images(train: Dataset) -> Tensor:
    """The training images from which every activation range of the zoo is taken: float32 in [0, 1]; all, if there are few."""
    if len(train) <= IMAGES:
        return train.floats()
    return train.floats(balanced_subset(train, IMAGES, seed=0))
