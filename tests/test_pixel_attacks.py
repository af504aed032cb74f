"""Paper C's ten attacks: parameters, wraps, counts, and each library's result where it can be told by hand or oracle."""

import copy
import random

import numpy as np
import pytest
import torch
from art.attacks.evasion import CarliniLInfMethod, GeoDA, ZooAttack
from art.estimators.classification import PyTorchClassifier
from torch import nn

from qpatch.attacks.pixel import ATTACKS, TASKS, Probabilities, attack, published, published_table, seeded
from qpatch.attacks.pixel import base, geoda
from qpatch.errors import InputError, ParameterError

GRADIENT = [name for name, chosen in ATTACKS.items() if chosen.kind == "gradient"]
QUERY = [name for name, chosen in ATTACKS.items() if chosen.kind == "query"]
FAST = {
    "PGD": {"restarts": 3, "steps": 5, "eps": 0.03}, "DeepFool": {}, "JSMA": {"theta": 0.5},
    "CW-L2": {"binary_steps": 3, "initial_const": 1.0}, "CW-Linf": {}, "EAD": {"binary_steps": 3, "initial_const": 1.0},
    "AutoAttack": {"eps": 0.03, "steps": 5, "queries": 20}, "ZOO": {"steps": 3, "binary_steps": 2, "coordinates": 16},
    "Square-L2": {"steps": 10, "p_init": 0.3}, "Square-Linf": {"steps": 10, "eps": 0.1},
    "Boundary": {"steps": 5, "samples": 5, "init_tries": 20},
    "GeoDA": {"queries": 600, "sub_dim": 4, "tolerance": 0.01, "init_tries": 50, "sigma": 0.02},
}  # fmt: skip


class Small(nn.Module):
    """A random network of five classes with BatchNorm, for 12×12 images."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(150, 5))

    def forward(self, x):
        return self.layers(x)


class Integers(nn.Module):
    """What `tflite.network` shows: probabilities of 8-bit inputs and outputs, counted, and no way back."""

    precision = "int8"

    def __init__(self, net):
        super().__init__()
        self.net, self.queries = net, 0

    def received(self, images):
        return torch.floor(images * 255 + 0.5) / 255

    def forward(self, images):
        assert not images.requires_grad and not torch.is_grad_enabled(), "a query attack must not ask for gradients"
        self.queries += len(images)
        return (self.net(self.received(images)).softmax(1) * 256).round() / 256


class Linear(nn.Module):
    """Two classes, logits ±(w·x − b): the boundary is a plane, its distance |w·x − b| / ‖w‖."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x):
        score = (x * self.weight).flatten(1).sum(1) - self.bias
        return torch.stack([score, -score], dim=1)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(3)
    made = Small()
    with torch.no_grad():
        made.train()(torch.rand(64, 3, 12, 12))
    return made.eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(1)) * 0.8 + 0.1


@pytest.fixture(scope="module")
def labels(net, images):
    return net(images).argmax(1)


def run(name, net, images, labels, **overrides):
    shown = Probabilities(net).eval() if ATTACKS[name].kind == "query" else net
    return attack(name, shown, images, labels, **FAST[name] | overrides)


# The table ----------------------------------------------------------------------------------------------------------


def test_there_are_twelve_variants_of_ten_attacks_and_all_have_parameters():
    assert len(ATTACKS) == 12 and len({chosen.family for chosen in ATTACKS.values()}) == 10
    assert set(published_table()["attack"]) == set(ATTACKS)


@pytest.mark.parametrize(("name", "task", "expected"), [
    ("PGD", "coffee", {"eps": 0.004, "step_share": 0.1, "steps": 20, "restarts": 20}),
    ("DeepFool", "vww", {"overshoot": 0.008, "steps": 100}),
    ("ZOO", "cifar10", {"steps": 10, "binary_steps": 5, "initial_const": 0.01, "h": 1e-4, "coordinates": 128, "lr": 0.01}),
    ("ZOO", "coffee", {"steps": 10, "binary_steps": 2, "initial_const": 0.01, "h": 1e-4, "coordinates": 128, "lr": 0.01}),
    ("Square-L2", "vww", {"eps": 2.0, "steps": 1000, "p_init": 0.8}),
    ("GeoDA", "coffee", {"tolerance": 0.01, "sub_dim": 10, "queries": 4000, "sigma": 2e-4, "init_tries": 100}),
    ("Boundary", "vww", {"delta": 0.1, "epsilon": 1.0, "steps": 500, "trials": 25, "samples": 20, "init_tries": 500}),
])  # fmt: skip
def test_parameters_are_those_of_the_run_scripts(name, task, expected):
    assert published(name, task) == expected


def test_autoattack_leaves_out_apgd_t_where_there_are_two_classes():
    assert "apgd-t" not in published("AutoAttack", "vww")["parts"]
    assert len(published("AutoAttack", "coffee")["parts"]) == 4 and published("AutoAttack", "coffee")["eps"] == 0.009


def test_every_row_of_the_table_says_who_set_it():
    table = published_table()
    assert set(table["set_by"]) == {"run script", "attack script", "library"}
    assert list(table.columns[:5]) == ["attack", "parameter", *TASKS] and not table[list(TASKS)].isna().any(axis=None)


@pytest.mark.parametrize(("arguments", "overrides", "message"), [
    (("DeepFol",), {}, "Did you mean 'DeepFool'"), (("PGD", "cifar"), {}, "unknown task 'cifar'.*'cifar10'"),
    (("PGD",), {"step": 3}, "unknown parameter of PGD 'step'.*Did you mean 'steps'"),
])  # fmt: skip
def test_unknown_names_are_answered_with_the_nearest(arguments, overrides, message):
    with pytest.raises(ParameterError, match=message):
        published(*arguments, **overrides)


# What every attack keeps --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_gives_images_repeats_itself_and_changes_nothing_else(name, net, images, labels):
    before, state, flags = images.clone(), copy.deepcopy(net.state_dict()), [p.requires_grad for p in net.parameters()]
    generators = np.random.get_state()[1].copy(), random.getstate(), torch.get_rng_state()
    first, again = run(name, net, images, labels), run(name, net, images, labels)
    assert first.dtype == torch.float32 and first.shape == images.shape and not first.requires_grad
    assert 0 <= float(first.min()) and float(first.max()) <= 1
    assert torch.equal(first, again)
    assert torch.equal(images, before) and not net.training
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert [p.requires_grad for p in net.parameters()] == flags and all(p.grad is None for p in net.parameters())
    assert np.array_equal(np.random.get_state()[1], generators[0]) and random.getstate() == generators[1]
    assert torch.equal(torch.get_rng_state(), generators[2])


@pytest.mark.parametrize("name", [name for name in ATTACKS if name not in ("JSMA", "ZOO", "Square-L2")])
def test_an_attack_fools_a_random_network(name, net, images, labels):
    made = run(name, net, images, labels)
    assert (net(made).argmax(1) != labels).float().mean() >= 0.5


@pytest.mark.parametrize(("name", "norm", "bound"), [
    ("PGD", torch.inf, 0.03), ("AutoAttack", torch.inf, 0.03), ("Square-Linf", torch.inf, 0.1), ("Square-L2", 2, 1.0)])
def test_bounded_attacks_keep_their_bound(name, norm, bound, net, images, labels):
    noise = (run(name, net, images, labels) - images).flatten(1)
    assert float(noise.norm(norm, dim=1).max()) <= bound + 1e-5 and float(noise.abs().max()) > 0


@pytest.mark.parametrize("name", ["ZOO", "Boundary", "GeoDA", "CW-L2"])
def test_a_run_in_parts_is_a_run_in_one_go(name, net, images, labels, monkeypatch):
    monkeypatch.setattr("qpatch.attacks.pixel.BATCH", 2)
    whole = run(name, net, images, labels, seed=5)
    assert torch.equal(whole[2:], run(name, net, images[2:], labels[2:], seed=7))


# Query attacks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", QUERY)
def test_a_query_attack_asks_the_integers_counts_and_never_wants_a_gradient(name, net, images, labels):
    integers = Integers(net).eval()
    made = attack(name, integers, images, labels, **FAST[name])
    first = integers.queries
    assert first > 3 * len(images)
    assert torch.equal(made, attack(name, integers, images, labels, **FAST[name])) and integers.queries == 2 * first


def test_float_probabilities_count_their_queries(net, images):
    counted = Probabilities(net).eval()
    assert torch.allclose(counted(images).sum(1), torch.ones(4)) and counted(images[:3]).shape == (3, 5)
    assert counted.queries == 7


def test_zoo_with_the_published_step_is_blind_on_eight_bits_and_not_with_a_whole_step():
    weight = torch.full((3, 8, 8), -3.0)  # brighter is less; ART's ZOO only brightens
    image = torch.full((1, 3, 8, 8), 128 / 255)
    integers = Integers(Linear(weight, bias=float((image * weight).sum()) - 0.2)).eval()
    fine, coarse = ({"h": h, "coordinates": 64, "initial_const": 1.0} for h in (1e-4, 4 / 255))
    assert torch.equal(attack("ZOO", integers, image, torch.tensor([0]), **fine), image)
    fooled = attack("ZOO", integers, image, torch.tensor([0]), **coarse)
    with torch.no_grad():
        assert int(integers(fooled).argmax()) == 1


def test_logits_are_refused_by_query_attacks_and_integers_by_gradient_attacks(net, images, labels):
    with pytest.raises(InputError, match=r"Probabilities\(net\)"):
        attack("GeoDA", net, images, labels)
    class Mute(nn.Module):
        def forward(self, x):
            return net(x).detach()
    with pytest.raises(InputError, match="tflite.twin"):
        attack("DeepFool", Mute().eval(), images, labels)


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda net, x, y: (copy.deepcopy(net).train(), x, y), "train mode"), (lambda net, x, y: (net, x * 255, y), r"\[0, 1\]"),
    (lambda net, x, y: (net, x, y[:2]), "labels"), (lambda net, x, y: (net, x[..., :4, :4], y), "8×8")])
def test_malformed_input_gets_one_clear_message(spoil, message, net, images, labels):
    with pytest.raises(InputError, match=message):
        attack("DeepFool", *spoil(net, images, labels))


# Oracles ------------------------------------------------------------------------------------------------------------


def test_deepfool_crosses_a_plane_at_its_distance():
    weight = torch.zeros(3, 8, 8)
    weight[0, 0, :4] = torch.tensor([3.0, 4.0, 0.0, 0.0])  # ‖w‖ = 5
    net = Linear(weight, bias=3.0).eval()
    image = torch.full((1, 3, 8, 8), 0.5)  # w·x = 3.5: distance 0.1
    made = attack("DeepFool", net, image, torch.tensor([0]), overshoot=0.02)
    assert float((made - image).norm()) == pytest.approx(0.102, abs=1e-4)
    assert (made - image)[0, 0, 0, :2].tolist() == pytest.approx([-0.0612, -0.0816], abs=1e-4)
    assert int(net(made).argmax()) == 1


def test_pgd_reaches_the_corner_of_its_box_on_a_plane():
    weight = torch.ones(3, 8, 8)
    weight[1] = -1
    net = Linear(weight, bias=-5.0).eval()
    image = torch.full((1, 3, 8, 8), 0.5)
    made = attack("PGD", net, image, torch.tensor([0]), eps=0.01, steps=40)
    assert torch.allclose(made, image - 0.01 * weight, atol=1e-6)


def test_pgd_restarts_only_images_that_are_not_fooled_and_leaves_noise_on_the_rest(net, images, labels, monkeypatch):
    seen = []
    original = base.Anchored.forward
    monkeypatch.setattr(base.Anchored, "forward", lambda self, x: seen.append(len(x)) or original(self, x))
    made = attack("PGD", net, images, labels, eps=1e-4, restarts=3, steps=2)
    assert (net(made).argmax(1) == labels).all() and float((made - images).abs().flatten(1).amax(1).min()) > 0
    assert seen == 3 * [4, 4, 4]
    seen.clear()
    attack("PGD", net, images, (labels + 1) % 5, eps=1e-4, restarts=3, steps=2)
    assert seen == [4, 4, 4]


def art_classifier(net):
    return PyTorchClassifier(net, nn.CrossEntropyLoss(), (3, 12, 12), 5, clip_values=(0.0, 1.0), device_type="cpu")


@pytest.mark.parametrize("label", [None, 2, np.array([0, 3, 3, 1])])
def test_the_faster_wrap_gives_arts_predictions_and_gradients(label, net, images):
    fast, slow = base.logit_classifier(net, images), art_classifier(net)
    assert np.allclose(fast.predict(images.numpy()), slow.predict(images.numpy()), atol=1e-6)
    expected = slow.class_gradient(images.numpy(), label=label)
    for _ in range(2):  # the second time nothing has changed
        got = fast.class_gradient(images.numpy(), label=label)
        assert got.shape == expected.shape and np.allclose(got, expected, atol=1e-6)


def test_only_images_that_changed_are_computed_again(net, images, monkeypatch):
    fast, seen = base.logit_classifier(net, images), []
    monkeypatch.setattr(fast.model.layers, "forward", lambda x: seen.append(len(x)) or nn.Sequential.forward(fast.model.layers, x))
    x = images.numpy().copy()
    fast.predict(x), fast.predict(x)
    x[2, 0, 0, 0] = 0.5
    after = fast.predict(x)
    assert seen == [4, 1] and np.allclose(after, net(torch.from_numpy(x)).detach().numpy(), atol=1e-6)


def test_cw_linf_gives_arts_images(net, images, labels):
    expected = CarliniLInfMethod(art_classifier(net), max_iter=4, learning_rate=0.02, verbose=False)
    expected = torch.from_numpy(expected.generate(images.numpy(), labels.numpy()))
    made = attack("CW-Linf", net, images, labels, steps=4, lr=0.02)
    assert (net(made).argmax(1) != labels).any()
    assert torch.allclose(made, expected, atol=2e-6)


def test_zoo_gives_arts_images(net, images, labels):
    shown = Probabilities(net).eval()
    made = attack("ZOO", shown, images[:2], labels[:2], seed=4, initial_const=1.0, **FAST["ZOO"])
    for number in range(2):
        with seeded(4 + number):
            oracle = ZooAttack(art_classifier(shown), max_iter=3, binary_search_steps=2, initial_const=1.0, nb_parallel=16,
                               use_resize=False, use_importance=False, batch_size=1, verbose=False)  # fmt: skip
            expected = oracle.generate(images[number : number + 1].numpy(), labels[number : number + 1].numpy())
        assert np.allclose(made[number], expected[0], atol=1e-4)


@pytest.mark.parametrize(("number", "size"), [(5, 8), (8, 8), (12, 8)])
def test_geodas_waves_are_arts_basis_taken_apart(number, size, monkeypatch):
    monkeypatch.setattr(np, "mat", np.asarray, raising=False)  # ART's own code stops at numpy 2
    whole = np.asarray(GeoDA._generate_2d_dct_basis(number, size))
    waves, noise = geoda.cosine_waves(number, size), np.random.default_rng(0).normal(size=(number, number))
    assert np.allclose((whole @ noise.reshape(-1)).reshape(size, size), waves.T @ noise.T @ waves, atol=1e-5)


def test_what_was_asked_before_costs_no_query(net, images):
    counted = Probabilities(net).eval()
    classifier = base.query_classifier(counted, images)
    before = counted.queries
    first = classifier.predict(images.numpy())
    mixed = classifier.predict(np.concatenate([images[2:3].numpy(), images[:1].numpy() * 0.9]))
    assert counted.queries - before == 3 + 1  # the first image had been asked for the number of classes
    assert np.array_equal(mixed[0], first[2]) and not np.array_equal(mixed[1], first[0])


def test_a_query_without_pixels_gets_no_scores(net, images):
    spoilt = images.numpy().copy()
    spoilt[1, 0, 0, 0] = np.nan
    scores = base.query_classifier(Probabilities(net).eval(), images).predict(spoilt)
    assert np.isnan(scores[1]).all() and not np.isnan(scores[[0, 2, 3]]).any()


def test_with_more_waves_than_pixels_geodas_noise_is_white():
    waves = geoda.cosine_waves(75, 32)
    assert np.allclose(waves.T @ waves, np.eye(32), atol=1e-5)
