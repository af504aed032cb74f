"""Training steps watched and small attacks made on the spot, on untrained networks; and the pictures of it all."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qpatch.errors import InputError
from qpatch.measure.success import predict
from qpatch.quant import WIDTHS
from qpatch.report import patch_plots
from qpatch.zoo import attackers, networks, patched, rehearsal, scenarios, specific
from qpatch.zoo.scenarios import MEAN, SURROGATE, Shot
from untrained import untrained

IMAGES = 30
NAMES = (SURROGATE, "qadtr-without-gir", "qadtr-gir-activations")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("QPATCH_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(patched, "_SMOKE_STEPS", 1)
    monkeypatch.setattr(patched, "OPTIONS", {attack: {"lr": 0.1, "batch": 4} for attack in scenarios.ATTACKS})
    for module in (patched, rehearsal):
        monkeypatch.setattr(module, "evaluation_subset", lambda test: torch.arange(IMAGES))
    nets = {name: untrained(seed) for seed, name in enumerate(NAMES)}
    for module in (scenarios, networks):
        monkeypatch.setattr(module, "load", lambda name, *_, **__: nets[name])
    runs = {name: patched.load_patched(name, "shapes", seeds=1) for name in NAMES}
    yield nets, runs, rehearsal.Rehearsal("shapes")
    monkeypatch.undo()


def test_a_training_is_written_down_pass_by_pass(made):
    before = {name: tensor.clone() for name, tensor in made[0][SURROGATE].state_dict().items()}
    rows = made[2].training_steps("qadtr", 5, 4)
    made[0][SURROGATE].load_state_dict(before)
    trained, attacked = (rows[rows.role == role] for role in ("trained", "attacked"))
    assert list(trained.width) == list(WIDTHS) and rows.step.max() == 4, "one step per width of the cycle"
    assert (attacked.groupby("step").size() == 2).all() and list(attacked[attacked.step == 0].width) == [32, 8]
    assert np.isfinite(rows.loss).all() and rows.groupby("step").loss.nunique().eq(1).all()


def test_gradients_of_a_noisy_network_differ_from_pass_to_pass(made):
    rows = made[2].gradient_rows(NAMES[1:], 6, widths=(32, 4)).set_index(["network", "compared"]).value
    assert rows["qadtr-without-gir", "two passes"] == pytest.approx(1, abs=1e-6)
    assert rows["qadtr-gir-activations", "two passes"] < 0.999
    assert (rows.xs("two widths", level=1) < 0.9999).all()


def test_the_stored_patch_made_again_is_the_same(made):
    rows = made[2].remade_rows(made[1]["qadtr-without-gir"], Shot("LaVAN", "seen", "8", 0))
    assert list(rows.target_bits) == list(WIDTHS)
    counted = rows[rows.n > 0]
    assert (counted.agree == 1).all() and (counted.difference == 0).all() and (counted.stored == counted.now).all()


class Hashed(nn.Module):
    """A class for every image, without reason, and another one at another width."""

    def __init__(self, shift: int):
        super().__init__()
        self.shift = shift

    def forward(self, images):
        code = (images.flatten(1).double().sum(1) * 1000).long()
        return F.one_hot((code // (1 + self.shift)) % 3, 10).float()


def test_draws_scatter_around_the_exact_mean(made, monkeypatch):
    nets, runs, now = made
    views, shot = {width: Hashed(k).eval() for k, width in enumerate(WIDTHS)}, Shot("LaVAN", "seen", MEAN, 0)
    pixels = patched.made_patches("qadtr-without-gir", "shapes", seeds=1)[shot]
    label = torch.arange(IMAGES) % 3
    right = torch.stack([predict(view, now.images) == label for view in views.values()])
    hits = torch.stack([predict(view, patched.shown(shot, pixels, now.images)) != label for view in views.values()])
    run = patched.Patched("qadtr-without-gir", label, right, {("own", shot): hits}, {}, {})
    monkeypatch.setattr(rehearsal, "deployed_views", lambda *_: views)
    monkeypatch.setattr(now, "labels", label)
    rows = now.drawn_rows(run, shot, 60)
    assert rows.exact.unique() == pytest.approx([float((hits & right).sum() / right.sum())])
    assert rows.drawn.nunique() > 10
    drawn = float((rows.drawn * rows.n).sum() / rows.n.sum())
    assert drawn == pytest.approx(rows.exact.iloc[0], abs=0.04)


def test_more_steps_stand_beside_the_stored_run(made, monkeypatch):
    monkeypatch.setattr(specific, "evaluation_subset", lambda test: torch.arange(IMAGES))
    name = "qadtr-without-gir"
    run = specific.load_specific_run(name, "shapes")
    rows = made[2].step_rows({name: run}, [1, run.card["attack"]["steps"] + 1], IMAGES)
    assert list(rows.steps) == [1, 3, 4]
    assert rows.value.iloc[1] == pytest.approx(run.trials(MEAN, attackers.RANDOM).rate)
    again = made[2].step_rows({name: run}, [3], IMAGES)  # as many steps as the stored run: the same patches
    assert len(again) == 1 and again.value.iloc[0] == pytest.approx(rows.value.iloc[1])


def test_borrowed_patches_are_those_of_the_network_without_gir(made):
    nets, runs, now = made
    rows = now.gir_rows(runs, ["qadtr-gir-activations"], "qadtr-without-gir")
    assert set(rows.compared) == {"own patches", "borrowed patches", "surrogate's patches"} and len(rows) == 2 * 6 * 3
    case = rows[(rows.attack == "GAP") & (rows.target_bits == 4)].set_index("compared").value
    own, bare = (attackers.met(runs[name], attackers.ALL, "GAP", "seen", 4).rate for name in (NAMES[2], NAMES[1]))
    assert case["own patches"] == pytest.approx(bare - own, nan_ok=True)
    shot = Shot("GAP", "seen", MEAN, 0)
    pixels = patched.made_patches(NAMES[1], "shapes", seeds=1)[shot]
    view = scenarios.deployed_views(NAMES[2], "shapes")
    for width in WIDTHS[:3]:  # the noise goes on from pass to pass: the same order as in the judging
        hit = predict(view[width], patched.shown(shot, pixels, now.images)) != now.labels
    counts = runs[NAMES[2]].right[WIDTHS.index(5)]
    expected = float(hit[counts].float().mean()) - attackers.met(runs[NAMES[2]], attackers.ALL, "GAP", "seen", 5).rate
    case = rows[(rows.attack == "GAP") & (rows.target_bits == 5)].set_index("compared").value
    assert case["borrowed patches"] == pytest.approx(expected, nan_ok=True)


def test_adaptive_patches_on_the_undefended_network(made):
    rows = made[2].adaptive_rows(12, 6).set_index(["made_at", "compared", "target_bits"]).value
    assert {name for name, compared, _ in rows.index if compared == "success"} == {"float", "own", "all", "adaptive"}
    for width in WIDTHS:
        gain = rows["adaptive", "success", width] - rows["own", "success", width]
        assert rows["adaptive", "gain over own", width] == pytest.approx(gain, nan_ok=True)
    assert rows["float", "success", 32] == pytest.approx(rows["own", "success", 32], nan_ok=True), "the same attack"


# ------------------------------------------------------------------------------------------------ pictures


def rates(**columns) -> pd.DataFrame:
    rows = [{"attack": attack, "defense": defense, "who": who, "target_bits": bits, "value": 0.5, "low": 0.4, "high": 0.6}
            for attack in ("LaVAN", "GAP") for defense in ("a", "b") for who in ("x", "y") for bits in (*WIDTHS, 0)]  # fmt: skip
    return pd.DataFrame(rows).assign(control=0.1, **columns)


def test_success_by_width_has_a_panel_per_defense_and_attack():
    paper = pd.DataFrame({"attack": ["GAP"], "defense": ["b"], "target_bits": [2], "value": [0.7]})
    figure = patch_plots.by_width(rates(), "who", "defense", "attack", control="control", published=paper)
    assert len(figure.axes) == 4 and [t.get_text() for t in figure.axes[-1].get_xticklabels()][-1] == "drawn"
    diamonds = [len(line.get_xdata()) for ax in figure.axes for line in ax.lines if line.get_marker() == "D"]
    assert diamonds == [0, 0, 0, 1]
    plt.close(figure)


def test_rate_maps_write_every_rate_and_leave_gaps_empty():
    frame = rates().rename(columns={"value": "asr"}).query("attack == 'GAP' and not (defense == 'b' and who == 'y')")
    figure = patch_plots.rate_maps(frame, "defense", "who")
    assert [len(ax.texts) for ax in figure.axes[:2]] == [12, 6] and figure.axes[0].texts[0].get_text() == "50"
    plt.close(figure)


def test_effects_show_the_gap_between_trainings_and_the_bound():
    frame = rates(gap=0.02).query("target_bits == 2")
    figure = patch_plots.effects(frame, "attack", "who", "defense", gap="gap", bounds=[0.25], xlabel="points")
    for ax in figure.axes:
        (band,) = ax.patches
        assert band.get_x() == pytest.approx(-0.04) and band.get_width() == pytest.approx(0.08)
        assert any(np.allclose(line.get_xdata(), 0.25) for line in ax.lines)
    plt.close(figure)


def test_the_training_tape_draws_one_square_per_iteration(made):
    steps = pd.DataFrame({"network": "qadtr", "step": [0, 0, 1, 1], "number": [0, 1, 0, 1], "width": [32, 8, 8, 4],
                          "role": ["attacked", "trained"] * 2, "loss": [1.0, 1.0, 2.0, 2.0]})  # fmt: skip
    figure = patch_plots.training_tape(steps, {"qadtr": "QADT-R"})
    assert len(figure.axes[1].patches) == 2
    plt.close(figure)


@pytest.mark.parametrize("draw", [
    lambda frame: patch_plots.by_width(frame, "who", "defense"), lambda frame: patch_plots.rate_maps(frame, "defense", "who"),
    lambda frame: patch_plots.effects(frame, "who", "who", "defense", xlabel=""), lambda frame: patch_plots.training_tape(frame, {}),
])  # fmt: skip
def test_an_empty_table_is_refused(draw):
    with pytest.raises(InputError, match="no rows to draw"):
        draw(rates().iloc[:0])
