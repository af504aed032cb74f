"""Rates and contrasts of patch trials: against hand-counted values, a bootstrap, and the luck of the best choice."""

import math

import numpy as np
import pytest
import torch

from qpatch.errors import InputError
from qpatch.measure.stats import student, wilson
from qpatch.measure.trials import Trials, contrast, crossfit, pooled, rate_row, ratio_difference, relative_drop


def drawn(rates, n=400, seed=0, patches="p", share=0.8):
    """Trials with one rate per patch; the images differ in how easily they are fooled."""
    generator = torch.Generator().manual_seed(seed)
    ease = torch.rand(n, generator=generator)
    hits = torch.stack([torch.rand(n, generator=generator) * 0.6 + ease * 0.4 < rate for rate in rates])
    return Trials.of(hits, torch.rand(n, generator=generator) < share, patches)


def test_a_rate_counts_only_images_that_count():
    hits = torch.tensor([[1, 1, 0, 0, 1], [0, 1, 0, 1, 1]]).bool()
    trials = Trials.of(hits, torch.tensor([1, 1, 1, 1, 0]).bool(), "p")
    assert trials.n == 4 and trials.by_seed.tolist() == [0.5, 0.5] and trials.rate == 0.5
    row = rate_row(trials)
    assert row["error_rate"] == pytest.approx(0.6) and (row["wilson_low"], row["wilson_high"]) == wilson(2, 4)
    assert (row["ci_low"], row["ci_high"]) == student([0.5, 0.5]) and (row["low"], row["high"]) == wilson(2, 4)
    with pytest.raises(InputError, match="trials need"):
        Trials.of(hits, torch.ones(4).bool(), "p")


def test_an_image_that_never_counts_gives_no_rate():
    nothing = Trials.of(torch.ones(2, 6).bool(), torch.zeros(6).bool(), "p")
    row = rate_row(nothing)
    assert nothing.n == 0 and math.isnan(row["asr"]) and (row["wilson_low"], row["wilson_high"]) == (0, 1)
    assert math.isnan(contrast((1, nothing), (-1, drawn([0.5], n=6))).value)


def test_pooling_is_the_expectation_over_lots():
    a = Trials.of(torch.tensor([[1, 0, 1, 1]]).bool(), torch.tensor([1, 1, 0, 0]).bool(), "p")
    b = Trials.of(torch.tensor([[1, 1, 1, 0]]).bool(), torch.tensor([1, 1, 1, 0]).bool(), "p")
    both = pooled([a, b])
    assert both.rate == pytest.approx((1 + 3) / (2 + 3)) and both.counts.tolist() == [1, 1, 0.5, 0] and both.patches == "p"


def test_the_part_for_the_images_is_what_a_bootstrap_finds():
    first, second = drawn([0.6], seed=1), drawn([0.45], seed=1, patches="q")
    value = contrast((1, first), (-1, second))
    rng, found = np.random.default_rng(0), []
    for _ in range(3000):
        pick = rng.integers(0, 400, 400)
        found.append(first.only(pick).rate - second.only(pick).rate)
    low, high = np.quantile(found, [0.025, 0.975])
    assert value.value == pytest.approx(first.rate - second.rate)
    assert value.low == pytest.approx(low, abs=0.008) and value.high == pytest.approx(high, abs=0.008)


def test_the_same_patches_are_compared_seed_by_seed():
    rates = [0.2, 0.5, 0.8]  # patches differ a lot, but each is 10 points weaker on the second network
    first, second = drawn([r + 0.1 for r in rates], seed=3, n=4000), drawn(rates, seed=3, n=4000)
    paired = contrast((1, first), (-1, second))
    other = contrast((1, first), (-1, Trials(second.hit, second.won, second.counts, "other patches")))
    assert paired.value == other.value and paired.high - paired.low < 0.3 * (other.high - other.low)
    half = student(list(second.by_seed))[1] - second.rate
    assert (other.high - other.low) / 2 > half, "unpaired: the spread of both sets of patches counts"


def test_ratios_and_their_intervals():
    base, other = drawn([0.8], seed=5), drawn([0.4], seed=5, patches="q")
    drop = relative_drop(base, other)
    assert drop.value == pytest.approx(1 - other.rate / base.rate) and drop.low < drop.value < drop.high
    rng = np.random.default_rng(0)
    found = [1 - other.only(i).rate / base.only(i).rate for i in rng.integers(0, 400, (2000, 400))]
    assert (drop.low, drop.high) == pytest.approx(np.quantile(found, [0.025, 0.975]), abs=0.015)
    assert ratio_difference((base, base), (other, base)).value == pytest.approx(drop.value)
    nothing = Trials.of(torch.zeros(1, 9).bool(), torch.ones(9).bool(), "p")
    assert math.isnan(relative_drop(nothing, nothing).value)


def test_the_choice_is_not_rewarded_for_luck():
    """Forty attacks that are all equally good: their maximum looks strong, the cross-fitted choice does not."""
    gaps, luck = [], []
    for seed in range(30):
        candidates = [(Trials.of(torch.rand(1, 200, generator=torch.Generator().manual_seed(100 * seed + k)) < 0.5,
                                 torch.ones(200).bool(), k),) for k in range(40)]  # fmt: skip
        (chosen,) = crossfit(candidates, lambda each: each.rate)
        gaps.append(chosen.rate - 0.5)
        luck.append(max(each.rate for (each,) in candidates) - 0.5)
    assert np.mean(luck) > 0.06 and abs(np.mean(gaps)) < 0.02


def test_a_better_attack_is_found_and_each_half_is_judged_by_the_other():
    weak, strong = drawn([0.3, 0.3], seed=1), drawn([0.7, 0.7], seed=2, patches="q")
    (chosen,) = crossfit([(weak,), (strong,)], lambda each: each.rate)
    assert chosen.rate == strong.rate and chosen.patches == "q"
    even = torch.arange(10) % 2 == 0  # each attack works on one half only: the other half recommends the wrong one
    a = Trials.of(even[None], torch.ones(10).bool(), "a")
    b = Trials.of(~even[None], torch.ones(10).bool(), "b")
    (chosen,) = crossfit([(a,), (b,)], lambda each: each.rate)
    assert chosen.rate == 0 and chosen.patches == ("b", "a")
    with pytest.raises(InputError, match="nothing to choose"):
        crossfit([], lambda each: each.rate)
