"""PixelCNN: what a byte may see, that the walk equals the whole forward pass, and that training is repeatable."""

from dataclasses import replace

import pytest
import torch

from qpatch import data
from qpatch.defenses import PixelDefend
from qpatch.errors import InputError, ParameterError
from qpatch.models.pixelcnn import MaskedConv, PixelCNN, colour_of
from qpatch.models.raster import sample, scan
from qpatch.zoo import pixelcnn as zoo_pixelcnn


def network(hidden=7, blocks=2, seed=0):
    """A small network of random weights, large enough that its distributions are far from uniform."""
    torch.manual_seed(seed)
    net = PixelCNN(hidden, blocks).eval()
    with torch.no_grad():
        for weight in net.parameters():
            weight.normal_(0, 0.5)
        net.out.weight.mul_(0.1)
        net.out.bias.zero_()  # so that all that a byte's distribution has, it has from the bytes before it
    return net


def random_bytes(*shape, seed=1):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def naive(net, images, eps):
    """Algorithm 1 of Song et al. as it stands: a whole forward pass for every byte."""
    purified = images.clone()
    for row in range(images.shape[2]):
        for column in range(images.shape[3]):
            for colour in range(3):
                with torch.no_grad():
                    logits = net(purified.float() / 255)[:, row, column, colour]
                for number, byte in enumerate(images[:, colour, row, column].tolist()):
                    low, high = max(0, byte - eps), min(255, byte + eps)
                    purified[number, colour, row, column] = low + int(logits[number, low : high + 1].argmax())
    return purified


def test_features_are_divided_among_the_colours():
    assert colour_of(3).tolist() == [0, 1, 2]
    assert colour_of(7).tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert colour_of(768).bincount().tolist() == [256, 256, 256]


def test_masks_by_hand():
    """A 3×3 kernel on three colours: the row above is free; in its own pixel A sees earlier colours, B its own too."""
    a, b = MaskedConv(3, 3, 3, own=False).mask, MaskedConv(3, 3, 3, own=True).mask
    for mask in (a, b):
        assert mask.shape == (3, 3, 2, 3)  # no row below
        assert mask[:, :, 0].all() and mask[:, :, 1, 0].all() and not mask[:, :, 1, 2].any()
    assert a[:, :, 1, 1].tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0]]
    assert b[:, :, 1, 1].tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]


@pytest.mark.parametrize("colour", (0, 1, 2))
def test_a_byte_depends_on_the_bytes_before_it_and_on_no_other(colour):
    net, image = network(), torch.rand(1, 3, 6, 6)
    image.requires_grad_()
    logits = net(image)
    row, column = 3, 2
    gradient = torch.autograd.grad(logits[0, row, column, colour].sum(), image)[0][0]
    number = torch.arange(6 * 6 * 3).view(6, 6, 3).permute(2, 0, 1)  # in the order of the scan
    own = int(number[colour, row, column])
    assert not gradient[number >= own].any()
    assert gradient[number < own].count_nonzero() > 0.9 * own  # the receptive field covers nearly all of 6×6


@pytest.mark.parametrize("eps", (0, 3, 38, 255))
def test_the_walk_chooses_exactly_what_a_forward_pass_per_byte_chooses(eps):
    net, images = network(), random_bytes(3, 3, 5, 6)
    fast = PixelDefend(net, eps)(images.float() / 255)
    assert torch.equal((fast * 255).round().byte(), naive(net, images, eps))
    if eps == 0:
        assert torch.equal((fast * 255).round().byte(), images)
    else:
        assert int(((fast * 255).round() - images.float()).abs().max()) <= eps


def test_the_walk_sees_the_logits_of_the_whole_network():
    """Teacher forcing: choose the image's own bytes, and compare every distribution on the way."""
    net, images = network(hidden=12, blocks=3), random_bytes(5, 3, 7, 4)
    with torch.no_grad():
        expected = net(images.float() / 255)
    seen = torch.empty_like(expected)

    def choose(logits, first, place, colour):
        part = slice(first, first + len(logits))
        seen[part, place // 4, place % 4, colour] = logits
        return images[part, colour, place // 4, place % 4].long()

    assert torch.equal(scan(net, images, choose, batch=2), images)
    assert expected.std() > 1  # the distributions do differ
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=5e-3)


def test_samples_follow_the_distribution_of_the_first_byte():
    net = PixelCNN(6, 1).eval()
    wanted = torch.zeros(256)
    wanted[[10, 200]] = 8.0
    with torch.no_grad():  # red bytes are 10 or 200, whatever is before them
        net.out.bias[:256] = torch.linalg.solve(net.out.cosines, wanted)
    drawn = sample(net, 400, (1, 2), torch.Generator().manual_seed(0))
    for column in (0, 1):
        red = drawn[:, 0, 0, column]
        assert ((red == 10) | (red == 200)).float().mean() > 0.9  # e⁸ against 254 · e⁰
        assert abs(int((red == 10).sum()) - int((red == 200).sum())) < 80  # four standard deviations
    assert torch.equal(drawn, sample(net, 400, (1, 2), torch.Generator().manual_seed(0)))


def test_bad_input_of_the_walk():
    with pytest.raises(InputError, match="train mode"):
        scan(network().train(), random_bytes(1, 3, 4, 4), None)
    with pytest.raises(InputError, match="uint8 images"):
        scan(network(), torch.rand(1, 3, 4, 4), None)
    with pytest.raises(ParameterError, match="from 0 to 255"):
        PixelDefend(network(), 300)
    with pytest.raises(ParameterError, match="received"):
        PixelDefend(network(), given="recieved")


def test_bits_per_dimension_of_a_uniform_guess_are_eight():
    net = PixelCNN(6, 1).eval()  # a fresh network guesses so
    assert zoo_pixelcnn.bits_per_dim(net, data.load("shapes", "test", n=10)) == pytest.approx(8, abs=1e-5)


def test_training_learns_repeats_and_resumes(tmp_path):
    """Twice the same bytes, and the same again from the state that a killed training left."""
    images = data.load("shapes", "train", n=64).images
    recipe = replace(zoo_pixelcnn.SMALL, steps=12, batch_size=8, places=64)
    whole, _ = zoo_pixelcnn.train(images, recipe, report=lambda line: None)
    path = tmp_path / "state.safetensors"
    lines = []

    class Killed(Exception):
        pass

    def killed(line):
        lines.append(line)
        if len(lines) == 2:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo_pixelcnn, "_KEEP_EVERY", 5)
        with pytest.raises(Killed):
            zoo_pixelcnn.train(images, recipe, state_path=path, report=killed)
        again, _ = zoo_pixelcnn.train(images, recipe, state_path=path, report=lambda line: None)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    longer, _ = zoo_pixelcnn.train(images, replace(recipe, steps=100), report=lambda line: None)
    test = data.load("shapes", "test", n=20)
    assert zoo_pixelcnn.bits_per_dim(longer, test) < min(7.5, zoo_pixelcnn.bits_per_dim(whole, test))


@pytest.mark.skipif(not zoo_pixelcnn.PATH.exists(), reason="no PixelCNN ships with this checkout")
def test_the_shipped_network_is_small_and_as_good_as_its_card_says():
    card, net = zoo_pixelcnn.card(), zoo_pixelcnn.load_pixelcnn()
    assert zoo_pixelcnn.PATH.stat().st_size < 1.5e6
    assert card["recipe"] == zoo_pixelcnn.asdict(zoo_pixelcnn.RECIPE), "trained with another recipe"
    try:
        test = data.load("cifar10", "test")
    except data.DataError as error:
        pytest.skip(f"CIFAR-10 is not to be had: {error}")
    part = replace(test, images=test.images[:100], labels=test.labels[:100])
    assert zoo_pixelcnn.bits_per_dim(net, part) == pytest.approx(card["test_bits_per_dim"], abs=0.15)
