"""PatchAttack: what it may know, what it may change, how it counts its questions, and that its agents learn."""

import numpy as np
import pytest
import torch
from torch import nn

from qpatch import data
from qpatch.attacks import QueryPatchAttack, paste
from qpatch.attacks.agents import Agents
from qpatch.attacks.places import allowed_places
from qpatch.attacks.textures import texture_dictionary
from qpatch.errors import InputError, ParameterError

CLASSES, SIZE = 4, 6


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(12, 3, 32, 32, generator=generator) / 2, torch.randint(CLASSES, (12,), generator=generator)


@pytest.fixture
def textures():
    return torch.rand(CLASSES, 5, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def small_net():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(128, CLASSES)).eval()


def steadfast(images):
    """Says the same class whatever it sees, and gives no hint."""
    return torch.tensor([0.0, 9.0, 0.0, 0.0]).expand(len(images), -1)


def variant_options(variant, textures):
    return {"variant": variant, "textures": textures if variant == "texture" else None}


@pytest.mark.parametrize("variant", ["mono", "texture"])
@pytest.mark.parametrize("target", [None, 3])
def test_it_asks_without_gradients_and_leaves_the_network_alone(variant, target, batch, textures):
    net, asked = small_net(), []
    before = {name: value.clone() for name, value in net.state_dict().items()}

    class Guarded(nn.Module):
        def forward(self, images):
            assert not torch.is_grad_enabled() and not images.requires_grad
            asked.append(len(images))
            return net(images)

    copies = [part.clone() for part in batch]
    attack = QueryPatchAttack(Guarded().eval(), SIZE, target=target, queries=8, **variant_options(variant, textures))
    result = attack.run(*batch)
    assert sum(asked) == int(result.queries.sum()) + 1  # one more, to count the classes
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(weight.grad is None and weight.requires_grad for weight in net.parameters())
    assert torch.equal(batch[0], copies[0]) and torch.equal(batch[1], copies[1])


def test_any_callable_will_do(batch):
    weights = np.random.default_rng(0).normal(size=(3 * 32 * 32, CLASSES)).astype(np.float32)
    outside_of_torch = lambda images: torch.from_numpy(images.numpy().reshape(len(images), -1) @ weights)  # noqa: E731
    assert QueryPatchAttack(outside_of_torch, SIZE, queries=5).run(*batch).images.shape == batch[0].shape


@pytest.mark.parametrize("variant", ["mono", "texture"])
@pytest.mark.parametrize("place", ["random", "away", "corner", "center", "top_right", (2, 9)])
def test_the_patch_stays_in_its_place_and_is_what_it_claims(variant, place, batch, textures):
    images, labels = batch
    result = QueryPatchAttack(
        small_net(), SIZE, place=place, queries=6, stop_at=1.0, **variant_options(variant, textures)
    ).run(images, labels)
    changed = (result.images != images).any(dim=1)
    assert changed.flatten(1).sum(dim=1).max() <= SIZE**2
    assert torch.equal(result.images, paste(images, result.pixels, torch.ones(1, SIZE, SIZE), result.places))
    for row, column in result.places.tolist():
        if place in ("random", "away"):
            assert allowed_places(place, 32, SIZE)[row, column]
        else:
            corners = [(0, 0), (0, 26), (26, 0), (26, 26)]
            known = {"corner": corners, "center": [(13, 13)], "top_right": [(0, 26)], (2, 9): [(2, 9)]}
            assert (row, column) in known[place]
    if variant == "mono":
        assert (result.pixels == result.pixels[:, :, :1, :1]).all()
        assert set((result.pixels * 255).round().int().unique().tolist()) <= {0, 85, 170, 255}
    else:
        cuts = textures.unfold(3, SIZE, 1).unfold(4, SIZE, 1)  # (classes, clusters, C, rows, columns, h, w)
        for pixels, label in zip(result.pixels, labels):
            source = (cuts == pixels[:, None, None]).all(dim=(2, 5, 6)).nonzero()
            assert len(source) == 1 and source[0, 0] != label


def test_targeted_textures_are_of_the_target(batch, textures):
    result = QueryPatchAttack(small_net(), SIZE, target=2, queries=3, variant="texture", textures=textures).run(*batch)
    cuts = textures[2].unfold(2, SIZE, 1).unfold(3, SIZE, 1)
    assert all((cuts == pixels[:, None, None]).all(dim=(1, 4, 5)).any() for pixels in result.pixels)


def test_questions_are_counted_image_by_image(batch):
    images, _ = batch
    labels, at = torch.ones(12, dtype=torch.int64), iter(range(1000))

    def falls_at_the_third(shown):  # an image of mean below 0.25 falls at its third question, others never
        turn = next(at)
        fooled = (shown[:, :, 8:24, 8:24].mean(dim=(1, 2, 3)) < 0.25) & (turn >= 3)
        return torch.where(fooled[:, None], torch.tensor([9.0, 0, 0, 0]), torch.tensor([0.0, 9, 0, 0]))

    weak = images[:, :, 8:24, 8:24].mean(dim=(1, 2, 3)) < 0.25
    assert 0 < weak.sum() < 12
    result = QueryPatchAttack(falls_at_the_third, SIZE, queries=7, place="top_left").run(images, labels)
    assert torch.equal(result.queries, torch.where(weak, 3, 7)) and torch.equal(result.first, torch.where(weak, 3, 0))
    assert torch.equal(result.success, weak)
    assert not result.within(2).any() and torch.equal(result.within(3), weak)


def test_the_whole_budget_is_used_for_patches_that_travel(batch):
    net, (images, labels) = small_net(), batch
    first = QueryPatchAttack(net, SIZE, queries=40).run(images, labels)
    whole = QueryPatchAttack(net, SIZE, queries=40, stop_at=1.0).run(images, labels)
    assert (whole.queries == 40).all() and torch.equal(first.first, whole.first)
    assert torch.equal(whole.success, whole.first > 0)
    with torch.no_grad():
        doubt = [1 - net(run.images).softmax(dim=1).gather(1, labels[:, None])[:, 0] for run in (first, whole)]
        assert torch.equal(net(whole.images).argmax(dim=1) != labels, whole.success)
    assert (doubt[1] >= doubt[0] - 1e-6).all() and doubt[1].mean() > doubt[0].mean()


def test_a_smaller_budget_is_a_prefix_and_other_images_have_no_say(batch):
    net, (images, labels) = small_net(), batch
    long, short = (QueryPatchAttack(net, SIZE, queries=queries).run(images, labels) for queries in (30, 9))
    assert torch.equal(long.within(9), short.success)
    blind = QueryPatchAttack(steadfast, SIZE, queries=30, policy="random").run(images, torch.ones_like(labels))
    assert not blind.success.any() and (blind.queries == 30).all()


@pytest.mark.parametrize("variant", ["mono", "texture"])
@pytest.mark.parametrize("policy", ["reinforce", "random"])
def test_the_seed_decides_everything(variant, policy, batch, textures):
    options = {"queries": 12, "policy": policy, **variant_options(variant, textures)}
    runs = [QueryPatchAttack(small_net(), SIZE, seed=seed, **options).run(*batch) for seed in (5, 5, 6)]
    assert torch.equal(runs[0].images, runs[1].images) and not torch.equal(runs[0].images, runs[2].images)
    torch.manual_seed(99)
    assert torch.equal(QueryPatchAttack(small_net(), SIZE, seed=5, **options)(*batch), runs[0].images)


def test_agents_that_learnt_nothing_draw_places_evenly():
    allowed = torch.tensor([[True, True, True], [True, False, False]])
    keys = torch.zeros(4000, dtype=torch.int64)
    rows, columns = (allowed.sum(dim=1).float().log()[None], keys, 0.0), (allowed.float().log(), None, 0.0)
    drawn = Agents(4000, [rows, columns], 0.3, 0.0).draw(torch.arange(4000), torch.Generator().manual_seed(0))
    share = torch.zeros(2, 3).index_put((drawn[:, 0], drawn[:, 1]), torch.tensor(1 / 4000), accumulate=True)
    assert torch.equal(share > 0, allowed) and (share[allowed] - 0.25).abs().max() < 0.03


def test_one_step_of_reinforce_by_hand():
    agents = Agents(1, [(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), 0.0)], lr=0.5, entropy=0.0)
    alive = torch.tensor([0])
    agents.learn(alive, torch.tensor([[0]]), torch.tensor([-3.0]))
    assert torch.equal(agents.logits[0], torch.zeros(1, 2))  # the first reward has nothing to be compared with
    agents.learn(alive, torch.tensor([[1]]), torch.tensor([-1.0]))
    # mean (-3 - 1) / 2, deviation 1, surplus over the old mean 2; so 0.5 · 2 · (onehot − ½)
    assert torch.allclose(agents.logits[0], torch.tensor([[-0.5, 0.5]]))
    assert float(agents.mean) == -2 and float(agents.variance) == 1


def test_an_agent_that_forgets_draws_like_a_new_one_but_keeps_its_baseline():
    agents = Agents(1, [(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), 0.0)], 0.5, 0.0)
    for choice, reward in ((0, -3.0), (1, -1.0)):
        agents.learn(torch.tensor([0]), torch.tensor([[choice]]), torch.tensor([reward]))
    agents.forget()
    assert not agents.logits[0].any() and float(agents.mean) == -2
    runs = [QueryPatchAttack(small_net(), SIZE, queries=20, life=life, stop_at=1.0) for life in (5, 21, 50)]
    images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    short, long, longer = (run.run(images, torch.zeros(6, dtype=torch.int64)) for run in runs)
    assert torch.equal(long.images, longer.images) and not torch.equal(short.images, long.images)


def test_entropy_draws_the_choices_together():
    agents = Agents(1, [(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), 0.0)], lr=1.0, entropy=0.1)
    agents.logits[0][:] = torch.tensor([[2.0, 0.0]])
    start = agents.logits[0].clone().requires_grad_()
    chances = start.softmax(dim=1)
    (-torch.xlogy(chances, chances).sum()).backward()
    agents.learn(torch.tensor([0]), torch.tensor([[0]]), torch.tensor([-1.0]))
    assert torch.allclose(agents.logits[0], torch.tensor([[2.0, 0.0]]) + 0.1 * start.grad, atol=1e-6)


def test_the_policy_finds_what_the_random_control_misses():
    images, labels = torch.full((60, 3, 32, 32), 0.5), torch.zeros(60, dtype=torch.int64)

    def hot_spot(shown):  # the more red and the less blue at the lower right, the less class 0
        corner = shown[:, :, 20:, 20:].mean(dim=(2, 3))
        evidence = 40 * (corner[:, 0] - corner[:, 2])
        return torch.stack([torch.full_like(evidence, 9.5), evidence], dim=1)

    found = {policy: QueryPatchAttack(hot_spot, SIZE, queries=120, policy=policy).run(images, labels)
             for policy in ("reinforce", "random")}  # fmt: skip
    assert found["reinforce"].success.float().mean() > found["random"].success.float().mean() + 0.2


@pytest.mark.parametrize("wrong", [
    {"queries": 0}, {"levels": 1}, {"lr": 0}, {"life": 0}, {"stop_at": 1.5}, {"variant": "plaid"}, {"policy": "greedy"},
    {"variant": "texture"}, {"textures": torch.rand(4, 2, 3, 32, 32)}, {"place": "nowhere"},
])  # fmt: skip
def test_wrong_parameters_are_refused(wrong, batch):
    with pytest.raises(ParameterError):
        QueryPatchAttack(steadfast, SIZE, **{"queries": 2, **wrong}).run(*batch)


def test_wrong_inputs_are_refused(batch):
    images, labels = batch
    for view, size, options, given in (
        (small_net().train(), SIZE, {}, labels), (steadfast, 33, {}, labels), (steadfast, SIZE, {"target": 4}, labels),
        (steadfast, SIZE, {}, labels + 9), (steadfast, SIZE, {}, labels[:3]),
        (steadfast, SIZE, {"variant": "texture", "textures": torch.rand(3, 2, 3, 32, 32)}, labels),
        (steadfast, SIZE, {"variant": "texture", "textures": torch.rand(4, 2, 3, 4, 4)}, labels),
    ):  # fmt: skip
        with pytest.raises(InputError):
            QueryPatchAttack(view, size, queries=2, **options).run(images, given)


class Averager(nn.Module):
    """Class k wins where channel k is strong: its class activation map is the channel itself."""

    def __init__(self):
        super().__init__()
        self.features, self.fc = nn.Identity(), nn.Linear(3, 3, bias=False)
        self.fc.weight.data = torch.eye(3)

    def forward(self, images):
        return self.fc(self.features(images).mean(dim=(2, 3)))


def style(pictures):
    """The colours' Gram matrices, (N, 3, 3)."""
    return torch.einsum("nchw,ndhw->ncd", pictures, pictures) / pictures[0, 0].numel()


def test_textures_have_the_styles_of_their_classes():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat_interleave(20)
    images = torch.rand(60, 3, 8, 8, generator=generator) * 0.02
    pure, mixed = torch.arange(60) % 2 == 0, torch.arange(60) % 2 == 1  # two styles per class, in a square
    for index, label in enumerate(labels.tolist()):
        images[index, label, 2:6, 2:6] = 0.8
        images[index, (label + 1) % 3, 2:6, 2:6] = 0.6 if mixed[index] else 0.0
    net, before = Averager().eval(), torch.eye(3)
    options = {"clusters": 2, "layers": ("features",), "steps": 300}
    found = texture_dictionary(net, images, labels, **options)
    assert found.shape == (3, 2, 3, 8, 8) and torch.equal(found, (found * 255).round() / 255)
    assert torch.equal(found, texture_dictionary(net, images, labels, **options))
    assert torch.equal(net.fc.weight, before) and net.fc.weight.grad is None and not net.features._forward_hooks
    for label in range(3):  # the style is that of the square, not of the whole image; the order of clusters is free
        squares = [style(images[(labels == label) & kind][:, :, 2:6, 2:6]).mean(dim=0) for kind in (pure, mixed)]
        distance = torch.stack([(style(found[label]) - square).norm(dim=(1, 2)) for square in squares])
        assert distance.amin(dim=0).max() < 0.02 and set(distance.argmin(dim=0).tolist()) == {0, 1}


def test_a_dictionary_says_what_it_lacks():
    shapes = data.load("shapes", "train", n=30)
    with pytest.raises(InputError, match="right"):
        texture_dictionary(Averager().eval(), shapes.floats(), shapes.labels % 3, clusters=30, layers=("features",))
    with pytest.raises(InputError, match="no layer"):
        texture_dictionary(Averager().eval(), shapes.floats(), shapes.labels % 3, layers=("body",))
    with pytest.raises(ParameterError):
        texture_dictionary(Averager().eval(), shapes.floats(), shapes.labels % 3, clusters=0)
