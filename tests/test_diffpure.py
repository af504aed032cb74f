"""DiffPure where the answer is known: on Gaussian data, whose noise predictor and purification have closed forms."""

import sys
import types

import pytest
import torch
from torch import nn

from qpatch.defenses import Defended
from qpatch.defenses import diffpure as module
from qpatch.defenses.diffpure import DiffPure, load_predictor
from qpatch.errors import DataError, InputError, ParameterError

MEAN, STD = 0.2, 0.1  # of every pixel, in units of [−1, 1]


def signal_of(defense):
    return (1 - defense.betas.double()).cumprod(0)


def exact(defense_options, mean=MEAN, std=STD):
    """E[noise | x at step t] for independent pixels N(mean, std²): linear in x."""
    signal = signal_of(DiffPure(lambda x, t: x, **defense_options))

    def predict(x, t):
        a = signal[t].view(-1, 1, 1, 1).to(x)
        return (1 - a).sqrt() * (x - a.sqrt() * mean) / (a * std**2 + 1 - a)

    return predict


def expected_moments(defense, start, mean=MEAN, std=STD):
    """Mean and variance of what comes out for an image that is `start` everywhere: the linear recursion by hand."""
    betas, signal = defense.betas.double(), signal_of(defense)
    a = float(signal[defense.depart - 1])
    m, v = a**0.5 * start, 1 - a
    for t in range(defense.depart - 1, -1, -1):
        a, b = float(signal[t]), float(betas[t])
        slope = b / (a * std**2 + 1 - a)  # what one step takes of x − √ᾱ·mean
        m = (m - slope * (m - a**0.5 * mean)) / (1 - b) ** 0.5
        v = v * (1 - slope) ** 2 / (1 - b) + (b if t else 0)
    return m, v


def run(options, start, n=40):
    defense = DiffPure(exact(options), **options)
    x = torch.full((n, 3, 16, 16), float(start))
    return defense, defense.purify(x, torch.Generator().manual_seed(3))


@pytest.mark.parametrize("options", [{"depart": 100}, {"depart": 300}, {"depart": 20, "steps": 50, "last": 0.2}])
@pytest.mark.parametrize("start", [MEAN, 0.8])
def test_moments_are_the_closed_form(options, start):
    defense, x = run(options, start)
    m, v = expected_moments(defense, start)
    assert float(x.mean()) == pytest.approx(m, abs=4 * (v / x.numel()) ** 0.5)
    assert float(x.var()) == pytest.approx(v, rel=0.05)


def test_typical_images_stay_typical():
    options = {"depart": 200}
    defense = DiffPure(exact(options), **options)
    x = MEAN + STD * torch.randn(60, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    purified = defense.purify(x, torch.Generator().manual_seed(1))
    assert float(purified.mean()) == pytest.approx(MEAN, abs=0.01)
    assert float(purified.std()) == pytest.approx(STD, rel=0.05)


def test_what_is_left_of_an_attack_is_the_posterior_and_shrinks_with_the_way():
    """For a Gaussian the share of a deviation that survives is ᾱσ² / (ᾱσ² + 1 − ᾱ), up to the size of the steps."""
    left = []
    for depart in (30, 100, 300):
        defense, x = run({"depart": depart}, 0.8)
        a = float(signal_of(defense)[depart - 1])
        left.append((float(x.mean()) - MEAN) / (0.8 - MEAN))
        assert left[-1] == pytest.approx(a * STD**2 / (a * STD**2 + 1 - a), abs=0.02)
    assert left[0] > left[1] > left[2] > 0


def test_images_go_in_and_come_out_as_images():
    options = {"depart": 50}
    defense = DiffPure(exact(options), batch=7, **options)
    images = torch.rand(10, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    purified = defense(images)
    assert purified.shape == images.shape and purified.dtype == torch.float32
    assert 0 <= float(purified.min()) and float(purified.max()) <= 1
    assert torch.equal(purified, defense(images))
    assert not torch.equal(purified, DiffPure(exact(options), batch=7, seed=1, **options)(images))


def test_the_predictor_walks_back_from_the_departure():
    seen = []

    def predictor(x, t):
        assert t.dtype == torch.int64 and t.shape == (len(x),) and not torch.is_grad_enabled()
        seen.append(int(t[0]))
        return torch.zeros_like(x)

    DiffPure(predictor, depart=4)(torch.rand(2, 3, 8, 8))
    assert seen == [3, 2, 1, 0]


def test_a_knowing_attacker_gets_a_gradient():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 4)).eval()
    options = {"depart": 10}
    points = torch.rand(3, 3, 8, 8).requires_grad_(True)
    Defended(net, DiffPure(exact(options), **options))(points).logsumexp(1).sum().backward()
    assert points.grad.abs().sum() > 0


def test_without_weights_the_message_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("QPATCH_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataError, match="DiffPure was not run: .*ddpm-cifar10-32.*QPATCH_DATA.*diffusers"):
        load_predictor(tmp_path)


@pytest.fixture
def weights(tmp_path):
    folder = tmp_path / module.FOLDER
    folder.mkdir()
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        (folder / name).write_bytes(b"")
    return tmp_path


def test_without_the_library_the_message_says_so(weights, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(DataError, match="was not run: the weights are there.*pip install diffusers"):
        load_predictor(weights)


def test_with_both_the_predictor_is_the_librarys(weights, monkeypatch):
    """The library is played by a double that answers as its UNet2DModel does."""

    class Double(nn.Module):
        @classmethod
        def from_pretrained(cls, folder, use_safetensors):
            assert folder == weights / module.FOLDER and use_safetensors
            return cls()

        def forward(self, x, t):
            return types.SimpleNamespace(sample=x * t.view(-1, 1, 1, 1))

    monkeypatch.setitem(sys.modules, "diffusers", types.SimpleNamespace(UNet2DModel=Double))
    predictor = load_predictor(weights)
    assert predictor(torch.ones(2, 3, 4, 4), torch.tensor([1, 2])).amax((1, 2, 3)).tolist() == [1, 2]


@pytest.mark.parametrize("options", [{"depart": 0}, {"depart": 1001}, {"first": 0.0}, {"first": 0.1, "last": 0.05},
                                     {"batch": 0}])  # fmt: skip
def test_malformed_settings_are_refused(options):
    with pytest.raises(ParameterError):
        DiffPure(lambda x, t: x, **options)


def test_malformed_images_are_refused():
    with pytest.raises(InputError, match="in dimension 1"):
        DiffPure(lambda x, t: x)(torch.rand(2, 8, 8, 3))
