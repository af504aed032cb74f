"""Patches as data: placing, places, saving."""

import json

import pytest
import torch

from qpatch.attacks import (
    Patch, apply_patch, grey_patch, make_mask, noise_patch, paste, photo_patch, sample_places, transformed,
)  # fmt: skip
from qpatch.errors import InputError, ParameterError, StoreError

CORNERS = {"top_left": (0, 0), "top_right": (0, 26), "bottom_left": (26, 0), "bottom_right": (26, 26)}


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", CORNERS)
@pytest.mark.parametrize("shape", ["square", "circle"])
def test_placement_is_exact_in_the_corners(kind, shape):
    images, patch = draw(4, 3, 32, 32), noise_patch(6, shape=shape)
    before = images.clone()
    row, column = CORNERS[kind]
    patched = apply_patch(patch, images, sample_places(kind, 4, 32, 6))
    expected = images.clone()
    for i in range(6):
        for j in range(6):
            if patch.mask[0, i, j]:
                expected[:, :, row + i, column + j] = patch.pixels[:, i, j]
    assert torch.equal(patched, expected)
    assert torch.equal(images, before)


def test_each_image_has_its_own_place_and_pixels():
    images, pixels = torch.zeros(3, 1, 5, 7), draw(3, 1, 2, 3)
    places = torch.tensor([[0, 0], [3, 4], [1, 2]])
    patched = paste(images, pixels, torch.ones(1, 2, 3), places)
    for i, (row, column) in enumerate(places.tolist()):
        assert torch.equal(patched[i, :, row : row + 2, column : column + 3], pixels[i])
        assert (patched[i] != 0).sum() == 6


def test_gradient_reaches_the_pixels_under_the_mask_only():
    pixels = draw(3, 6, 6).requires_grad_()
    mask = make_mask("circle", 6)
    paste(draw(5, 3, 32, 32), pixels, mask, torch.zeros(5, 2, dtype=torch.int64)).sum().backward()
    assert torch.equal(pixels.grad, 5 * mask.expand(3, 6, 6))


def test_channels_last_stays_channels_last():
    images = draw(2, 3, 32, 32).to(memory_format=torch.channels_last)
    patched = apply_patch(grey_patch(), images, sample_places("center", 2, 32, 6))
    assert patched.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("place", [*CORNERS.values(), (3, 11)])
def test_transformation_by_nothing_and_by_a_quarter_turn(place):
    images, pixels, mask = draw(4, 3, 32, 32), draw(3, 6, 6), make_mask("circle", 6)
    mask[0, 0, 2] = 0  # no symmetry
    places, one = torch.tensor(place).repeat(4, 1), torch.ones(4)
    unturned = transformed(images, pixels, mask, places, 0 * one, one)
    torch.testing.assert_close(unturned, paste(images, pixels, mask, places))
    turned = transformed(images, pixels, mask, places, torch.pi / 2 * one, one)
    by_hand = paste(images, torch.rot90(pixels, 1, (1, 2)), torch.rot90(mask, 1, (1, 2)), places)
    torch.testing.assert_close(turned, by_hand)


def test_transformed_patch_is_cut_at_the_border_not_moved():
    images, pixels, mask = torch.zeros(1, 1, 20, 20), torch.ones(1, 4, 4), torch.ones(1, 4, 4)
    double = 2 * torch.ones(1)
    inside = transformed(images, pixels, mask, torch.tensor([[8, 8]]), torch.zeros(1), double)
    corner = transformed(images, pixels, mask, torch.tensor([[0, 0]]), torch.zeros(1), double)
    assert inside[0, 0, 7:13, 7:13].min() == 1 and inside[0, 0, :5].max() == 0  # 8 wide with soft edges: 6 full
    torch.testing.assert_close(corner[0, 0, :12, :12], inside[0, 0, 8:, 8:])


def test_random_places_reach_every_offset():
    places = sample_places("random", 2000, (8, 9), (6, 5), torch.Generator().manual_seed(0))
    assert set(map(tuple, places.tolist())) == {(r, c) for r in range(3) for c in range(5)}


def test_corner_places_are_the_four_corners():
    places = sample_places("corner", 100, 32, 6, torch.Generator().manual_seed(0))
    assert set(map(tuple, places.tolist())) == set(CORNERS.values())


def test_away_places_miss_the_centre_and_reach_the_rest():
    places = sample_places("away", 5000, 32, 6, torch.Generator().manual_seed(0))
    images = paste(torch.zeros(5000, 1, 32, 32), torch.ones(1, 6, 6), torch.ones(1, 6, 6), places)
    assert images[:, :, 11:21, 11:21].sum() == 0
    covered = images.amax(dim=(0, 1))
    assert covered.sum() == 32 * 32 - 10 * 10


def test_places_depend_on_the_seed_alone():
    draws = [sample_places("random", 50, 32, 6, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize(
    "kind, size, error, words",
    [("middle", 6, ParameterError, "unknown place"), ("random", 33, InputError, "does not fit"),
     ((27, 0), 6, InputError, "(26, 26)"), ("away", 30, InputError, "touches the centre")],
)
def test_impossible_places(kind, size, error, words):
    with pytest.raises(error) as caught:
        sample_places(kind, 2, 32, size)
    assert words in str(caught.value)


@pytest.mark.parametrize("place", [(27, 0), (0, 27), (-1, 0)])
def test_place_out_of_the_image(place):
    with pytest.raises(InputError, match="outside"):
        apply_patch(grey_patch(), draw(2, 3, 32, 32), torch.tensor([[0, 0], place]))


def test_malformed_patches_and_images():
    with pytest.raises(InputError, match="does not fit"):
        apply_patch(grey_patch(40), draw(1, 3, 32, 32), torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(InputError, match="channels"):
        apply_patch(grey_patch(channels=1), draw(1, 3, 32, 32), torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(InputError, match="divide by 255"):
        apply_patch(grey_patch(), 255 * draw(1, 3, 32, 32), torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(InputError, match="clamp"):
        Patch(torch.full((3, 6, 6), 1.5), torch.ones(1, 6, 6))
    with pytest.raises(InputError, match="zeros and ones"):
        Patch(torch.zeros(3, 6, 6), torch.full((1, 6, 6), 0.5))


def test_circle_and_free_masks():
    assert make_mask("circle", 4)[0].tolist() == [[0, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]]
    assert make_mask(torch.tensor([[True, False]]), (1, 2)).tolist() == [[[1, 0]]]
    with pytest.raises(InputError, match="6×6"):
        make_mask(torch.ones(5, 6), 6)
    with pytest.raises(ParameterError, match="did you mean|Did you mean"):
        make_mask("cirle", 6)


@pytest.mark.parametrize("channels", [1, 3])
def test_saving_is_exact_on_the_8_bit_lattice(tmp_path, channels):
    patch = Patch(draw(channels, 5, 7), make_mask("circle", (5, 7)), 3, {"attack": "LaVAN", "bits": 32})
    back = Patch.load(patch.save(tmp_path / "patch"))
    assert torch.equal(back.pixels, patch.rounded().pixels) and torch.equal(back.mask, patch.mask)
    assert (back.target, back.made_on) == (3, patch.made_on)
    assert (back.pixels - patch.pixels).abs().max() <= 0.5 / 255 + 1e-7
    again = Patch.load(back.save(tmp_path / "again.png"))
    assert torch.equal(again.pixels, back.pixels)
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "patch.png").read_bytes()


def test_damaged_patches_are_refused(tmp_path):
    png = noise_patch().save(tmp_path / "patch")
    other = noise_patch(seed=1).save(tmp_path / "other")
    png.write_bytes(other.read_bytes())
    with pytest.raises(StoreError, match="is not the picture"):
        Patch.load(png)
    card = json.loads(other.with_suffix(".json").read_text())
    del card["mask"]
    other.with_suffix(".json").write_text(json.dumps(card))
    for path in (other, tmp_path / "none.png"):
        with pytest.raises(StoreError, match="cannot read the patch"):
            Patch.load(path)


def test_controls():
    assert torch.equal(noise_patch(seed=4).pixels, noise_patch(seed=4).pixels)
    assert not torch.equal(noise_patch(seed=4).pixels, noise_patch(seed=5).pixels)
    assert grey_patch(4).pixels.unique().tolist() == [0.5]
    images = torch.stack([torch.full((3, 32, 32), level / 255) for level in (10, 20, 30)])
    photo = photo_patch(images, torch.tensor([0, 1, 2]), target_class=1)
    assert photo.size == (6, 6) and photo.target == 1
    torch.testing.assert_close(photo.pixels, torch.full((3, 6, 6), 20 / 255))
    with pytest.raises(InputError, match="class 7"):
        photo_patch(images, torch.tensor([0, 1, 2]), target_class=7)
