"""The way to a device: prints, chains of success, agreement of networks, memory; all counted by hand."""

import math

import pandas as pd
import pytest
import timm
import torch
from PIL import Image

from qpatch import data
from qpatch.attacks import Patch
from qpatch.errors import InputError, ParameterError, StoreError
from qpatch.measure import device
from qpatch.quant import tflite
from qpatch.report import device_plots
from qpatch.zoo.printed import printed, printed_each, read_sheet, save_sheet

LABELS = torch.tensor([0, 0, 1, 1])


def one_hot(*classes: int) -> torch.Tensor:
    return torch.eye(3)[list(classes)]


def test_a_print_is_the_nearest_byte():
    pixels = torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(0))
    patch = Patch(pixels, torch.ones(1, 5, 4), None, {"attack": "none"})
    assert torch.equal(printed(patch).pixels, (pixels * 255).round() / 255)
    assert torch.equal(printed(printed(patch)).pixels, printed(patch).pixels)
    assert printed(patch).made_on == {"attack": "none"}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [1, 4, 7])
def test_sheets_keep_order_and_pixels(tmp_path, channels, count):
    pixels = torch.rand(count, channels, 6, 5, generator=torch.Generator().manual_seed(1))
    path = save_sheet(pixels, tmp_path / "sheet.png", columns=4)
    with Image.open(path) as picture:
        assert picture.size == (4 * 5, math.ceil(count / 4) * 6)
    expected = (pixels * 255).round() / 255
    assert torch.equal(read_sheet(path, count, (6, 5)), expected) and torch.equal(printed_each(pixels), expected)


def test_sheets_refuse_other_pictures(tmp_path):
    path = save_sheet(torch.rand(3, 3, 6, 6), tmp_path / "sheet.png", columns=3)
    with pytest.raises(InputError, match="no sheet"):
        read_sheet(path, 4, (6, 6))
    with pytest.raises(InputError, match="no sheet"):
        read_sheet(path, 1, (5, 6))
    with pytest.raises(StoreError, match="cannot read"):
        read_sheet(tmp_path / "none.png", 1, (6, 6))


def test_chain_is_judged_by_each_networks_own_clean_answers():
    given = {
        ("float", "clean"): one_hot(0, 0, 1, 1), ("float", "patch"): one_hot(1, 1, 1, 0),
        ("float", "noise"): one_hot(0, 0, 1, 0),
        ("int8", "clean"): one_hot(0, 2, 1, 1), ("int8", "patch"): one_hot(1, 1, 1, 1),
    }  # fmt: skip
    chain = [("first", "float", "patch"), ("second", "int8", "patch"), ("third", "absent", "patch")]
    rows = device.chain_rows(given, chain, LABELS, ["noise"])
    assert rows["step"].tolist() == ["first", "second"]
    assert rows["n"].tolist() == [4, 3] and rows["asr"].tolist() == pytest.approx([3 / 4, 1 / 3])
    assert rows["asr_noise"][0] == 0.25 and math.isnan(rows["asr_noise"][1])
    assert rows["error_rate"].tolist() == [0.75, 0.5]


def test_agreement_counts_classes_and_logits():
    other = one_hot(0, 0, 1, 1)
    other[1] = torch.tensor([0.5, 0.75, 0.0])
    given = {("a", "clean"): one_hot(0, 0, 1, 1), ("b", "clean"): other, ("a", "patch"): one_hot(0, 0, 0, 0)}
    (row,) = device.agreement_rows(given, [("a", "b")], ["clean", "patch"]).to_dict("records")
    assert row["shown"] == "clean" and row["value"] == 0.75 and row["differ"] == 1
    assert row["scores"] == 12 and row["unequal"] == 2 and row["largest"] == 0.75
    assert row["gap"] == pytest.approx(1.25 / 12)
    assert row["relative"] == pytest.approx(1.25 / 12 / float(one_hot(0, 0, 1, 1).std()))


def test_steps_are_compared_image_by_image():
    given = {("a", "clean"): one_hot(0, 0, 1, 2), ("b", "clean"): one_hot(0, 0, 1, 1),
             ("a", "p"): one_hot(1, 0, 0, 0), ("b", "p"): one_hot(1, 1, 1, 0)}  # fmt: skip
    chain = [("one", "a", "p"), ("two", "b", "p"), ("absent", "c", "p"), ("three", "b", "clean")]
    first, second = device.step_rows(given, chain, LABELS).to_dict("records")
    assert (first["before"], first["step"], first["n"], first["both"]) == ("one", "two", 3, 1)
    assert (first["only_before"], first["only_after"], first["change"]) == (1, 1, 0.0)
    assert first["high"] == pytest.approx(1.96 * 1.0 / math.sqrt(3))
    assert (second["before"], second["step"], second["n"]) == ("two", "three", 4)
    assert (second["only_before"], second["change"]) == (3, -0.75)


@pytest.fixture(scope="module")
def deployed() -> tuple[torch.nn.Module, bytes, torch.Tensor]:
    torch.manual_seed(0)
    net = timm.create_model("qpatch_resnet8_plain")
    images = data.load("shapes", "train", n=24).floats()
    with torch.no_grad():
        net.train()(images)
    return net.eval(), tflite.convert(net, images), images


def test_simulation_is_close_to_the_integers_and_not_equal(deployed):
    _, file, images = deployed
    network = tflite.network(file)
    given = device.answers({"fake": device.Simulation(file), "integers": network}, {"clean": images}, batch=10)
    step = network.graph.tensors[network.graph.scores].step
    (row,) = device.agreement_rows(given, [("fake", "integers")], ["clean"]).to_dict("records")
    assert row["scores"] == 240 and 0 < row["largest"] <= 4.01 * step
    assert torch.equal(given["integers", "clean"], network.logits(images))


def test_answers_refuse_sets_of_different_sizes(deployed):
    net, _, images = deployed
    with pytest.raises(InputError, match="differ in shape"):
        device.answers({"float": net}, {"clean": images, "patch": images[:3]})


def test_clipped_counts_the_highest_code(deployed):
    _, file, images = deployed
    rows = device.clipped_rows(file, {"calibration": images, "black": torch.zeros_like(images)}, batch=10)
    assert set(rows["shown"]) == {"calibration", "black"} and rows["share"].between(0, 1).all()
    seen = rows[rows["shown"] == "calibration"]
    assert (seen[seen["kind"] == "CONV_2D"]["share"] < 0.02).all()  # the range was taken from these very images
    integers = tflite.emulator.Integers(tflite.read(file))
    ends = tflite.network(file).ends
    last = integers(ends.relative(images))[integers.last] + tflite.read(file).tensors[integers.last].offset
    assert seen.iloc[-1]["share"] == pytest.approx(float((last == 127).float().mean()))


def test_memory_is_counted_in_bytes(deployed):
    net, file, images = deployed
    packed = device.memory_row(tflite.convert(net, images, weight_bits=4))
    plain = device.memory_row(file)
    convolutions = sum(m.weight.numel() for m in net.modules() if isinstance(m, torch.nn.Conv2d))
    assert plain["file"] == len(file) > plain["constants"] > convolutions
    assert plain["constants"] - packed["constants"] == convolutions // 2
    assert plain["needed"] == plain["constants"] and packed["needed"] == packed["constants"]
    codes = ([-1, 1], [0, 7], [-15, 3], [127])
    assert [device._bits_of(torch.tensor(some).numpy()) for some in codes] == [2, 4, 5, 8]
    if tflite.installed("tflm"):
        assert plain["activations"] >= 2 * 16 * 32 * 32  # two branches of the first block, one byte each
        assert device.memory_row(tflite.convert(net, images, "int16"))["activations"] > 1.8 * plain["activations"]
    else:
        assert math.isnan(plain["activations"])


def test_figures_are_drawn():
    rows = pd.DataFrame({"name": ["a", "a", "b"], "step": ["one", "two", "one"], "asr": [0.3, 0.4, 0.2],
                         "ci_low": [0.2, 0.3, 0.1], "ci_high": [0.4, 0.5, 0.3],
                         "control": [0.1, math.nan, 0.1]})  # fmt: skip
    figure = device_plots.chain(rows)
    assert [ax.get_title() for ax in figure.axes] == ["a", "b"]
    table = pd.DataFrame({"name": "a", "shown": ["clean", "patch"], "step": 0, "kind": "CONV_2D", "share": [0.1, 0.2]})
    assert len(device_plots.clipped(table).axes) == 1
    with pytest.raises(InputError, match="no rows"):
        device_plots.chain(rows[:0])


def test_unknown_forms_are_refused():
    from qpatch.zoo.device import Bench, deployment

    with pytest.raises(ParameterError, match="form"):
        deployment("tiny int9", "shapes")
    with pytest.raises(ParameterError, match="positive"):
        Bench("shapes", 0)
