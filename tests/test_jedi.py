"""Jedi by hand and against scipy: entropy maps, thresholds, clusters, the autoencoder, inpainting, and localisation."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy as scipy_entropy
from torch import nn

from qpatch.attacks import Equiluminant, LaVAN, make_mask, paste
from qpatch.attacks.base import frozen
from qpatch.attacks.equiluminant import LUMA, equal_luma
from qpatch.defenses import Defended
from qpatch.defenses.jedi import Jedi, entropy_maps, inpaint, without_small
from qpatch.defenses.mask_completion import MaskCompletion, square_masks, train_completion
from qpatch.errors import InputError, ParameterError
from qpatch.measure.localisation import localisation, overlap, patch_masks, repair

SMOOTH = {"mean": (0.5,), "std": (0.5,)}


def smooth_images(n, size=16):
    """Slow waves, on which no window is busy."""
    at = torch.arange(size) / size
    phase = torch.rand(n, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    return 0.5 + 0.3 * torch.sin(2 * math.pi * (at[:, None] + phase)) * torch.cos(math.pi * at)


def with_noise(images, places, size=5, seed=1):
    noisy = images.clone()
    for image, (row, column) in zip(noisy, places.tolist()):
        generator = torch.Generator().manual_seed(seed + row * 31 + column)
        image[:, row : row + size, column : column + size] = torch.rand(3, size, size, generator=generator).round()
    return noisy


PLACES = torch.tensor([[0, 0], [3, 9], [11, 11], [6, 2]])


# Localising ----------------------------------------------------------------------------------------------------


def test_entropy_is_that_of_the_window_with_mirrored_borders():
    images = torch.rand(2, 3, 7, 6, generator=torch.Generator().manual_seed(0))
    maps = entropy_maps(images, (3, 5), 4)
    grey = (images * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1).numpy()
    codes = np.minimum((grey * 4).astype(int), 3)
    for number, reach in enumerate((1, 2)):
        padded = np.pad(codes, ((0, 0), (reach, reach), (reach, reach)), mode="symmetric")
        for image, row, column in ((0, 0, 0), (0, 3, 2), (1, 6, 5), (1, 2, 0)):
            window = padded[image, row : row + 2 * reach + 1, column : column + 2 * reach + 1]
            expected = scipy_entropy(np.bincount(window.ravel()), base=2)
            assert float(maps[number, image, row, column]) == pytest.approx(expected, abs=1e-6)
    assert maps.shape == (2, 2, 7, 6)


def test_few_pixels_among_many_levels_are_all_different():
    """Why few levels are needed: the entropy of 9 pixels says nothing once each has a level of its own."""
    noise = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    ramp = torch.linspace(0.1, 0.9, 256).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    many, few = (entropy_maps(torch.cat([noise, ramp]), (3,), levels)[0] for levels in (256, 4))
    assert float(many[4, 4:12, 4:12].mean()) > 0.95 * float(many[:4].mean())
    assert float(few[4, 4:12, 4:12].mean()) < 0.5 * float(few[:4].mean())


def test_both_threshold_rules():
    images = with_noise(smooth_images(4), PLACES)
    maps = entropy_maps(images, (3,), 8)[0]
    everywhere = Jedi(**SMOOTH, tolerance=2.0, rule="clean", least=1).suspicious(images)
    own = Jedi(**SMOOTH, tolerance=2.0, rule="image", least=1).suspicious(images)
    assert torch.equal(everywhere, maps > 0.5 + 2.0 * 0.5)
    assert torch.equal(own, maps > maps.mean((1, 2), keepdim=True) + 2.0 * 0.5)
    assert everywhere.any() and not torch.equal(everywhere, own)


def test_any_window_can_raise_suspicion():
    images = with_noise(smooth_images(4), PLACES)
    alone = [Jedi(**SMOOTH, windows=(w,), rule="clean", least=1).suspicious(images) for w in (3, 5)]
    both = Jedi((0.5, 0.5), (0.5, 0.5), windows=(3, 5), rule="clean", least=1).suspicious(images)
    assert torch.equal(both, alone[0] | alone[1]) and not torch.equal(alone[0], alone[1])


def test_fitted_statistics_are_those_of_the_clean_images():
    images = smooth_images(6)
    jedi, maps = Jedi.fitted(images, (3, 5), levels=6, tolerance=1.0), entropy_maps(images, (3, 5), 6)
    for number in range(2):
        assert jedi.mean[number] == pytest.approx(float(maps[number].mean()), abs=1e-6)
        assert jedi.std[number] == pytest.approx(float(maps[number].std()), abs=1e-6)
    assert jedi.tolerance == 1.0 and jedi.levels == 6


def test_small_clusters_go_and_images_do_not_touch():
    masks = torch.zeros(3, 5, 5, dtype=torch.bool)
    masks[0, 0, :3] = masks[0, 1, 3] = True  # four pixels, the last one joined by a corner
    masks[0, 4, 0] = True
    masks[1, 0, :2] = masks[2, 0, :2] = True  # two pixels in each of two neighbours
    kept = without_small(masks, 3)
    assert int(kept[0].sum()) == 4 and not kept[0, 4].any() and not kept[1:].any()
    assert not without_small(masks & False, 1).any()


# Completing ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def completion():
    return train_completion(16, (4, 5, 6), per_size=60, steps=250)


def test_the_autoencoder_completes_squares_and_leaves_empty_masks_empty(completion):
    true = square_masks(40, 16, (5,), torch.Generator().manual_seed(7))
    part = true & (torch.rand(true.shape, generator=torch.Generator().manual_seed(1)) < 0.6)
    completed = completion.complete(part)
    assert overlap(completed, true).mean() > overlap(part, true).mean() + 0.05
    assert not completion.complete(true & False).any()


def test_training_depends_on_the_seed_only():
    first, again, other = (train_completion(8, (3,), per_size=20, steps=5, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.encode.weight, again.encode.weight)
    assert not torch.equal(first.encode.weight, other.encode.weight) and not first.training


def test_square_masks_are_whole_squares():
    masks = square_masks(30, 12, (3, 5), torch.Generator().manual_seed(0))
    assert masks.flatten(1).sum(1).tolist() == [9] * 30 + [25] * 30
    assert masks.any(1).sum(1).tolist() == [3] * 30 + [5] * 30


# Painting over -------------------------------------------------------------------------------------------------


def test_inpainting_continues_a_ramp_and_touches_nothing_else():
    ramp = (torch.arange(12) / 12).expand(3, 12, 12)[None].contiguous()
    masks = patch_masks(torch.tensor([[4, 4]]), 4, 12)
    holed = ramp.masked_fill(masks[:, None], 1.0)
    painted = inpaint(holed, masks)
    assert torch.equal(painted[:, :, ~masks[0]], holed[:, :, ~masks[0]])
    assert float((painted - ramp).abs().max()) < 0.02
    assert torch.equal(inpaint(ramp, masks & False), ramp)
    assert torch.equal(inpaint(ramp, masks | True), torch.full_like(ramp, 0.5))


def test_the_whole_defense_finds_a_patch_and_removes_it(completion):
    clean = smooth_images(4)
    images = with_noise(clean, PLACES)
    jedi = Jedi(**SMOOTH, tolerance=1.8, rule="clean", completion=completion)
    true = patch_masks(PLACES, 5, 16)
    found = localisation(jedi.mask(images), true, patch_masks((PLACES + 6) % 12, 5, 16))
    assert found.iou > 0.4 and found.iou > found.iou_elsewhere + 0.3 and found.n == 4
    assert not jedi.mask(clean).any() and torch.equal(jedi(clean), clean)
    cleaned = jedi(images)
    assert (cleaned - clean).square().mean() < 0.3 * (images - clean).square().mean()
    assert torch.equal(cleaned, jedi(images)) and 0 <= float(cleaned.min()) and float(cleaned.max()) <= 1


def test_images_do_not_depend_on_their_neighbours(completion):
    images = with_noise(smooth_images(4), PLACES)
    jedi = Jedi(**SMOOTH, completion=completion)
    assert torch.equal(jedi(images)[2:3], jedi(images[2:3]))


# Attacking -----------------------------------------------------------------------------------------------------


def classifier():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 5)).eval()


def test_gradients_pass_straight_through():
    net, images = classifier(), with_noise(smooth_images(4), PLACES)
    jedi = Jedi(**SMOOTH, rule="clean")
    points = images.clone().requires_grad_(True)
    with frozen(net):
        Defended(net, jedi)(points)[:, 1].sum().backward()
    cleaned = jedi(images).requires_grad_(True)
    net(cleaned)[:, 1].sum().backward()
    assert jedi.mask(images).any() and torch.equal(points.grad, cleaned.grad)


def test_an_attack_takes_the_defended_network_as_any_other():
    net, images, labels = classifier(), smooth_images(6), torch.arange(6) % 5
    attack = LaVAN(Defended(net, Jedi(**SMOOTH)), patch_size=4, steps=3, seed=0)
    adversarial = attack(images, labels)
    assert adversarial.shape == images.shape and not torch.equal(adversarial, images)


def luma(pixels):
    return (pixels * torch.tensor(LUMA).view(3, 1, 1)).sum(-3)


def test_colours_of_one_brightness():
    pixels = torch.rand(5, 3, 6, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    equal = equal_luma(pixels, 0.4)
    found = equal.detach()
    assert torch.allclose(luma(found), torch.tensor(0.4), atol=1e-5)
    assert 0 <= float(found.min()) and float(found.max()) <= 1 and float(found.std()) > 0.1
    there = torch.full((3, 2, 2), 0.4) + torch.tensor([0.1, 0.0, -0.1 * 0.299 / 0.114]).view(3, 1, 1)
    assert torch.allclose(equal_luma(there, 0.4), there, atol=1e-6)  # already at that brightness
    equal.sum().backward()
    assert pixels.grad.any()


@pytest.mark.parametrize("way", ["fit", "fit_each"])
def test_an_equiluminant_patch_lowers_the_objective_and_jedi_does_not_see_it(way):
    net, images, labels = classifier(), smooth_images(40) * 0.2 + 0.45, torch.arange(40) % 5
    attack = Equiluminant(net, 5, grey=0.56, target=1, place=(4, 4), steps=30, restarts=2, seed=0)
    if way == "fit":
        pixels = attack.fit(images, labels).pixels
        places = torch.full((40, 2), 4)
    else:
        pixels, places = attack.fit_each(images, labels)
    assert torch.allclose(luma(pixels), torch.tensor(0.56), atol=0.003)
    assert torch.equal(pixels, (pixels * 255).round() / 255)
    shown = paste(images, pixels, make_mask("square", 5), places)
    flat = paste(images, torch.full((3, 5, 5), 0.56), make_mask("square", 5), places)
    score = lambda x: attack.objective(net(x), labels, universal=False).mean()  # noqa: E731
    assert score(shown) < score(flat)
    jedi = Jedi(**SMOOTH, levels=4, tolerance=1.5, rule="clean")
    assert not (jedi.mask(shown) & ~jedi.mask(flat)).any()


# Measures ------------------------------------------------------------------------------------------------------


def test_overlap_by_hand():
    found = torch.zeros(4, 4, 4, dtype=torch.bool)
    true = found.clone()
    found[0, :2, :2] = true[0, 1:3, :2] = True  # 2 of 6
    found[1] = true[1, 0] = True  # 4 of 16
    true[2, 0, 0] = True
    assert overlap(found, true).tolist() == pytest.approx([2 / 6, 4 / 16, 0, 1])


def test_localisation_by_hand():
    true = patch_masks(torch.tensor([[0, 0], [2, 2]]), 2, 4)
    elsewhere = patch_masks(torch.tensor([[2, 2], [2, 2]]), 2, 4)
    found = true.clone()
    found[0, 0, 2] = True
    measured = localisation(found, true, elsewhere)
    assert (measured.iou, measured.detected, measured.covered, measured.beside) == pytest.approx((0.9, 1, 1, 0.5))
    assert (measured.iou_elsewhere, measured.detected_elsewhere) == pytest.approx((0.5, 0.5))


def test_repair_by_hand():
    labels = torch.zeros(6, dtype=torch.int64)
    clean, patched = torch.tensor([0, 0, 0, 0, 0, 1]), torch.tensor([1, 1, 1, 0, 0, 0])
    counted = repair(clean, patched, torch.tensor([0, 0, 2, 0, 3, 0]), labels)
    assert (counted.attacked, counted.resisted) == (3, 2)
    assert (counted.recovered, counted.lost) == pytest.approx((2 / 3, 0.5))
    assert math.isnan(repair(clean, clean, clean, labels).recovered)


@pytest.mark.parametrize(
    "options", [{"rule": "mine"}, {"windows": (4,)}, {"windows": (3, 5)}, {"levels": 1}, {"least": 0}, {"windows": ()}]
)
def test_malformed_settings_are_refused(options):
    with pytest.raises(ParameterError):
        Jedi(**{**SMOOTH, **options})


def test_malformed_inputs_are_refused(completion):
    with pytest.raises(InputError, match="colour images"):
        Jedi(**SMOOTH)(torch.rand(2, 1, 8, 8))
    with pytest.raises(InputError, match=r"divide by 255"):
        Jedi(**SMOOTH)(torch.rand(2, 3, 8, 8) * 255)
    with pytest.raises(InputError, match="masks must be bool"):
        completion.complete(torch.zeros(1, 8, 8, dtype=torch.bool))
    with pytest.raises(InputError, match="train mode"):
        MaskCompletion(8).train().complete(torch.zeros(1, 8, 8, dtype=torch.bool))
    with pytest.raises(InputError, match="one shape"):
        overlap(torch.zeros(1, 2, 2, dtype=torch.bool), torch.zeros(1, 3, 2, dtype=torch.bool))
    with pytest.raises(ParameterError):
        train_completion(8, (3,), proportion=0.0)
    with pytest.raises(ParameterError):
        MaskCompletion(8, threshold=1.0)
    with pytest.raises(ParameterError, match="brightness"):
        Equiluminant(classifier(), 4, grey=1.0)
