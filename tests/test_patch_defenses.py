"""Patch training, PBAT, Double-Win Quant and QADT-R: which width is attacked, which is trained, and what each part does."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qpatch.attacks import make_mask, paste
from qpatch.attacks.places import allowed_places, sample_places
from qpatch.defenses import PBAT, QADTR, DoubleWinQuant, NoisyActivations, PatchTraining, RandomPrecision
from qpatch.defenses.inner_patch import patch_pgd
from qpatch.defenses.qadt_r import gradient_agreement, noisy_activations
from qpatch.errors import InputError, ParameterError
from qpatch.quant import MultiBit, Policy, calibrate
from qpatch.training import Batch

WIDTHS = (32, 8, 4)


class Small(nn.Module):
    def __init__(self, classes: int = 4):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.Linear(6 * 49, classes)
        self.num_classes = classes

    def forward(self, x):
        return self.fc(torch.relu(self.bn(self.conv(x))).flatten(1))


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return Batch(torch.rand(12, 3, 16, 16, generator=generator), torch.arange(12) % 4)


@pytest.fixture
def net(batch):
    torch.manual_seed(0)
    made = MultiBit(Small(), WIDTHS, Policy(learned=True, first_last=None)).eval()
    calibrate(made, batch.images)
    return made.train()


def watch(net):
    """The widths that see a forward pass, in order: (width, in train mode)."""
    seen = []
    for width in WIDTHS:
        net.at(width).register_forward_hook(lambda view, *_, width=width: seen.append((width, view.training)))
    return seen


def test_allowed_places_are_where_sample_places_goes():
    for kind in ("random", "away"):
        allowed = allowed_places(kind, 16, 4)
        drawn = sample_places(kind, 4000, 16, 4, torch.Generator().manual_seed(0))
        visited = torch.zeros_like(allowed)
        visited[tuple(drawn.T)] = True
        assert torch.equal(visited, allowed)
    with pytest.raises(ParameterError, match="place with a region"):
        allowed_places("corner", 16, 4)
    with pytest.raises(InputError, match="always touches"):
        allowed_places("away", 9, 7)


def test_the_inner_patch_raises_the_loss_and_stays_a_patch(net, batch):
    view, mask = net.at(4).eval(), make_mask("square", 5)
    pixels, places = patch_pgd(
        lambda *_: view, *batch, size=5, place="random", iterations=12, step=0.1, generator=torch.Generator().manual_seed(0)
    )
    start = torch.Generator().manual_seed(0)
    first = sample_places("random", 12, (16, 16), 5, start), torch.rand(12, 3, 5, 5, generator=start)
    loss = lambda p, at: F.cross_entropy(view(paste(batch.images, p, mask, at)), batch.labels).item()  # noqa: E731
    assert torch.equal(places, first[0]) and 0 <= float(pixels.min()) and float(pixels.max()) <= 1
    assert loss(pixels, places) > loss(first[1], first[0]) + 0.05
    assert all(weight.grad is None and weight.requires_grad for weight in view.parameters())


@pytest.mark.parametrize("location", ["random", "full"])
def test_the_place_search_moves_uphill_inside_the_region(net, batch, location):
    """With steps too small to change pixels, only the place can have raised the loss."""
    view, mask, allowed = net.at(32).eval(), make_mask("square", 4), allowed_places("away", 16, 4)
    pixels, places = patch_pgd(
        lambda *_: view, *batch, size=4, place="away", iterations=8, step=1e-9, location=location,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    first = sample_places("away", 12, (16, 16), 4, torch.Generator().manual_seed(0))
    loss = lambda at: F.cross_entropy(view(paste(batch.images, pixels, mask, at)), batch.labels, reduction="none")  # noqa: E731
    moved = (places != first).any(dim=1)
    assert moved.sum() >= 4 and bool(allowed[tuple(places.T)].all())
    assert bool((loss(places)[moved] > loss(first)[moved]).all())
    assert bool(((places - first) % 2 == 0).all())


def test_the_full_search_takes_the_best_of_four_moves(net, batch):
    view, mask = net.at(32).eval(), make_mask("square", 4)
    options = {"size": 4, "place": "random", "iterations": 1, "step": 1e-9, "stride": 3}
    pixels, places = patch_pgd(lambda *_: view, *batch, location="full", generator=torch.Generator().manual_seed(2), **options)
    first = sample_places("random", 12, (16, 16), 4, torch.Generator().manual_seed(2))
    for k in range(12):
        there = [first[k] + torch.tensor(move) for move in ((0, 0), (-3, 0), (3, 0), (0, -3), (0, 3))]
        there = [at for at in there if 0 <= int(at.min()) and int(at.max()) <= 12]
        one = lambda at: F.cross_entropy(view(paste(batch.images[k : k + 1], pixels[k : k + 1], mask, at[None])), batch.labels[k : k + 1]).item()  # noqa: E501, E731
        assert one(places[k]) == pytest.approx(max(one(at) for at in there), abs=1e-6)


def test_half_of_the_batch_is_patched_and_the_rest_is_untouched(net, batch):
    defense = PatchTraining(widths=WIDTHS, size=4, iterations=2)
    images = defense.patched(net, batch, (32,), torch.Generator().manual_seed(0))
    changed = (images != batch.images).any(dim=1).flatten(1).sum(dim=1)
    assert changed[6:].eq(0).all() and changed[:6].gt(0).all() and changed.max() <= 16


def test_the_loss_is_the_mean_over_clean_and_patched_images(net, batch):
    defense = PatchTraining(widths=WIDTHS, trained="all", size=4, iterations=2)
    value = defense(copy.deepcopy(net), batch, 3)  # a copy, because BatchNorm goes on
    generator = torch.Generator().manual_seed(3)
    images = defense.patched(net, batch, WIDTHS, generator)
    losses = []
    for b in WIDTHS:
        logits = net.at(b)(images).detach()
        parts = (F.cross_entropy(logits[part], batch.labels[part]) for part in (slice(0, 6), slice(6, 12)))
        losses.append(0.5 * sum(parts))
    assert float(value.detach()) == pytest.approx(float(sum(losses) / 3), rel=1e-5)


@pytest.mark.parametrize(
    "options, made, trained",
    [
        ({"trained": "cycle", "made_at": "float"}, [32] * 5, [32, 8, 4, 32]),
        ({"trained": "cycle", "made_at": "own"}, None, [32, 8, 4, 32]),
    ],
)
def test_which_width_is_attacked_and_which_is_trained(net, batch, options, made, trained):
    seen = watch(net)
    defense = PatchTraining(widths=WIDTHS, size=4, iterations=5, **options)
    for step, width in enumerate(trained):
        seen.clear()
        defense(net, batch, step)
        assert [w for w, training in seen if not training] == (made or [width] * 5)
        assert [w for w, training in seen if training] == [width]


def test_random_widths_are_all_drawn_about_equally_often(net, batch):
    seen = watch(net)
    defense = PatchTraining(widths=WIDTHS, trained="random", made_at="random", size=4, iterations=4)
    for step in range(60):
        defense(net, batch, step)
    for training, total in ((True, 60), (False, 240)):
        counts = [sum(1 for s in seen if s == (width, training)) for width in WIDTHS]
        assert sum(counts) == total and min(counts) > total / 3 * 0.5


def test_adaptive_patches_visit_every_width_and_then_the_weakest(net, batch):
    seen = watch(net)
    with torch.no_grad():
        net.at(8).fc.bias.zero_()
    defense = QADTR(widths=WIDTHS, size=4, iterations=7, gir="none")
    defense.patched(net, batch, (32,), torch.Generator().manual_seed(0))
    made = [width for width, _ in seen]
    assert made[:3] == list(WIDTHS) and set(made[3:]) <= set(WIDTHS)
    losses = {}
    generator = torch.Generator().manual_seed(0)

    def record(iteration, before):
        if before is not None:
            losses[made[iteration - 1]] = float(before)
        if iteration >= 3:
            assert made[iteration] == min(WIDTHS, key=losses.__getitem__)
        return net.at(made[iteration]).eval()

    patch_pgd(record, batch.images[:6], batch.labels[:6], size=4, place="away", iterations=7, step=0.1, generator=generator)


def test_training_goes_on_in_train_mode_and_depends_on_the_step_only(net, batch):
    defense = QADTR(widths=WIDTHS, size=4, iterations=2, gir="none")
    net.eval()
    values = [float(defense(net, batch, step).detach()) for step in (4, 5, 4)]
    assert values[0] == values[2] != values[1]
    net.train()
    defense(net, batch, 0)
    assert net.training and net.at(4).training


def test_parts_of_the_defenses():
    assert PBAT().location == "random" and PBAT().made_at == "float" and PBAT().iterations == 10
    assert (QADTR().made_at, QADTR().trained, QADTR().gir) == ("adaptive", "cycle", "weights")


@pytest.mark.parametrize("options", [{"trained": "some"}, {"made_at": "top"}, {"location": "here"}, {"share": 0.0}])
def test_unknown_rules_are_refused(options):
    with pytest.raises(ParameterError):
        PatchTraining(**options)
    with pytest.raises(ParameterError, match="reading of GIR"):
        QADTR(gir="strong")


def test_double_win_quant_attacks_the_width_that_it_trains(net, batch):
    seen = watch(net)
    defense = DoubleWinQuant(widths=WIDTHS, iterations=3)
    drawn = set()
    for step in range(12):
        seen.clear()
        defense(net, batch, step)
        assert len(seen) == 4 and len({width for width, _ in seen}) == 1 and seen[-1][1]
        drawn.add(seen[0][0])
    assert drawn == set(WIDTHS)


def test_random_precision_shows_every_image_at_one_width(net, batch):
    net.eval()
    views = {width: net.at(width) for width in WIDTHS}
    rpi = RandomPrecision(views, seed=3)
    images = batch.images.repeat(4, 1, 1, 1)
    first, second = rpi(images), rpi(images)
    assert not torch.equal(first, second) and not rpi.training
    at = torch.stack([view(images) for view in views.values()])
    nearest = (at - first).abs().amax(dim=2)
    assert torch.allclose(nearest.amin(dim=0), torch.zeros(48), atol=1e-5)
    assert len(set(nearest.argmin(dim=0).tolist())) == 3
    points = batch.images.clone().requires_grad_()
    rpi(points).sum().backward()
    assert points.grad.abs().sum(dim=(1, 2, 3)).gt(0).all()


def test_noise_on_weight_gradients_has_the_stated_size(net, batch):
    defense = QADTR(widths=WIDTHS, size=4, iterations=1, strength=0.5)
    defense(net, batch, 0).backward()
    clean = {name: weight.grad.clone() for name, weight in net.named_parameters() if weight.grad is not None}
    defense.adjust_gradients(net, 0)
    for name, weight in net.named_parameters():
        if weight.grad is None:
            continue
        change = weight.grad - clean[name]
        if weight.dim() == 1:
            assert not change.any()
        elif weight.numel() > 100:
            assert float(change.std() / clean[name].square().mean().sqrt()) == pytest.approx(0.5, rel=0.2)
    before = [weight.grad.clone() for weight in net.parameters() if weight.grad is not None]
    QADTR(gir="none").adjust_gradients(net, 0)
    assert all(torch.equal(a, b) for a, b in zip(before, (w.grad for w in net.parameters() if w.grad is not None)))


def test_activation_noise_makes_two_passes_differ_and_leaves_no_trace(net, batch):
    view = net.at(8).eval()
    clean = view(batch.images)
    noisy = NoisyActivations(view, 0.3, seed=1)
    first, second = noisy(batch.images), noisy(batch.images)
    assert not torch.equal(first, second) and not torch.equal(first, clean)
    assert torch.equal(view(batch.images), clean)
    assert torch.equal(NoisyActivations(view, 0.3, seed=1)(batch.images), first)
    with noisy_activations(view, 0.0, torch.Generator()):
        assert torch.equal(view(batch.images), clean)


def test_gradient_agreement_is_the_cosine_of_input_gradients(net, batch):
    net.eval()
    value = gradient_agreement(net.at(32), net.at(4), *batch)
    rows = []
    for width in (32, 4):
        points = batch.images.clone().requires_grad_()
        F.cross_entropy(net.at(width)(points), batch.labels, reduction="sum").backward()
        rows.append(points.grad.flatten(1))
    assert float(value.detach()) == pytest.approx(float(F.cosine_similarity(*rows).mean()), abs=1e-5)
    net.zero_grad()
    assert gradient_agreement(net.at(32), net.at(32), *batch).item() == pytest.approx(1, abs=1e-5)


def test_descending_on_the_agreement_lowers_it(net, batch):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    values = []
    for _ in range(15):
        optimizer.zero_grad()
        value = gradient_agreement(net.at(32), net.at(4), *batch)
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert net.training and net.at(4).bn.training
    assert values[-1] < values[0] - 0.02
