"""Saving figures and tables, pooling over seeds, numbers as text, pictures, and displayed source."""

from __future__ import annotations

import hashlib
import json
from math import hypot, nan, sqrt
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from qpatch.errors import InputError, ParameterError, StoreError
from qpatch.measure.stats import wilson
from qpatch.report import figures, plots, show, style, tables, text
from qpatch.report.pool import Estimate, difference, pool_seeds, pool_table

matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402  after the backend is chosen


@pytest.fixture
def run(tmp_path):
    return SimpleNamespace(name="20_example", profile="smoke", parameters={"n": np.int64(5), "bits": (32, 2)},
                           versions={"python": "3.11"}, figures=tmp_path)


@pytest.fixture
def frame():
    return pd.DataFrame({"bits": [32, 2], "asr": [0.25, 1 / 3], "name": ["a & b", "50 % → ≥ ε"]})


def small_figure():
    fig, ax = plt.subplots(figsize=(2, 1.5))
    ax.plot([0, 1], [0, 1])
    return fig


def transfer(seeds=(0, 1, 2), training=("ptq", "joint"), rate=0.5):
    rows = [
        {"training": t, "source_bits": s, "target_bits": b, "seed": seed, "n": 400, "asr": rate + 0.05 * seed}
        for t in training for s in (32, 2) for b in (32, 2) for seed in seeds
    ]
    frame = pd.DataFrame(rows)
    return frame.assign(ci_low=frame["asr"] - 0.05, ci_high=frame["asr"] + 0.05)


# ------------------------------------------------------------------------------------------------ text and tables


def test_numbers_as_text():
    assert text.percent(0.7308) == "73.1 %" and text.percent(None) == text.percent(nan) == "–"
    assert text.interval(0.71, 0.75, digits=0) == "71–75 %" and text.interval(nan, 0.5) == "–"
    assert text.points(-0.1) == "−10.0 points" and text.points(0.024) == "+2.4 points"
    assert text.rate(0.5, 0.4, 0.6, 1000) == "50.0 % (40.0–60.0 %, n = 1,000)"
    assert text.span([0.5, 0.5004]) == "50.0 %" and text.span([0.2, 0.4]) == "20.0–40.0 %"
    assert text.listing(["a"]) == "a" and text.listing("abc") == "a, b and c"
    assert text.exactly(0.7) == "70 %" and text.exactly(1.5, "number") == "1.5"


def test_csv_has_a_fixed_float_format(frame):
    assert tables.csv_text(frame) == "bits,asr,name\n32,0.25,a & b\n2,0.333333,50 % → ≥ ε\n"


def test_latex_escapes_everything_that_latex_reads(frame):
    latex = tables.latex_table(frame, "Rate_1 of 50 %", "example")
    assert r"50 \% $\to$ $\ge$ $\varepsilon$" in latex and r"a \& b" in latex and r"\caption{Rate\_1 of 50 \%}" in latex
    assert r"\begin{tabular}{rrl}" in latex and latex.index(r"\toprule") < latex.index(r"\midrule")
    assert latex.isascii()


def test_html_escapes_and_stands_alone(frame):
    page = tables.html_page("t <1>", tables.html_table(frame.assign(name="<b>&"), "cap"))
    assert "&lt;b&gt;&amp;" in page and "<title>t &lt;1&gt;</title>" in page and "://" not in page


# ------------------------------------------------------------------------------------------------ saving


def test_saved_files_are_the_same_bytes_each_time(run, frame, tmp_path):
    def save(folder):
        run.figures = tmp_path / folder
        figures.save_figure(run, "picture", small_figure(), caption="A line.")
        figures.save_table(run, "table", frame, caption="Rates.", key=["bits"], bands={"asr": 0.05})
        return {path.name: path.read_bytes() for path in run.figures.iterdir()}

    first, second = save("one"), save("two")
    assert set(first) == {f"picture.{ending}" for ending in ("png", "svg", "json")} | {
        f"table.{ending}" for ending in ("csv", "tex", "html", "json")}
    assert first == second


def test_sidecar_says_where_files_come_from(run, frame):
    figures.save_table(run, "table", frame, caption="Rates.", key=["bits"], bands={"asr": 0.05},
                       fingerprints={"d": "ab"})
    sidecar = json.loads((run.figures / "table.json").read_text())
    assert sidecar["notebook"] == "20_example" and sidecar["profile"] == "smoke"
    assert sidecar["parameters"] == {"n": 5, "bits": [32, 2]} and sidecar["versions"] == {"python": "3.11"}
    assert sidecar["key"] == ["bits"] and sidecar["bands"] == {"asr": 0.05}
    assert sidecar["table"]["rows"] == 2 and sidecar["table"]["fingerprints"] == {"d": "ab"}
    for ending, digest in sidecar["table"]["files"].items():
        assert hashlib.sha256((run.figures / f"table.{ending}").read_bytes()).hexdigest() == digest


def test_a_figure_and_a_table_of_one_name_share_the_sidecar(run, frame):
    def sections():
        return set(json.loads((run.figures / "both.json").read_text())) & {"figure", "table", "key", "bands"}

    figures.save_table(run, "both", frame, caption="Rates.", key=["bits"], bands={"asr": 0.05})
    figures.save_figure(run, "both", small_figure(), caption="A line.")
    assert sections() == {"figure", "table", "key", "bands"}
    run.parameters = {"n": 6}  # another run: what it did not write is no longer vouched for
    figures.save_figure(run, "both", small_figure(), caption="A line.")
    assert sections() == {"figure"}
    figures.save_figure(run, "both", small_figure(), caption="A line.", data=frame)
    assert sections() == {"figure", "table", "key", "bands"} and (run.figures / "both.csv").exists()


def test_large_pictures_are_brought_under_the_limit(run):
    fig, ax = plt.subplots(figsize=(6, 6))
    ax.imshow(np.random.default_rng(0).random((60, 60)), interpolation="bicubic", cmap="viridis")
    figures.save_figure(run, "noise", fig, caption="Noise.")
    assert 20_000 < (run.figures / "noise.png").stat().st_size <= figures.MAX_PNG_BYTES
    assert Image.open(run.figures / "noise.png").size[0] >= 450
    assert not plt.fignum_exists(fig.number)


@pytest.mark.parametrize("options, message", [
    ({"key": ["nothing"]}, "key names columns that the table lacks: nothing"),
    ({"bands": {"nothing": 1}}, "bands names columns"),
    ({"show": ["nothing"]}, "show names columns"),
])
def test_unknown_columns_are_refused(run, frame, options, message):
    with pytest.raises(InputError, match=message):
        figures.save_table(run, "table", frame, caption="c", **options)
    assert not list(run.figures.iterdir())


def test_bad_names_keys_and_folders_are_refused(run, frame, tmp_path):
    with pytest.raises(ParameterError, match="cannot name a figure"):
        figures.save_table(run, "../table", frame, caption="c")
    with pytest.raises(InputError, match="does not identify"):
        figures.save_table(run, "table", frame.assign(bits=32), caption="c", key=["bits"])
    (tmp_path / "file").write_text("")
    run.figures = tmp_path / "file"
    with pytest.raises(StoreError):
        figures.save_table(run, "table", frame, caption="c")


# ------------------------------------------------------------------------------------------------ pooling


def test_one_seed_gives_its_own_interval():
    rows = pd.DataFrame({"seed": [0], "n": [200], "asr": [0.3]})
    estimate = pool_seeds(rows, "asr")
    assert (estimate.low, estimate.high) == pytest.approx(wilson(60, 200)) and estimate.n == 200


def test_seeds_widen_the_interval_by_students_t_and_images_count_once():
    rows = pd.DataFrame({"seed": [0, 1, 2], "n": 400, "asr": [0.4, 0.5, 0.6]}).assign(low=lambda f: f.asr - 0.05,
                                                                                     high=lambda f: f.asr + 0.05)
    estimate = pool_seeds(rows, "asr", ("low", "high"))
    spread = 4.302653 * 0.1 / sqrt(3)  # Student's t for 2 degrees of freedom, standard deviation 0.1
    assert estimate.value == pytest.approx(0.5) and estimate.n == 1200 and estimate.seeds == 3
    assert estimate.low == pytest.approx(0.5 - hypot(0.05, spread), abs=1e-6)
    same = pool_seeds(rows.assign(asr=0.5, low=0.45, high=0.55), "asr", ("low", "high"))
    assert (same.low, same.high) == pytest.approx((0.45, 0.55)), "equal seeds must not shrink the images' part"


def test_limits_of_a_share_stay_in_the_unit_interval():
    estimate = pool_seeds(pd.DataFrame({"seed": [0, 1], "n": 50, "asr": [0.9, 1.0]}), "asr")
    assert 0 <= estimate.low < estimate.high == 1


def test_rows_of_two_experiments_are_not_pooled():
    rows = pd.DataFrame({"seed": [0, 0], "attack": ["GAP", "LaVAN"], "n": 10, "asr": 0.5})
    with pytest.raises(InputError, match="differ in attack"):
        pool_seeds(rows, "asr")
    with pytest.raises(InputError, match="no column asr"):
        pool_seeds(rows.drop(columns="asr"), "asr")


def test_difference_pairs_equal_seeds():
    first = Estimate(0.6, 0.03, 0.03, 100, {0: 0.5, 1: 0.7})
    second = Estimate(0.4, 0.04, 0.04, 100, {0: 0.3, 1: 0.5})
    paired = difference(first, second)
    assert paired.value == pytest.approx(0.2) and paired.low == pytest.approx(0.2 - 0.05), "seeds differ by the same"
    other = difference(first, Estimate(0.4, 0.04, 0.04, 100, {0: 0.3, 7: 0.5}))
    assert other.low == pytest.approx(0.2 - hypot(0.03, 0.04, first.spread, first.spread))
    assert difference(first, Estimate(0.1)).low == pytest.approx(0.5 - hypot(0.03, first.spread))


def test_pool_table_keeps_its_keys():
    pooled = pool_table(transfer(), ["training", "target_bits", "source_bits"])
    assert len(pooled) == 8 and pooled["value"].tolist() == pytest.approx([0.55] * 8) and set(pooled["seeds"]) == {3}


# ------------------------------------------------------------------------------------------------ style and pictures


def test_bit_widths_can_be_told_apart_in_grey_and_by_marker():
    rgb = np.array([matplotlib.colors.to_rgb(color) for color in style.BIT_COLORS.values()])
    grey = rgb @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(grey) > 0.03).all(), "lightness must grow as precision falls"
    assert len(set(style.BIT_MARKERS.values())) == len(style.BIT_MARKERS) == len(style.BIT_COLORS)
    with pytest.raises(ParameterError, match="bit-width 3"):
        style.bit_color(3)


def test_heat_map_writes_rate_and_interval_into_the_right_cells():
    frame = transfer()
    frame.loc[(frame.training == "joint") & (frame.source_bits == 32) & (frame.target_bits == 2), "asr"] = 0.91
    fig = plots.transfer_heatmaps(frame, "training")
    left, right = fig.axes[:2]
    assert left.get_title() == "ptq" and [t.get_text() for t in left.get_xticklabels()] == ["float", "2-bit"]
    texts = {tuple(round(v) for v in t.get_position()): t.get_text() for t in right.texts if "–" not in t.get_text()}
    assert texts[(1, 0)] == "91" and texts[(0, 0)] == "55"
    with pytest.raises(InputError, match="no rows"):
        plots.transfer_heatmaps(frame.iloc[:0], "training")
    plt.close(fig)


def test_forest_draws_ours_and_the_papers_value():
    frame = pd.DataFrame({"line": ["a", "b"], "value": [0.5, 0.6], "low": [0.4, 0.5], "high": [0.6, 0.7]})
    frame["paper"] = [0.73, nan]
    fig = plots.forest(frame, "line", published="paper", threshold=0.7)
    marks = [line for line in fig.axes[0].lines if line.get_marker() == "D"]
    assert [float(m.get_xdata()[0]) for m in marks] == [0.73] and marks[0].get_markerfacecolor() == "none"
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["a", "b"]
    plt.close(fig)


def test_images_are_drawn_pixel_by_pixel_and_checked():
    fig = plots.show_images(torch.rand(3, 3, 6, 6), ["a", "b", "c"], wrong=[False, True, False])
    drawn = fig.axes[0].images[0]
    assert drawn.get_interpolation() == "nearest" and drawn.get_array().shape == (6, 6, 3)
    assert [ax.get_title() for ax in fig.axes] == ["a", "✘ b", "c"]
    with pytest.raises(InputError, match="as many titles"):
        plots.show_images(torch.rand(3, 3, 6, 6), ["a"])
    with pytest.raises(InputError, match="lie in"):
        plots.show_images(torch.rand(1, 3, 6, 6) * 255)
    plt.close(fig)


# ------------------------------------------------------------------------------------------------ showing source


def test_source_is_shown_without_docstrings():
    name, code = show.source_of(difference)
    assert name == "qpatch.report.pool.difference"
    assert code.startswith("def difference(first: Estimate") and '"""' not in code and "paired = {" in code
    assert '"""' in show.source_of(difference, docstring=True)[1]
    compile(show.source_of(Estimate)[1], "shown", "exec")


def test_part_of_a_source():
    assert show.source_of(Estimate, "low")[1].startswith("@property\ndef low")
    assert show.source_of(pool_seeds, "needed =")[1].startswith("def pool_seeds")
    with pytest.raises(ParameterError, match="no part 'nothing'"):
        show.source_of(Estimate, "nothing")
    with pytest.raises(ParameterError, match="no block"):
        show.source_of(difference, "nothing like this")
    with pytest.raises(ParameterError, match="no source to show"):
        show.source_of(3)


def test_sentences_take_exactly_their_numbers(capsys):
    show.say("It fools {share}.", share=text.percent(0.5))
    with pytest.raises(ParameterError, match="do not match: other, share"):
        show.say("It fools {share}.", other=1)

