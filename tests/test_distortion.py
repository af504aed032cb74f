"""Distortion counted by hand, and as a network receives it."""

import math

import pandas as pd
import pytest
import torch
from torch import nn

from qpatch.errors import InputError, ParameterError
from qpatch.measure.attack_rows import attack_rows, distance_row
from qpatch.measure.distortion import distortion, kept


class Rounds(nn.Module):
    """Receives images on the lattice of 1/10."""

    def received(self, images):
        return (images * 10).round() / 10


def pair():
    clean = torch.full((2, 1, 2, 2), 0.5)
    changed = clean.clone()
    changed[0, 0, 0] += torch.tensor([0.03, -0.04])
    changed[1, 0] += torch.tensor([[0.2, 0.0], [1e-6, 0.0]])
    return clean, changed


def test_norms_by_hand():
    frame = distortion(*pair())
    assert frame["l0"].tolist() == [2, 1]  # a millionth is below the tolerance
    assert frame["l1"].tolist() == pytest.approx([0.07, 0.2], abs=2e-6)
    assert frame["l2"].tolist() == pytest.approx([0.05, 0.2], abs=1e-6)
    assert frame["linf"].tolist() == pytest.approx([0.04, 0.2], abs=1e-6)


def test_tolerance_decides_what_counts_as_changed():
    assert distortion(*pair(), tolerance=0)["l0"].tolist() == [2, 2]
    assert distortion(*pair(), tolerance=0.035)["l0"].tolist() == [1, 1]
    with pytest.raises(ParameterError, match="tolerance"):
        distortion(*pair(), tolerance=-1)


def test_what_is_rounded_away_does_not_count():
    frame = distortion(*pair(), Rounds())
    assert frame["l0"].tolist() == [0, 1] and frame["l2"].tolist() == pytest.approx([0, 0.2], abs=1e-6)
    assert kept(*pair(), Rounds()).tolist() == pytest.approx([0, 1], abs=1e-4)


def test_rounding_can_make_noise_larger():
    clean = torch.full((1, 1, 8, 8), 0.5)
    changed = clean + 0.06
    assert distortion(clean, changed, Rounds())["linf"].item() == pytest.approx(0.1, abs=1e-6)
    assert kept(clean, changed, Rounds()).item() == pytest.approx(0.1 / 0.06, abs=1e-5)
    assert kept(clean, changed, None).item() == pytest.approx(1)


def test_nothing_is_kept_of_nothing():
    clean = torch.rand(1, 3, 8, 8)
    assert math.isnan(kept(clean, clean, None).item())


def test_shapes_and_values_are_checked():
    clean, changed = pair()
    with pytest.raises(InputError, match="differ in shape"):
        distortion(clean, changed[:1])
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        distortion(clean, changed * 255)


def run_of_four(l2):
    """Four images of class 1: the first is wrong when clean, the second and third are fooled on both networks."""
    both = {"clean": [0, 1, 1, 1], "adv": [1, 0, 0, 1], "noise": [0, 1, 0, 1]}
    frame = pd.DataFrame({f"{kind}_{p}": values for kind, values in both.items() for p in ("float", "int8")})
    for p in ("float", "int8"):
        frame = frame.assign(**{f"{norm}_{p}": l2 for norm in ("l0", "l1", "l2", "linf")})
    return frame.assign(label=1, kept_int8=[0.0, 1.0, 0.5, 0.5], queries=[10, 20, 30, 40])


def test_rows_of_the_attack_table_by_hand():
    here, there = attack_rows(run_of_four([9.0, 1.0, 2.0, 4.0]), "float", ("float", "int8"))
    assert (here["how"], there["how"]) == ("own", "transferred")
    assert (here["n"], here["images"], here["asr"], here["asr_noise"]) == (3, 4, pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert (here["accuracy"], here["error_rate"], here["clean_accuracy"]) == (0.5, 0.5, 0.75)
    assert (here["l2_mean"], here["l2_max"], here["l2_fooled"]) == (4, 9, 1.5)
    assert (here["kept"], there["kept"], here["queries"]) == (1, 0.5, 25)
    assert here["acc_low"] < 0.5 < here["acc_high"]
    with pytest.raises(InputError, match="no images"):
        attack_rows(run_of_four([1.0] * 4)[:0], "float", ("float",))


def test_distances_are_compared_image_by_image_where_both_attacks_succeed():
    first, second = run_of_four([9.0, 3.0, 8.0, 4.0]), run_of_four([1.0, 1.0, 2.0, 1.0])
    row = distance_row(first, "int8", second, "float", "l2")
    assert (row["n"], row["ratio"]) == (2, 3.5)  # the median of 3/1 and 8/2
