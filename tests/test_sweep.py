"""The sweep over ε: a linear network, whose accuracy under noise of any size is known in closed form."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from qpatch import measure, store
from qpatch.data import Dataset
from qpatch.errors import InputError
from qpatch.measure.explain import explained
from qpatch.zoo import sweep
from qpatch.zoo.sweep import RoundedInput, Sweep

SIDE, N = 8, 60
EPSILONS = (0.0, 0.001, 0.0019, 0.00199, 0.004, 0.0058, 0.0059, 0.008)


class Line(nn.Module):
    """Two classes: the sign of w · (x − grey), with |w| = 1 everywhere."""

    def __init__(self):
        super().__init__()
        signs = torch.randint(0, 2, (3, SIDE, SIDE), generator=torch.Generator().manual_seed(1)) * 2.0 - 1
        self.register_buffer("w", signs)

    def forward(self, images):
        score = ((images - 128 / 255) * self.w).sum((1, 2, 3))
        return torch.stack([-score, score], dim=1)


@pytest.fixture
def task(tmp_path, monkeypatch):
    """Grey images of class 1 whose scores are spread evenly from 0 to the most that the largest ε can take away."""
    net = Line().eval()
    wanted = torch.linspace(0.2, 0.0085 * 255 * 3 * SIDE**2, N)  # the score in units of 1/255
    pixels = torch.full((N, 3 * SIDE**2), 128, dtype=torch.uint8)
    for image, score in zip(pixels, wanted.round().int().tolist()):
        steps = torch.full((3 * SIDE**2,), score // (3 * SIDE**2))
        steps[: score % (3 * SIDE**2)] += 1
        image += (steps * net.w.flatten()).to(torch.int8).view(torch.uint8)
    data = Dataset("line", "test", pixels.view(N, 3, SIDE, SIDE), torch.ones(N, dtype=torch.int64), ("0", "1"))
    fake = SimpleNamespace(load=lambda split: data, network=lambda retrain=False: net, parameters="cifar10")
    monkeypatch.setitem(sweep.TASKS, "line", fake)
    monkeypatch.setattr(sweep, "views", lambda task, net: {"float": net, "rounded": RoundedInput(net, 255)})
    monkeypatch.setattr(sweep, "FOLDER", tmp_path / "sweeps")
    monkeypatch.setenv("QPATCH_CACHE", str(tmp_path / "cache"))
    scores = wanted.round() / 255
    return SimpleNamespace(net=net, still_right=lambda noise: (scores > noise * 3 * SIDE**2).sum().item())


def test_accuracy_falls_evenly_and_in_steps_where_the_input_is_rounded(task):
    table = sweep.load(Sweep("line", N, restarts=1), EPSILONS).table().set_index(["view", "epsilon"])["accuracy"]
    for epsilon in EPSILONS:
        assert table["float", epsilon] == pytest.approx(task.still_right(epsilon) / N, abs=1.01 / N)
        steps = int(255 * epsilon + 0.5)
        assert table["rounded", epsilon] == pytest.approx(task.still_right(steps / 255) / N, abs=1.01 / N)
    assert table["rounded", 0.0019] == table["rounded", 0.0] > table["rounded", 0.00199] == table["rounded", 0.0058]
    assert table["rounded", 0.0059] < table["rounded", 0.0058]


def test_norms_as_made_and_as_received(task):
    norms = sweep.load(Sweep("line", N, restarts=1), (0.0, 0.001, 0.003)).norm_table().set_index("epsilon")
    n = 3 * SIDE**2
    assert norms.loc[0.0].drop("task").eq(0).all()
    made = norms.loc[0.003, [f"{name}_made" for name in sweep.NORMS]].tolist()
    assert made == pytest.approx([n, n * 0.003, n**0.5 * 0.003, 0.003], rel=1e-3)
    assert norms.loc[0.001, "L0_received"] == 0
    received = norms.loc[0.003, [f"{name}_received_max" for name in sweep.NORMS]].tolist()
    assert received == pytest.approx([n, n / 255, n**0.5 / 255, 1 / 255], rel=1e-3)


def test_interrupted_shipped_and_read_back(task, monkeypatch):
    wanted = Sweep("line", N, restarts=3)
    monkeypatch.setattr(sweep, "EPSILONS", (0.0, 0.004))
    whole = sweep.load(wanted, (0.0, 0.004))
    calls = []
    monkeypatch.setattr(sweep, "attack", lambda *a, **k: calls.append(k))
    assert torch.equal(sweep.load(wanted, (0.0, 0.004)).right["float"], whole.right["float"])
    sweep.ship(wanted)
    shipped = sweep.load(wanted)
    assert not calls and wanted.path.name == "pgd-line.safetensors" and shipped.epsilons == (0.0, 0.004)
    assert {name: hits.tolist() for name, hits in shipped.right.items()} == {
        name: hits.tolist() for name, hits in whole.right.items()
    }
    assert set(shipped.right) == {"float", "rounded", "float, one restart", "rounded, one restart"}
    card = store.load_tensors(wanted.path)[1]
    assert card["parameters"]["restarts"] == 3 and card["network"] == store.tensors_fingerprint(task.net.state_dict())


def test_only_images_within_reach_get_more_restarts(task, monkeypatch):
    asked, original = [], sweep.attack

    def counting(name, net, images, labels, **options):
        asked.append((len(images), options["restarts"]))
        return original(name, net, images, labels, **options)

    monkeypatch.setattr(sweep, "attack", counting)
    sweep.load(Sweep("line", N, restarts=3), (0.004,))
    near = task.still_right(0.004) - task.still_right(0.005)  # noise of a quarter more would reach them
    assert asked == [(N, 1), (near, 2)] and near > 3


def test_parts_are_equal_to_the_whole(task):
    few, many = Sweep("line", 20, restarts=1), Sweep("line", N, restarts=1)
    one = sweep.judge(few, (0.003,), task.net, {"float": task.net}, stored=False)
    assert torch.equal(one.right["float"], sweep.load(many, (0.003,)).right["float"][:, :20])


def test_rounding_to_the_nearest_halves_up():
    values = torch.tensor([0.0, 0.49, 0.51, 1.49, 1.51, 254.51, 255.0]) / 255
    received = RoundedInput(Line(), 255).received(values) * 255
    assert received.round().tolist() == [0, 0, 1, 1, 2, 255, 255]
    assert RoundedInput(Line(), 2).received(torch.tensor([0.25, 0.75])).tolist() == [0.5, 1.0]


def test_shifted_images_leave_the_lattice():
    images = torch.randint(0, 256, (4, 3, 16, 16), generator=torch.Generator().manual_seed(0)) / 255
    moved = sweep.shift_within_pixel(images, 0)
    away = (moved * 255 - (moved * 255).round()).abs()
    assert moved.shape == images.shape and 0 <= moved.min() and moved.max() <= 1
    assert 0.2 < away.mean() < 0.3  # a quarter step is what a value without any lattice has
    flat = torch.full((1, 3, 8, 8), 0.4)
    assert torch.allclose(sweep.shift_within_pixel(flat, 3), flat)
    assert torch.equal(moved, sweep.shift_within_pixel(images, 0))


# ------------------------------------------------------------------------------------------------ the explained share


def table(*rows):
    return torch.tensor(rows, dtype=torch.bool)


def test_explained_share_by_hand():
    base, effect = table([1, 1, 1, 1], [1, 1, 0, 0]), table([1, 1, 0, 0], [0, 0, 0, 0])
    assert explained(base, effect, effect)[0] == 1 and explained(base, effect, base)[0] == 0
    half = table([1, 1, 0, 0], [1, 1, 0, 0])  # squares: (0² + ½²) of (½² + ½²)
    value, low, high = explained(base, effect, half)
    assert value == pytest.approx(0.5) and low <= value <= high
    assert explained(base, effect, half) == (value, low, high)


def test_explained_share_of_nothing_and_of_bad_tables():
    same = table([1, 0, 1])
    assert all(number != number for number in explained(same, same, same))
    with pytest.raises(InputError, match="E×N"):
        explained(same, same, table([1, 0]))
    assert measure.explained is explained


def test_shipped_sweeps_belong_to_the_shipped_networks():
    found = sorted(sweep.FOLDER.glob("pgd-*.safetensors"))
    if not found:
        pytest.skip("no sweep ships")
    for path in found:
        card = store.load_tensors(path)[1]
        made = Sweep(**card["sweep"])
        assert made.path == path
        net = sweep.TASKS[made.task].network()
        assert card["network"] == store.tensors_fingerprint(net.state_dict()), f"{path.name} is of an older network"
