"""Sparse-RS on hand-made models whose weakness is known: the search must find exactly that, and count its questions."""

import pytest
import torch
from torch import nn

from qpatch.attacks.patch import paste
from qpatch.attacks.sparse_rs import SparseRS, _drawn
from qpatch.errors import InputError, ParameterError

SPOT = (2, 9)  # the one pixel that the hand-made model looks at


class OnePixel(nn.Module):
    """Class 1 as soon as the red of one pixel, at SPOT, is above 0.9 and its green below 0.1; else class 0."""

    def __init__(self):
        super().__init__()
        self.asked = 0
        self.eval()

    def forward(self, images):
        self.asked += len(images)
        red, green, _ = images[:, :, SPOT[0], SPOT[1]].unbind(1)
        return torch.stack([torch.full_like(red, 0.5), (red - green).clamp(min=0) - 0.4 * (red < 0.9)], dim=1)


class Redness(nn.Module):
    """Class 1 gets the mean of red minus green over the upper left quarter, class 0 a constant out of reach."""

    def __init__(self):
        super().__init__()
        self.eval()

    def forward(self, images):
        red, green, _ = images[..., :4, :4].mean((2, 3)).unbind(1)
        return torch.stack([torch.full_like(red, 9.0), red - green], dim=1)


def grey(n: int):
    return torch.full((n, 3, 12, 12), 0.5), torch.zeros(n, dtype=torch.int64)


def test_finds_the_one_weak_pixel_and_only_patches_that_cover_it():
    images, labels = grey(10)
    found = SparseRS(OnePixel(), 3, queries=3000, seed=1).run(images, labels)
    assert found.success.all()
    assert torch.equal(OnePixel()(found.images).argmax(1), torch.ones(10, dtype=torch.int64))
    offset = torch.tensor(SPOT) - found.places
    assert bool(((offset >= 0) & (offset < 3)).all())
    assert torch.equal(found.images, paste(images, found.pixels, torch.ones(1, 3, 3), found.places))
    assert set(found.pixels.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(images, grey(10)[0])


def test_a_patch_that_may_not_reach_the_pixel_never_succeeds_and_asks_to_the_end():
    images, labels = grey(4)
    view = OnePixel()
    found = SparseRS(view, 3, place="bottom_left", queries=30).run(images, labels)
    assert not found.success.any() and torch.equal(found.first, torch.zeros(4, dtype=torch.int64))
    assert torch.equal(found.queries, torch.full((4,), 30)) and view.asked == 1 + 4 * 30  # one to learn the classes
    assert torch.equal(found.places, torch.tensor([[9, 0]] * 4))


def test_given_places_stay_and_only_pixels_are_searched():
    images, labels = grey(3)
    places = torch.tensor([[0, 7], [1, 8], [5, 0]])  # the first two cover the pixel
    found = SparseRS(OnePixel(), 3, queries=1000).run(images, labels, places)
    assert torch.equal(found.places, places) and found.success.tolist() == [True, True, False]
    with pytest.raises(InputError, match="outside"):
        SparseRS(OnePixel(), 3).run(images, labels, places + 5)


def test_no_question_after_the_first_success():
    images, labels = grey(12)
    view = OnePixel()
    found = SparseRS(view, 6, queries=200, seed=2).run(images, labels)
    assert torch.equal(found.queries, torch.where(found.success, found.first, 200))
    assert view.asked == 1 + int(found.queries.sum())
    assert torch.equal(found.within(200), found.success)


def test_the_draws_of_an_image_do_not_depend_on_the_others():
    images, labels = grey(6)
    whole = SparseRS(OnePixel(), 3, queries=2000, seed=3).run(images, labels)
    mixed = images.clone()
    mixed[0, 0, SPOT[0], SPOT[1]], mixed[0, 1, SPOT[0], SPOT[1]] = 1.0, 0.0  # this one is lost at once
    other = SparseRS(OnePixel(), 3, queries=2000, seed=3).run(mixed, labels)
    assert other.first[0] == 1 and whole.success.all()
    assert torch.equal(other.first[1:], whole.first[1:]) and torch.equal(other.pixels[1:], whole.pixels[1:])


def test_never_keeps_a_change_for_the_worse():
    images, labels = grey(5)
    lowest = []

    class Watched(SparseRS):
        def _ask(self, *arguments):
            margin, hit = super()._ask(*arguments)
            lowest.append(margin)
            return margin, hit

    found = Watched(Redness(), 4, place="top_left", queries=120).run(images, labels)
    final = Redness()(found.images)
    assert torch.allclose(final[:, 0] - final[:, 1], torch.stack(lowest).amin(0), atol=1e-6)


def test_a_universal_patch_reaches_the_known_optimum():
    images, labels = grey(10)
    patch = SparseRS(Redness(), 2, place=(1, 1), queries=800, resample=50, confidence=100.0).fit(images, labels)
    assert torch.equal(patch.pixels[0], torch.ones(2, 2)) and torch.equal(patch.pixels[1], torch.zeros(2, 2))
    again = SparseRS(Redness(), 2, place=(1, 1), queries=800, resample=50, confidence=100.0).fit(images, labels)
    assert torch.equal(patch.pixels, again.pixels) and patch.made_on["queries"] == 800


def test_a_target_is_shown_and_a_wrong_one_refused():
    images, labels = grey(3)
    assert SparseRS(OnePixel(), 4, target=1, queries=3000).run(images, labels).success.all()
    with pytest.raises(InputError, match="target is 2"):
        SparseRS(OnePixel(), 6, target=2).run(images, labels)


def test_squares_shrink_as_published():
    attack = SparseRS(OnePixel(), 20, queries=10_000)
    # √(0.4·share)·20, cut: the first values of the published schedule
    assert [attack.side(q)[0] for q in (10, 50, 200, 500, 1000, 4000, 8000, 10_000)] == [12, 8, 6, 4, 3, 2, 1, 1]


def test_places_stay_allowed_and_within_reach():
    attack = SparseRS(OnePixel(), 6, place="away", queries=100)
    allowed = torch.zeros(27, 27, dtype=torch.bool)
    allowed[:3], allowed[-3:] = True, True
    places = _drawn(allowed.expand(200, -1, -1), torch.Generator().manual_seed(0))
    assert allowed[places[:, 0], places[:, 1]].all()
    late = attack._moved(places, allowed, 90, torch.Generator().manual_seed(1))  # reach int(0.75·0.1·32) = 2
    assert allowed[late[:, 0], late[:, 1]].all() and int((late - places).abs().max()) == 2
    assert not (late == places).all(1).any()
    assert torch.equal(attack._moved(places, allowed, 100, torch.Generator()), places)  # no reach is left


@pytest.mark.parametrize("wrong", [{"queries": 0}, {"alpha": 0.0}, {"confidence": -1.0}, {"resample": 0}])
def test_wrong_parameters_are_refused(wrong):
    with pytest.raises(ParameterError):
        SparseRS(OnePixel(), 3, **wrong)


def test_train_mode_and_large_patches_are_refused():
    images, labels = grey(2)
    with pytest.raises(InputError):
        SparseRS(OnePixel().train(), 3).run(images, labels)
    with pytest.raises(InputError, match="does not fit"):
        SparseRS(OnePixel(), 13).run(images, labels)
