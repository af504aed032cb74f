"""Measuring: accuracy, attack success, and transfer between bit-widths."""

from qpatch.measure.attack_rows import attack_rows, distance_row
from qpatch.measure.distortion import distortion, kept
from qpatch.measure.defended import cleaned, defended_predictions, defended_rows
from qpatch.measure.explain import explained
from qpatch.measure.gradient_rows import (
    Share,
    alignment_rows,
    bootstrap,
    partners,
    share_of,
    step_rows,
    summarize,
    zero_share,
)
from qpatch.measure.gradients import (
    SCORES,
    central_differences,
    directional_differences,
    edges,
    input_gradients,
    logits_of,
    moved,
    off_grid,
    probes,
    sample_values,
)
from qpatch.measure.integers import deployed_rows, proof_rows
from qpatch.measure.pixel import pixel_rows
from qpatch.measure.precision import precision_rows
from qpatch.measure.published_gradients import Gridded, keras_cross_entropy, script_differences
from qpatch.measure.stats import median_ratio, student, wilson
from qpatch.measure.success import Success, accuracy, attack_success, predict, success_of
from qpatch.measure.transfer import over_seeds, specific_rows, transfer_rows
from qpatch.measure.weights import weight_distance

__all__ = [
    "SCORES",
    "Gridded",
    "Share",
    "Success",
    "accuracy",
    "alignment_rows",
    "attack_rows",
    "attack_success",
    "bootstrap",
    "central_differences",
    "cleaned",
    "defended_predictions",
    "defended_rows",
    "deployed_rows",
    "directional_differences",
    "distance_row",
    "distortion",
    "edges",
    "explained",
    "input_gradients",
    "keras_cross_entropy",
    "kept",
    "logits_of",
    "median_ratio",
    "moved",
    "off_grid",
    "over_seeds",
    "partners",
    "pixel_rows",
    "precision_rows",
    "predict",
    "probes",
    "proof_rows",
    "sample_values",
    "script_differences",
    "share_of",
    "specific_rows",
    "step_rows",
    "student",
    "success_of",
    "summarize",
    "transfer_rows",
    "weight_distance",
    "wilson",
    "zero_share",
]
