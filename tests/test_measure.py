"""Success, intervals and transfer on cases small enough to count by hand."""

import math

import pytest
import torch
from torch import nn

from qpatch.attacks import grey_patch, noise_patch, paste, sample_places
from qpatch.errors import InputError, ParameterError
from qpatch.measure import (
    accuracy, attack_success, median_ratio, over_seeds, pixel_rows, specific_rows, student, success_of, transfer_rows,
    weight_distance, wilson,
)  # fmt: skip


class Lookup(nn.Module):
    """Reads the class off the first pixel: value k / 10 → class k."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return nn.functional.one_hot((x[:, 0, 0, 0] * 10).round().long(), 11).float()


def pictures(classes):
    return (torch.tensor(classes).float() / 10).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).clone()


LABELS = torch.tensor([0, 1, 2, 3, 4, 5])
CLEAN = pictures([0, 1, 2, 3, 9, 9])  # four right, two wrong
PATCHED = pictures([0, 7, 7, 3, 7, 5])  # of the right ones, 1 and 2 become 7; one mistake becomes right


def test_untargeted_success_by_hand():
    success = attack_success(Lookup().eval(), CLEAN, PATCHED, LABELS)
    assert (success.n, success.asr) == (4, 0.5)
    assert success.error_rate == 3 / 6 and success.clean_accuracy == 4 / 6
    assert (success.ci_low, success.ci_high) == wilson(2, 4)


def test_targeted_success_by_hand():
    net = Lookup().eval()
    assert attack_success(net, CLEAN, PATCHED, LABELS, target=7).asr == 0.5
    one_less = attack_success(net, CLEAN, PATCHED, LABELS, target=3)  # the image of class 3 does not count
    assert (one_less.n, one_less.asr, one_less.error_rate) == (3, 0.0, 0.5)


def test_no_image_counts():
    success = success_of(torch.tensor([1]), torch.tensor([1]), torch.tensor([0]))
    assert success.n == 0 and math.isnan(success.asr) and (success.ci_low, success.ci_high) == (0, 1)


def test_accuracy_does_not_depend_on_the_batch():
    assert accuracy(Lookup().eval(), CLEAN, LABELS, batch=4) == 4 / 6


def test_refusals():
    with pytest.raises(InputError, match="train mode"):
        attack_success(Lookup().train(), CLEAN, PATCHED, LABELS)
    with pytest.raises(InputError, match="differ in shape"):
        attack_success(Lookup().eval(), CLEAN, PATCHED[:5], LABELS)
    with pytest.raises(InputError, match="int64"):
        attack_success(Lookup().eval(), CLEAN, PATCHED, LABELS.float())


def test_wilson_against_hand_values():
    # p = 0.8, n = 10, z = 1.96: (0.8 + 0.19207 ± 1.96 · √(0.016 + 0.0096036)) / 1.38415 = 0.71674 ± 0.22658
    assert wilson(8, 10) == pytest.approx((0.49016, 0.94332), abs=2e-5)
    assert wilson(0, 10) == pytest.approx((0.0, 0.27754), abs=2e-5)  # z² / (n + z²)
    assert wilson(0, 0) == (0, 1)
    for bad in (dict(successes=3, n=2), dict(successes=-1, n=2), dict(successes=1, n=2, level=1.0)):
        with pytest.raises(ParameterError):
            wilson(**bad)


def test_student_against_a_hand_value():
    # mean 0.5, s = 0.1, t(2; 0.975) = 4.3027: half width 4.3027 · 0.1 / √3 = 0.24841
    assert student([0.4, 0.5, 0.6]) == pytest.approx((0.25159, 0.74841), abs=1e-5)
    assert student([0.0, 0.5])[0] == 0 and all(map(math.isnan, student([0.5])))


def transfer(batch=500):
    images, labels = pictures([0, 1, 2, 3, 5, 9]), LABELS
    views = {32: Lookup().eval(), 2: Lookup().eval()}
    patches = {(bits, seed): noise_patch(1, seed=10 * bits + seed) for bits in (32, 2) for seed in (0, 1)}
    places = torch.zeros(6, 2, dtype=torch.int64)
    rows = transfer_rows(views, patches, images, labels, places, photos=(images, labels), batch=batch)
    return views, patches, rows


def test_transfer_rows():
    views, patches, rows = transfer()
    assert list(rows.columns) == ["source_bits", "target_bits", "seed", "n", "asr", "ci_low", "ci_high", "error_rate",
                                  "clean_accuracy", "asr_noise", "asr_grey", "asr_photo"]
    assert list(zip(rows.source_bits, rows.target_bits, rows.seed)) == [
        (source, bits, seed) for source, seed in patches for bits in views]
    # A one-pixel patch at (0, 0) decides the class outright; four images count.
    for row in rows.itertuples():
        shown = round(float(patches[row.source_bits, row.seed].pixels[0, 0, 0]) * 10)
        assert row.n == 4 and row.clean_accuracy == 4 / 6
        assert row.asr == sum(shown != label for label in range(4)) / 4
        assert row.error_rate == sum(shown != label for label in range(6)) / 6
    assert (rows.asr_grey == 1).all()  # 0.5 shows class 5, and no image of class 5 counts
    # Per view: one pass for the clean images, three for the controls, one for each patch.
    assert views[32].calls == 1 + 3 + len(patches)


def test_batches_do_not_matter_and_tables_repeat():
    assert transfer()[2].to_csv() == transfer(batch=2)[2].to_csv()


def test_specific_rows_agree_with_universal_ones():
    views, patches, rows = transfer()
    images, places = pictures([0, 1, 2, 3, 5, 9]), torch.zeros(6, 2, dtype=torch.int64)
    each = {key: (patch.pixels.expand(6, 3, 1, 1), places) for key, patch in patches.items()}
    same = specific_rows(views, each, torch.ones(1, 1, 1), images, LABELS, photos=(images, LABELS))
    assert same.to_csv() == rows.to_csv()


def test_images_are_patched_a_batch_at_a_time(monkeypatch):
    """Not all at once, which would be a second copy of them; and each batch gets its own images' patches and places."""
    images, labels = pictures(range(10)), torch.arange(10)
    pixels = torch.rand(10, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    places = sample_places("random", 10, 8, 2, torch.Generator().manual_seed(0))
    sizes = []

    def spy(part, *arguments):
        sizes.append(len(part))
        return paste(part, *arguments)

    monkeypatch.setattr("qpatch.measure.transfer.paste", spy)
    tables = [specific_rows({32: Lookup().eval()}, {(32, 0): (pixels, places)}, torch.ones(1, 2, 2), images, labels,
                            photos=(images, labels), batch=batch).to_csv() for batch in (4, 10)]  # fmt: skip
    assert tables[0] == tables[1] and max(sizes[:-4]) == 4 and sizes[-4:] == [10] * 4


def test_over_seeds():
    rows = transfer()[2]
    table = over_seeds(rows)
    assert len(table) == 4 and (table.seeds == 2).all() and (table.n == 4).all()
    first = rows[(rows.source_bits == 32) & (rows.target_bits == 32)].asr
    assert table.asr[0] == first.mean() and (table.asr_min[0], table.asr_max[0]) == (first.min(), first.max())
    assert (table.ci_low[0], table.ci_high[0]) == student(first.tolist())
    assert (table.wilson_low[0], table.wilson_high[0]) == wilson(first.mean() * 4, 4)


def test_unequal_patches_are_refused():
    images, places = pictures([0, 1]), torch.zeros(2, 2, dtype=torch.int64)
    for patches in ({}, {(32, 0): grey_patch(2), (32, 1): grey_patch(3)}):
        with pytest.raises(InputError, match="patches"):
            transfer_rows({32: Lookup().eval()}, patches, images, LABELS[:2], places, photos=(images, LABELS[:2]))


def test_controls_sit_where_the_patches_sit():
    seen = []

    class Spy(Lookup):
        def forward(self, x):
            seen.append(x)
            return super().forward(x)

    images, labels = torch.ones(4, 3, 32, 32), torch.zeros(4, dtype=torch.int64)
    images[:, :, 0, 0] = 0
    places = sample_places("away", 4, 32, 6, torch.Generator().manual_seed(0))
    patches = {(32, 0): noise_patch(6, shape="circle", seed=1)}
    transfer_rows({32: Spy().eval()}, patches, images, labels, places, photos=(0 * images, labels))
    touched = paste(torch.zeros(4, 1, 32, 32), torch.ones(1, 6, 6), patches[32, 0].mask, places).bool()
    for batch in seen[1:]:
        assert not ((batch != images).any(dim=1, keepdim=True) & ~touched).any()


def test_weight_distance_by_hand():
    one, two = torch.nn.Linear(2, 1, bias=False), torch.nn.Linear(2, 1, bias=False)
    one.weight.data, two.weight.data = torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 0.0]])
    assert weight_distance(one, two) == {"relative": pytest.approx(0.8), "cosine": pytest.approx(0.6)}
    with pytest.raises(InputError, match="differ in their layers"):
        weight_distance(one, torch.nn.Linear(3, 1))


def test_pixel_rows_count_against_each_views_own_clean_answers():
    """The view says 1 where the mean pixel is above one half; the attack brightens half of the dark images."""

    class Bright(torch.nn.Module):
        def forward(self, x):
            mean = x.mean((1, 2, 3))
            return torch.stack([0.5 - mean, mean - 0.5], 1)

    clean = torch.full((4, 3, 2, 2), 0.4)
    attacked = clean.clone()
    attacked[:2] = 0.7
    rows = pixel_rows({32: Bright().eval()}, {(32, 0): attacked}, clean, torch.zeros(4, dtype=torch.int64), eps=0.01)
    row = rows.iloc[0]
    assert (row.n, row.asr, row.error_rate, row.clean_accuracy, row.asr_noise) == (4, 0.5, 0.5, 1.0, 0.0)

def test_median_ratio_pairs_images_and_leaves_out_what_has_no_distance():
    values = torch.tensor([2.0, 6.0, 8.0, float("inf"), 3.0, float("nan")])
    reference = torch.tensor([1.0, 2.0, 2.0, 1.0, 0.0, 1.0])
    found = median_ratio(values, reference)
    assert found["n"] == 3 and found["ratio"] == 3.0 and 2.0 <= found["ratio_low"] <= 3.0 <= found["ratio_high"] <= 4.0


def test_median_ratio_of_equal_distances_is_one_without_spread():
    ones = torch.rand(50, generator=torch.Generator().manual_seed(0)) + 1
    assert median_ratio(ones, ones) == {"ratio": 1.0, "ratio_low": 1.0, "ratio_high": 1.0, "n": 50}


def test_median_ratio_narrows_with_more_images():
    def width(n):
        generator = torch.Generator().manual_seed(1)
        found = median_ratio(torch.rand(n, generator=generator) + 1, torch.ones(n))
        return found["ratio_high"] - found["ratio_low"]

    assert width(1000) < width(100) < width(10)
    assert math.isnan(median_ratio(torch.zeros(3), torch.ones(3))["ratio"])
