"""Measuring: accuracy, attack success, and transfer between bit-widths."""

from qpatch.measure.alignment import layer_gradients, pairwise_alignment, shared_direction, symmetric
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
from qpatch.measure.pairs import OUTCOMES, explain, explained_rows, of_end, transfer_pairs
from qpatch.measure.pixel import pixel_rows
from qpatch.measure.place_map import centrality, map_agreement, place_grid, place_hits, place_means, place_saliency
from qpatch.measure.precision import precision_rows
from qpatch.measure.published_gradients import Gridded, keras_cross_entropy, script_differences
from qpatch.measure.similarity import (
    COMPARISONS,
    Pair,
    Reading,
    layer_rows,
    observe,
    pooled_rows,
    shuffle_pixels,
    similarity_rows,
)
from qpatch.measure.similarity_controls import (
    expected_hog_cosine,
    random_rows,
    soft_rows,
    sparsity_rows,
    tie_rows,
)
from qpatch.measure.stats import median_ratio, student, wilson
from qpatch.measure.success import Success, accuracy, attack_success, predict, success_of
from qpatch.measure.transfer import over_seeds, specific_rows, transfer_rows
from qpatch.measure.visibility import Look, total_variation, visibility, visibility_rows
from qpatch.measure.weights import weight_distance

__all__ = [
    "COMPARISONS",
    "OUTCOMES",
    "SCORES",
    "Gridded",
    "Look",
    "Pair",
    "Reading",
    "Share",
    "Success",
    "accuracy",
    "alignment_rows",
    "attack_rows",
    "attack_success",
    "bootstrap",
    "central_differences",
    "centrality",
    "cleaned",
    "defended_predictions",
    "defended_rows",
    "deployed_rows",
    "directional_differences",
    "distance_row",
    "distortion",
    "edges",
    "expected_hog_cosine",
    "explain",
    "explained",
    "explained_rows",
    "input_gradients",
    "kept",
    "keras_cross_entropy",
    "layer_gradients",
    "layer_rows",
    "logits_of",
    "map_agreement",
    "median_ratio",
    "moved",
    "observe",
    "of_end",
    "off_grid",
    "over_seeds",
    "pairwise_alignment",
    "partners",
    "pixel_rows",
    "place_grid",
    "place_hits",
    "place_means",
    "place_saliency",
    "pooled_rows",
    "precision_rows",
    "predict",
    "probes",
    "proof_rows",
    "random_rows",
    "sample_values",
    "script_differences",
    "share_of",
    "shared_direction",
    "shuffle_pixels",
    "similarity_rows",
    "soft_rows",
    "sparsity_rows",
    "specific_rows",
    "step_rows",
    "student",
    "success_of",
    "summarize",
    "symmetric",
    "tie_rows",
    "total_variation",
    "transfer_pairs",
    "transfer_rows",
    "visibility",
    "visibility_rows",
    "weight_distance",
    "wilson",
    "zero_share",
]
