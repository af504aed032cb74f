"""LaVAN and GAP on a small network: what they promise about the network, the images, and the result."""

import pytest
import torch
from torch import nn

from qpatch.attacks import GAP, LaVAN, apply_patch, noise_patch, paste, sample_places
from qpatch.attacks.base import Descent, frozen
from qpatch.data import load
from qpatch.errors import InputError, ParameterError
from qpatch.measure import attack_success, predict

ATTACKS = {"LaVAN": LaVAN, "GAP": GAP}
QUICK = {"patch_size": 6, "steps": 3, "batch": 16}


def small_net(classes=10):
    torch.manual_seed(0)
    block = lambda c_in, c_out: [nn.Conv2d(c_in, c_out, 3, 2, 1), nn.BatchNorm2d(c_out), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, classes)]
    return nn.Sequential(*block(3, 8), *block(8, 16), *head)


@pytest.fixture(scope="module")
def trained():
    """A small network that has learnt the shapes well enough to be fooled, with test images that it gets right."""
    data, test, net = load("shapes", "train", n=1000), load("shapes", "test", n=300), small_net()
    images, optimizer = data.floats(), torch.optim.Adam(net.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(8):
        for index in torch.randperm(len(data), generator=generator).split(50):
            loss = nn.functional.cross_entropy(net(images[index]), data.labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    net.eval()
    return net, images, data.labels, test.floats(), test.labels


@pytest.fixture
def net():
    return small_net().eval()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(20, 3, 32, 32, generator=generator), torch.randint(10, (20,), generator=generator)


def state(net):
    return {name: (value.clone(), value.requires_grad) for name, value in net.state_dict(keep_vars=True).items()}


def same(before, net):
    after = net.state_dict(keep_vars=True)
    return all(torch.equal(value, after[name]) and flag == after[name].requires_grad
               for name, (value, flag) in before.items())


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
@pytest.mark.parametrize("target", [None, 3])
def test_network_and_images_stay_as_they_are(attack, target, net, batch):
    images, labels = batch
    net[0].bias.requires_grad_(False)  # a flag of the user's
    before, copies = state(net), (images.clone(), labels.clone())
    run = attack(net, target=target, **QUICK)
    for made in (run.fit(images, labels).pixels, run(images, labels)):
        assert 0 <= made.min() and made.max() <= 1 and not made.requires_grad
    assert same(before, net) and torch.equal(images, copies[0]) and torch.equal(labels, copies[1])
    assert all(weight.grad is None for weight in net.parameters())


def test_weights_are_frozen_while_it_runs_and_restored_after_an_exception(net, batch):
    before, seen = state(net), []

    def stop(step, steps, loss):
        seen.append(any(weight.requires_grad for weight in net.parameters()))
        raise KeyboardInterrupt

    for run in (LaVAN(net, progress=stop, **QUICK).fit, GAP(net, progress=stop, **QUICK)):
        with pytest.raises(KeyboardInterrupt):
            run(*batch)
        assert same(before, net)
    assert seen == [False, False]


def test_it_works_where_gradients_are_off(net, batch):
    with torch.no_grad():
        inside = LaVAN(net, **QUICK).fit(*batch)
        assert not torch.is_grad_enabled()
    assert torch.equal(inside.pixels, LaVAN(net, **QUICK).fit(*batch).pixels)


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_the_seed_decides_everything(attack, net, batch):
    runs = [attack(net, seed=seed, restarts=2, **QUICK) for seed in (5, 5, 6)]
    patches = [run.fit(*batch).pixels for run in runs]
    images = [run(*batch) for run in runs]
    for made in (patches, images):
        assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
    torch.manual_seed(99)  # the global generator has no say
    assert torch.equal(runs[0].fit(*batch).pixels, patches[0])


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
@pytest.mark.parametrize("shape", ["square", "circle"])
def test_image_specific_patches_change_nothing_outside(attack, shape, net, batch):
    images, labels = batch
    run = attack(net, shape=shape, place="away", **QUICK)
    adversarial, (pixels, places) = run(images, labels), run.fit_each(images, labels)
    assert torch.equal(adversarial, paste(images, pixels, run.mask, places))
    inside = paste(torch.zeros(20, 1, 32, 32), torch.ones(1, 6, 6), run.mask, places).bool()
    changed = (adversarial != images).any(dim=1, keepdim=True)
    assert not (changed & ~inside).any() and changed.sum() > 0.9 * inside.sum()
    assert not torch.equal(pixels[0], pixels[1])


def test_patches_lie_on_the_8_bit_lattice_unless_told_otherwise(net, batch):
    levels = LaVAN(net, **QUICK).fit(*batch).pixels * 255
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)
    levels = LaVAN(net, rounded=False, **QUICK).fit(*batch).pixels * 255
    assert (levels - levels.round()).abs().max() > 0.1


def test_lavan_objective_by_hand(net):
    scores, labels = torch.tensor([[1.0, 4.0, 2.0], [9.0, 0.0, 1.0]]), torch.tensor([1, 2])
    untargeted, targeted = LaVAN(net, confidence=5.0), LaVAN(net, target=0, confidence=5.0)
    assert untargeted.objective(scores, labels, False).tolist() == [2, -8]  # 4 − 2, 1 − 9
    assert untargeted.objective(scores, labels, True).tolist() == [2, -5]
    assert targeted.objective(scores, labels, False).tolist() == [3, -8]  # 4 − 1, 1 − 9


def test_gap_objective_by_hand(net):
    scores, labels = torch.tensor([[0.2, 0.5, 0.3]]).log(), torch.tensor([1])
    assert GAP(net).objective(scores, labels, True).item() == pytest.approx(-0.693147, abs=1e-6)  # log 0.5
    assert GAP(net, target=0).objective(scores, labels, True).item() == pytest.approx(1.609438, abs=1e-6)  # −log 0.2


@pytest.mark.parametrize("rule, expected", [("sign", [0.4, 0.6]), ("gradient", [0.3, 0.55]), ("adam", [0.4, 0.6])])
def test_update_rules_by_hand(rule, expected):
    descent, pixels = Descent(rule, lr=0.1, steps=2), torch.tensor([0.5, 0.5])
    gradient = torch.tensor([2.0, -0.5])
    first = descent.step(pixels, gradient)
    torch.testing.assert_close(first, torch.tensor(expected))
    second = descent.step(first, gradient)  # half of the cosine: half the step
    torch.testing.assert_close(second - first, (first - pixels) / 2)
    assert descent.step(torch.tensor([0.0, 1.0]), gradient).tolist() == [0, 1]


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
@pytest.mark.parametrize("target", [None, 2])
def test_universal_patches_beat_noise(attack, target, trained):
    net, images, labels, test_images, test_labels = trained
    run = attack(net, patch_size=8, target=target, steps=60, batch=64)
    places = sample_places("random", len(test_images), 32, 8, torch.Generator().manual_seed(9))
    attacked, noisy = (apply_patch(patch, test_images, places) for patch in (run.fit(images, labels), noise_patch(8)))
    goal = lambda patched: run.objective(net(patched), test_labels, False).detach()
    gain = goal(noisy) - goal(attacked)  # image by image
    assert gain.mean() > 5 * gain.std() / len(gain) ** 0.5
    if target is None:
        optimised, control = (attack_success(net, test_images, patched, test_labels) for patched in (attacked, noisy))
        assert optimised.clean_accuracy > 0.2  # the network has learnt
        assert optimised.ci_low > control.ci_high


def test_image_specific_beats_universal_and_early_stop_stops(trained):
    net, images, labels, *_ = trained
    right = (predict(net, images) == labels).nonzero()[:100, 0]
    images, labels = images[right], labels[right]
    steps = []
    count = lambda step, *_: steps.append(step)
    options = dict(patch_size=6, place="center", steps=25, batch=100, seed=1)
    each = attack_success(net, images, LaVAN(net, **options)(images, labels), labels)
    stopping = LaVAN(net, stop_at=0.9, restarts=2, progress=count, **options)(images, labels)
    early = attack_success(net, images, stopping, labels)
    universal = LaVAN(net, **options).fit(images, labels)
    together = attack_success(net, images, apply_patch(universal, images, sample_places("center", 100, 32, 6)), labels)
    assert each.asr > together.asr and early.asr > together.asr
    probability = 1 - net(stopping).softmax(1).gather(1, labels[:, None])
    assert (probability > 0.85).float().mean() > 0.5 * early.asr  # stopped where it was told to, up to rounding


def test_restarts_never_make_an_image_specific_attack_worse(trained):
    net, images, labels, *_ = trained
    images, labels = images[:60], labels[:60]
    margin = lambda attack: attack.objective(net(attack(images, labels)), labels, False)
    options = dict(patch_size=4, steps=5, batch=60, seed=3)
    once, thrice = margin(LaVAN(net, **options)), margin(LaVAN(net, restarts=3, **options))
    assert (thrice <= once + 1e-5).all() and (thrice < once - 1e-5).any()


@pytest.mark.parametrize(
    "change, error, words",
    [({"targeted": True}, ParameterError, "target=CLASS"),
     ({"targeted": False, "target": 1}, ParameterError, "leave target out"),
     ({"target": 10}, InputError, "10 classes"),
     ({"place": "midle"}, ParameterError, "unknown place"),
     ({"update": "sgd"}, ParameterError, "update rule"),
     ({"steps": 0}, ParameterError, "steps"),
     ({"lr": 0.0}, ParameterError, "lr"),
     ({"patch_size": 40}, InputError, "does not fit"),
     ({"patch_size": 0}, ParameterError, "positive int")],
)
def test_wrong_parameters(change, error, words, net, batch):
    with pytest.raises(error, match=words):
        LaVAN(net, **QUICK | change).fit(*batch)


@pytest.mark.parametrize("run", ["fit", "__call__"])
def test_wrong_inputs(run, net, batch):
    images, labels = batch
    attack = getattr(GAP(net, **QUICK), run)
    for bad, words in (
        (images * 255, "divide by 255"),
        (images.double(), "float32"),
        (images.permute(0, 2, 3, 1), "NHWC"),
        ((images * 255).byte(), "uint8"),
    ):
        with pytest.raises(InputError, match=words):
            attack(bad, labels)
    with pytest.raises(InputError, match="labels"):
        attack(images, labels[:5])
    net[1].train()
    with pytest.raises(InputError, match="train mode"):
        attack(images, labels)


@pytest.mark.parametrize("bad", [{"rotation": 200}, {"scale": (0, 1)}, {"scale": (1.1, 0.9)}, {"scale": (1,)}])
def test_wrong_transformations(bad, net):
    with pytest.raises(ParameterError):
        GAP(net, **bad)


def test_gap_without_transformation_pastes_exactly(net, batch):
    images, pixels = batch[0], torch.rand(3, 6, 6)
    attack, places = GAP(net, rotation=0, scale=(1, 1)), torch.full((20, 2), 5)
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(attack.render(images, pixels, places, generator), paste(images, pixels, attack.mask, places))


def test_large_images():
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    adversarial = GAP(small_net().eval(), patch_size=50, steps=2)(images, torch.tensor([1, 2]))
    assert (adversarial != images).any(dim=1).sum(dim=(1, 2)).tolist() == pytest.approx([2500, 2500], abs=10)


def test_frozen_restores_mixed_flags(net):
    net[0].weight.requires_grad_(False)
    before = state(net)
    with frozen(net):
        assert not any(weight.requires_grad for weight in net.parameters())
    assert same(before, net)
