"""Input defenses against oracles (scipy, PIL, ART) and by hand; the defended network and its BPDA gradient."""

import io

import numpy as np
import pytest
import torch
from art.defences.preprocessor import FeatureSqueezing as ArtFeatureSqueezing
from art.defences.preprocessor import PixelDefend as ArtPixelDefend
from art.defences.preprocessor import SpatialSmoothing as ArtSpatialSmoothing
from art.estimators.classification import PyTorchClassifier
from PIL import Image
from torch import nn

from qpatch.attacks.base import frozen
from qpatch.defenses import JPEG, Defended, FeatureSqueezing, PixelDefend
from qpatch.defenses.feature_squeezing import PUBLISHED, class_threshold, median, reduce_bits, wrapped_distance
from qpatch.errors import InputError, ParameterError
from qpatch.models.pixelcnn import PixelCNN


def random_images(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def byte_images(*shape, seed=0):
    return (random_images(*shape, seed=seed) * 255).round() / 255


def classifier(seed=0, size=8):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * size * size, 5)).eval()


# Feature squeezing ---------------------------------------------------------------------------------------------


def test_bit_reduction_by_hand():
    assert reduce_bits(torch.tensor([0.0, 0.49, 0.51, 1.0]), 1).tolist() == [0, 0, 1, 1]
    images = byte_images(2, 3, 8, 8)
    assert torch.allclose(reduce_bits(images, 8), images, atol=1e-7)  # 8 bits leave 8-bit images as they are
    assert len(reduce_bits(torch.linspace(0, 1, 1000), 4).unique()) == 16


@pytest.mark.parametrize("bits, window", [(4, 2), (3, 3), (8, 6)])
def test_both_squeezers_equal_arts(bits, window):
    images = random_images(3, 3, 9, 8)
    reduced, smooth = FeatureSqueezing(bits, window).squeezed(images)
    art_reduced, _ = ArtFeatureSqueezing(clip_values=(0, 1), bit_depth=bits)(images.numpy())
    art_smooth, _ = ArtSpatialSmoothing(window_size=window, channels_first=True)(images.numpy())
    np.testing.assert_allclose(reduced.numpy(), art_reduced, atol=1e-6)
    np.testing.assert_array_equal(smooth.numpy(), art_smooth)


def test_an_even_window_looks_up_and_left_and_takes_the_upper_middle():
    image = torch.tensor([[[[0.1, 0.4], [0.3, 0.2]]]])
    assert median(image, 2)[0, 0, 1, 1] == pytest.approx(0.3)  # of 0.1 0.2 0.3 0.4


def test_the_further_squeezed_image_is_kept_for_each_image_by_itself():
    flat = torch.full((1, 3, 8, 8), 0.47)  # the median changes nothing, four bits do
    noisy = (random_images(1, 3, 8, 8) < 0.1).float()  # black and white: four bits change nothing
    images, squeeze = torch.cat([flat, noisy]), FeatureSqueezing(4, 3)
    reduced, smooth = squeeze.squeezed(images)
    assert torch.equal(squeeze(images), torch.stack([reduced[0], smooth[1]]))
    assert not torch.equal(reduced[0], smooth[0]) and not torch.equal(reduced[1], smooth[1])


def test_published_parameters_keep_every_bit_on_integer_networks():
    assert (FeatureSqueezing.published("cifar10"), PUBLISHED["cifar10", "float"].threshold) == (FeatureSqueezing(4, 2), 1.763)
    assert FeatureSqueezing.published("vww", "int8") == FeatureSqueezing(8, 6)
    assert FeatureSqueezing.published("coffee", "int16") == FeatureSqueezing(16, 2)
    images = byte_images(4, 3, 8, 8)
    assert torch.equal(FeatureSqueezing.published("cifar10", "int8")(images), median(images, 2))


def test_threshold_by_hand():
    scores = torch.cat([torch.arange(1, 21) / 20, torch.arange(1, 21) / 10])
    labels = torch.tensor([0] * 20 + [1] * 20)
    assert class_threshold(scores, labels, 0.05) == pytest.approx(1.9)  # the 19th of 20 in the class with larger scores
    assert class_threshold(scores, labels, 0.5) == pytest.approx(1.0)


def test_detector_scores_are_l1_distances_of_probabilities():
    net, images = nn.Sequential(classifier(), nn.Softmax(1)), random_images(40, 3, 8, 8)
    squeeze = FeatureSqueezing(1, 3)
    with torch.no_grad():
        apart = torch.stack([(net(images) - net(squeezed)).abs().sum(1) for squeezed in squeeze.squeezed(images)])
    torch.testing.assert_close(squeeze.score(net, images), apart.max(0).values)
    labels = torch.zeros(40, dtype=torch.int64)
    threshold = squeeze.threshold(net, images, labels, fpr=0.05)
    assert int(squeeze.detect(net, images, threshold).sum()) == 2  # 5 % of 40
    with pytest.raises(InputError, match="Softmax"):
        squeeze.score(classifier(), images)


def test_int8_distances_wrap_as_in_the_released_script():
    sure, other, unsure = (torch.tensor([row]) for row in ([127, -128, -128], [-128, 127, -128], [0, 0, -128]))
    assert wrapped_distance(sure, other, "int8").item() == 2  # 255 wraps to −1: a full flip looks like no change
    assert wrapped_distance(sure, unsure, "int8").item() == 127 + 128
    assert wrapped_distance(torch.tensor([[32767, 0]]), torch.tensor([[0, 32767]]), "int16").item() == 2 * 32767


# JPEG and PixelDefend ------------------------------------------------------------------------------------------


def test_jpeg_equals_a_file_that_pil_writes_and_reads():
    images = byte_images(2, 3, 16, 16)
    cleaned = JPEG(50, "4:4:4")(images)
    file = io.BytesIO()
    Image.fromarray((images[1] * 255).round().byte().permute(1, 2, 0).numpy()).save(file, "JPEG", quality=50, subsampling=0)
    expected = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) / 255
    assert torch.equal(cleaned[1], expected)
    error = [(JPEG(quality)(images) - images).abs().mean() for quality in (10, 50, 95)]
    assert error[0] > error[1] > error[2]
    assert JPEG()(images).shape == images.shape and torch.equal(JPEG()(images), JPEG()(images))


def test_pixel_defend_given_the_received_bytes_equals_art():
    torch.manual_seed(0)
    net = PixelCNN(6, 1).eval()
    with torch.no_grad():
        for weight in net.parameters():
            weight.normal_(0, 0.5)
        net.out.weight.mul_(0.01)  # no probability underflows, because ART compares these and we compare logits
        net.out.bias.zero_()  # so that all that a byte's distribution has, it has from the bytes before it
    # ART cuts where we round: a quarter of a level above a byte both find the byte. And with NumPy 2 its search range
    # wraps around for bytes nearer to 0 or 255 than eps, so there are none here.
    images = (20 + random_images(3, 3, 5, 4) * 214).round().add(0.25) / 255

    class Probabilities(PyTorchClassifier):
        """What ART asks of a PixelCNN: a probability for every level of every byte, in NCHW order of the bytes."""

        def get_activations(self, x, layer=None, batch_size=128, framework=False):
            with torch.no_grad():
                pixels = (torch.from_numpy(x) * 255).round() / 255
                return self.model(pixels).softmax(-1).permute(0, 3, 1, 2, 4).numpy()

    wrapped = Probabilities(net, nn.CrossEntropyLoss(), (3, 5, 4), 256)
    expected, _ = ArtPixelDefend(eps=20, pixel_cnn=wrapped)(images.numpy())
    cleaned = PixelDefend(net, 20, given="received")(images)
    np.testing.assert_array_equal((cleaned * 255).round().numpy(), (expected * 255).round())
    assert not torch.equal(cleaned, PixelDefend(net, 20)(images))


# The defended network ------------------------------------------------------------------------------------------


def test_a_defended_network_is_the_network_of_the_cleaned_images():
    net, images = classifier(), random_images(4, 3, 8, 8)
    defended = Defended(net, JPEG(30))
    with torch.no_grad():
        assert torch.equal(defended(images), net(JPEG(30)(images)))
    assert not defended.training


class Squares(nn.Module):
    def forward(self, x):
        return (x**2).flatten(1).sum(1, keepdim=True)


def test_the_gradient_passes_a_defense_as_the_identity():
    """BPDA by hand: for Σ z² with z = defense(x), the gradient at x is 2 z."""
    images = random_images(2, 3, 8, 8).requires_grad_()
    defense = JPEG(30)
    gradient = torch.autograd.grad(Defended(Squares(), defense)(images).sum(), images)[0]
    assert torch.equal(gradient, 2 * defense(images.detach()))


def test_the_gradient_passes_feature_squeezing_as_a_mean_over_its_window():
    """A pixel is in the windows of itself and of its neighbours to the right and below, with weight 1/4 each."""
    images = random_images(1, 1, 5, 5).requires_grad_()
    defense = FeatureSqueezing(2, 2)
    gradient = torch.autograd.grad(Defended(Squares(), defense)(images).sum(), images)[0][0, 0]
    inner = 2 * defense(images.detach())[0, 0]
    assert gradient[2, 2] == pytest.approx(float(inner[2:4, 2:4].mean()))
    assert gradient[4, 4] == pytest.approx(float(inner[4, 4]) / 4)  # no neighbours there
    assert defense.approximation(images).shape == images.shape == FeatureSqueezing(4, 6).approximation(images).shape


def test_the_defense_gets_what_an_integer_network_received():
    class Coarse(nn.Module):
        """Takes only black and white."""

        def received(self, images):
            return images.round()

        def forward(self, images):
            return images.round().flatten(1)

    given = []

    def defense(images):
        given.append(images)
        return images

    images = random_images(2, 3, 4, 4)
    Defended(Coarse(), defense)(images)
    assert torch.equal(given[0], images.round())


def test_an_adaptive_attack_leaves_the_network_as_it_was():
    import torchattacks

    net, images, labels = classifier(), byte_images(6, 3, 8, 8), torch.arange(6) % 5
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    defended = Defended(net, FeatureSqueezing(6, 2))
    with frozen(defended):
        adversarial = torchattacks.PGD(defended, eps=0.1, alpha=0.02, steps=5)(images, labels)
    with torch.no_grad():
        loss = nn.CrossEntropyLoss()
        assert loss(defended(adversarial), labels) > loss(defended(images), labels) + 0.1
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(weight.requires_grad for weight in net.parameters())


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: JPEG(0), "1 to 95"),
        (lambda: JPEG(75, "4:1:1"), "subsampling"),
        (lambda: FeatureSqueezing(0), "from 1 to 16"),
        (lambda: FeatureSqueezing(4, 0), "window"),
        (lambda: FeatureSqueezing.published("imagenet"), "task"),
        (lambda: FeatureSqueezing.published("vww", "int4"), "precision"),
        (lambda: class_threshold(torch.rand(4), torch.zeros(4), 0), "between 0 and 1"),
        (lambda: Defended(classifier(), "jpeg"), "cannot be called"),
    ],
)
def test_bad_parameters(make, message):
    with pytest.raises(ParameterError, match=message):
        make()


def test_bad_images():
    with pytest.raises(InputError, match=r"lie in \[0, 1\]"):
        Defended(classifier(), JPEG())(random_images(1, 3, 8, 8) + 1)
    with pytest.raises(InputError, match="colour images"):
        JPEG()(random_images(1, 1, 8, 8))
