"""Edges and oriented gradients: equal to scikit-image's, and soft versions that can be differentiated twice."""

import numpy as np
import pytest
import torch
from skimage.feature import hog as reference_hog
from skimage.filters import sobel as reference_sobel

from qpatch import maps as m
from qpatch.errors import InputError, ParameterError


@pytest.fixture
def pictures():
    return torch.rand(5, 24, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_sobel_is_scikit_images(pictures):
    expected = np.stack([reference_sobel(picture.numpy()) for picture in pictures])
    assert np.allclose(m.sobel(pictures).numpy(), expected, atol=1e-12)
    assert np.allclose(m.sobel(pictures, smooth=True).numpy(), expected, atol=2e-4)


@pytest.mark.parametrize("cell, bins, block, norm", [(8, 9, 1, "L2-Hys"), (4, 9, 2, "L2-Hys"), (6, 6, 2, "L2"), (5, 12, 3, "L2")])
def test_hog_is_scikit_images(pictures, cell, bins, block, norm):
    expected = np.stack([
        reference_hog(picture.numpy(), bins, (cell, cell), (block, block), block_norm=norm) for picture in pictures
    ])  # fmt: skip
    assert np.allclose(m.hog(pictures, cell, bins, block, norm).numpy(), expected, atol=1e-6)


def test_edge_iou_by_hand():
    a, b = torch.zeros(1, 12, 12), torch.zeros(1, 12, 12)
    a[0, :, 3:], b[0, 3:, :] = 1, 1
    first, second = m.edge_mask(a, 0.8)[0], m.edge_mask(b, 0.8)[0]
    assert first.sum() == second.sum() == 24 and first[:, 2:4].all()
    assert m.edge_iou(a, b, 0.8).item() == pytest.approx(4 / 44)
    assert m.edge_iou(a, a, 0.8).item() == 1 and m.edge_iou(torch.zeros(1, 9, 9), torch.ones(1, 9, 9)).isnan().all()


def test_chance_level_of_edge_iou():
    generator = torch.Generator().manual_seed(1)
    a, b = torch.rand(2, 300, 48, 48, generator=generator)
    assert m.edge_iou(a, b).mean().item() == pytest.approx(0.15 / 1.85, abs=0.005)


def test_soft_masks_follow_the_hard_ones(pictures):
    hard, soft = m.edge_mask(pictures), m.soft_edges(pictures, k=1000.0)
    assert ((soft > 0.5) == hard).float().mean() > 0.99
    assert m.soft_dice(soft, soft, 0.0).mean().item() == pytest.approx(1, abs=0.05)
    assert m.soft_dice(hard.double(), (~hard).double(), 0.0).max().item() == 0


def test_soft_dice_by_hand():
    a, b = torch.tensor([[1.0, 1, 0, 0]]), torch.tensor([[1.0, 0, 1, 0]])
    assert m.soft_dice(a, b, 1.0).item() == pytest.approx(3 / 5)


def test_soft_hog_is_near_the_hard_one(pictures):
    smooth = torch.nn.functional.avg_pool2d(pictures[:, None], 5, 1, 2)[:, 0]
    hard, soft = m.hog(smooth, norm="L2"), m.soft_hog(smooth, sharpness=40.0)
    assert m.cosine(hard, soft).min().item() > 0.9
    turned = m.soft_hog(smooth.transpose(1, 2))
    assert m.cosine(soft, turned).mean() < m.cosine(soft, hard).mean()


def test_scale_and_shift_do_not_matter_after_normalising(pictures):
    tiny = pictures * 1e-4 + 3e-5
    assert torch.allclose(m.soft_edges(m.normalized(tiny)), m.soft_edges(m.normalized(pictures)), atol=1e-6)
    assert m.normalized(torch.full((2, 4, 4), 7.0)).abs().max() == 0


@pytest.mark.parametrize("flat", [0.0, 0.3])
def test_flat_maps_give_zero_and_finite_gradients(flat):
    maps = torch.full((2, 16, 16), flat, requires_grad=True)
    for value in (m.soft_hog(maps).sum(), m.soft_edges(maps).sum(), m.cosine(m.soft_hog(maps), m.soft_hog(maps)).sum()):
        (gradient,) = torch.autograd.grad(value, maps, create_graph=True)
        assert gradient.isfinite().all()
        (second,) = torch.autograd.grad(gradient.sum(), maps, allow_unused=True)
        assert second is None or second.isfinite().all()
    assert m.soft_hog(maps).abs().max() < 1e-6


def test_second_derivatives_are_right():
    maps = torch.rand(1, 6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64, requires_grad=True)
    other = torch.rand(1, 6, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    assert torch.autograd.gradgradcheck(lambda x: m.cosine(m.soft_hog(x, 3), m.soft_hog(other, 3)), (maps,), atol=1e-4)

    def dice(x):  # the threshold is held: it passes no gradient, so finite differences must not move it
        edges = m.sobel(x, smooth=True)
        return m.soft_dice(torch.sigmoid(20 * (edges - 0.2)), other)

    assert torch.autograd.gradgradcheck(dice, (maps,), atol=1e-4)


def test_channels_are_put_together():
    values = torch.tensor([[[[3.0]], [[-4.0]]]])
    assert [m.to_maps(values, how).item() for how in m.REDUCTIONS] == pytest.approx([3.5, 5.0, -0.5])


def test_bad_input_is_refused(pictures):
    with pytest.raises(InputError, match="N, C, H, W"):
        m.to_maps(pictures)
    with pytest.raises(InputError, match="at least 3×3"):
        m.sobel(torch.rand(2, 2, 5))
    with pytest.raises(InputError, match="does not fit"):
        m.hog(pictures, cell=30)
    for wrong in (lambda: m.hog(pictures, norm="L1"), lambda: m.edge_mask(pictures, 1.0), lambda: m.hog(pictures, cell=0)):
        with pytest.raises(ParameterError):
            wrong()
