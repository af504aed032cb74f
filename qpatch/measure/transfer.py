"""The transfer matrix: patches made at one bit-width, judged at every other."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import torch
from torch import Tensor, nn

from qpatch.attacks.controls import noise_pixels, photo_pixels
from qpatch.attacks.patch import Patch, check_places, paste
from qpatch.checks import check_images, check_labels
from qpatch.errors import InputError
from qpatch.measure.stats import student, wilson
from qpatch.measure.success import predict, success_of

CONTROLS = ("noise", "grey", "photo")
COLUMNS = ("source_bits", "target_bits", "seed", "n", "asr", "ci_low", "ci_high", "error_rate", "clean_accuracy",
           *(f"asr_{control}" for control in CONTROLS))


def transfer_rows(
    views: Mapping[int, nn.Module],
    patches: Mapping[tuple[int, int], Patch],
    images: Tensor,
    labels: Tensor,
    places: Tensor,
    *,
    photos: tuple[Tensor, Tensor],
    control_seed: int = 0,
    batch: int = 100,
) -> pd.DataFrame:
    """Every universal patch on every view, with controls at the same places in the same images.

    Clean and control predictions are made once per view. The controls draw a new noise patch and a new photograph
    for each image, so that their rates are means over such patches and not the luck of a single one.

    Args:
        views: target bits → network view in eval mode.
        patches: (source bits, seed) → patch; all of one size, mask and target.
        images, labels: float32 (N, C, H, W) in [0, 1] and int64 (N,), not those that the patches were made on.
        places: int64 (N, 2), see `sample_places`; the same for all rows.
        photos: training images and labels from which the photographs are taken (of the target class if there is one).
        control_seed: fixes the noise and the choice of photographs.
        batch: images per forward pass.

    Returns:
        One row per patch and view: source_bits, target_bits, seed, n, asr, ci_low, ci_high (Wilson), error_rate,
        clean_accuracy (as in `Success`), and asr_noise, asr_grey, asr_photo.

    Raises:
        InputError: no patches, patches that differ in size, mask or target, or malformed images, labels, places.
    """
    model = _alike(patches)
    attacked = {key: (patch.pixels, places) for key, patch in patches.items()}
    return specific_rows(views, attacked, model.mask, images, labels, target=model.target, photos=photos,
                         control_seed=control_seed, batch=batch)


def specific_rows(
    views: Mapping[int, nn.Module],
    attacked: Mapping[tuple[int, int], tuple[Tensor, Tensor]],
    mask: Tensor,
    images: Tensor,
    labels: Tensor,
    *,
    target: int | None = None,
    photos: tuple[Tensor, Tensor],
    control_seed: int = 0,
    batch: int = 100,
) -> pd.DataFrame:
    """`transfer_rows` for image-specific patches: each image has its own pixels, and each attack its own places.

    Args:
        attacked: (source bits, seed) → pixels (N, C, h, w) and places (N, 2), as `attack.fit_each` returns them.
        mask: (1, h, w), the attack's.
        target: the attack's.

    The other arguments, the columns and the errors are those of `transfer_rows`.
    """
    check_images(images)
    check_labels(labels, len(images))
    clean = {bits: predict(view, images, batch) for bits, view in views.items()}
    rows, controls = [], {}
    for (source, seed), (pixels, places) in attacked.items():
        check_places(places, images, mask.shape[-2:])
        where = places.cpu().numpy().tobytes()  # attacks often share their places, and then their controls
        if where not in controls:
            controls[where] = control_rates(
                views, clean, mask, target, images, labels, places, photos=photos, seed=control_seed, batch=batch)
        patched = _patched_predictions(views, images, pixels, mask, places, batch)
        for bits in views:
            success = success_of(clean[bits], patched[bits], labels, target)
            rows.append({"source_bits": source, "target_bits": bits, "seed": seed, **vars(success),
                         **controls[where][bits]})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def control_rates(
    views: Mapping[int, nn.Module],
    clean: Mapping[int, Tensor],
    mask: Tensor,
    target: int | None,
    images: Tensor,
    labels: Tensor,
    places: Tensor,
    *,
    photos: tuple[Tensor, Tensor],
    seed: int = 0,
    batch: int = 100,
) -> dict[int, dict[str, float]]:
    """Per view, the success rates (asr_noise, asr_grey, asr_photo) of patches that nobody optimised.

    Args:
        clean: per view, its predictions for the clean images.
    """
    (n, channels), size = images.shape[:2], tuple(mask.shape[-2:])
    pixels = {
        "noise": noise_pixels(n, channels, size, seed),
        "grey": torch.full((channels, *size), 0.5),
        "photo": photo_pixels(n, *photos, target, size, seed),
    }
    rates: dict[int, dict[str, float]] = {bits: {} for bits in views}
    for control in CONTROLS:
        patched = _patched_predictions(views, images, pixels[control], mask, places, batch)
        for bits in views:
            rates[bits][f"asr_{control}"] = success_of(clean[bits], patched[bits], labels, target).asr
    return rates


def _patched_predictions(
    views: Mapping[int, nn.Module], images: Tensor, pixels: Tensor, mask: Tensor, places: Tensor, batch: int
) -> dict[int, Tensor]:
    """What every view says about the patched images; a batch is patched at a time, so that there is no second copy of all."""
    found: dict[int, list[Tensor]] = {bits: [] for bits in views}
    for start in range(0, len(images), batch):
        part = slice(start, start + batch)
        patched = paste(images[part], pixels[part] if pixels.dim() == 4 else pixels, mask, places[part])
        for bits, view in views.items():
            found[bits].append(predict(view, patched, batch))
    return {bits: torch.cat(parts) for bits, parts in found.items()}


def over_seeds(rows: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """The transfer matrix with its seeds put together.

    Images under one patch succeed or fail together, so the seeds × images trials are not independent: the patch is the
    sampling unit, the images are a cluster within it. Two intervals answer two questions:

    - ci_low, ci_high: Student's t over the seeds' rates. Would another patch, made the same way, do as well? This is
      the interval to quote for an attack; with three seeds it is wide, and it is nan for a single one.
    - wilson_low, wilson_high: Wilson for the mean rate on the images of *one* seed (pooling the seeds would count the
      same images several times). Would these patches do as well on other images?

    Returns:
        One row per source and target width: source_bits, target_bits, seeds, n (per seed), asr (mean over seeds),
        ci_low, ci_high, wilson_low, wilson_high, asr_min, asr_max, error_rate, clean_accuracy, asr_noise, asr_grey,
        asr_photo.
    """
    table = []
    for (source, bits), group in rows.groupby(["source_bits", "target_bits"], sort=False):
        asr, n = float(group["asr"].mean()), int(group["n"].iloc[0])
        low, high = student(group["asr"].tolist(), level)
        wilson_low, wilson_high = wilson(asr * n, n, level) if n else wilson(0, 0, level)
        means = group[["error_rate", "clean_accuracy", *(f"asr_{control}" for control in CONTROLS)]].mean()
        table.append({
            "source_bits": source, "target_bits": bits, "seeds": len(group), "n": n, "asr": asr,
            "ci_low": low, "ci_high": high, "wilson_low": wilson_low, "wilson_high": wilson_high,
            "asr_min": float(group["asr"].min()), "asr_max": float(group["asr"].max()), **means.to_dict(),
        })
    return pd.DataFrame(table)


def _alike(patches: Mapping[tuple[int, int], Patch]) -> Patch:
    """One of the patches, for what they must have in common."""
    if not patches:
        raise InputError("there are no patches to transfer.")
    model, *rest = patches.values()
    for patch in rest:
        if patch.size != model.size or patch.target != model.target or not torch.equal(patch.mask, model.mask):
            raise InputError("the patches differ in size, mask or target; make one table for each kind.")
    return model
