"""Stored runs of the train-time defenses: rows counted by hand, and what ships is what the networks say today."""

import pytest
import torch

from qpatch import data, measure, store, zoo
from qpatch.errors import DataError, ParameterError
from qpatch.zoo import defense_runs

RIGHT = torch.tensor([0, 1, 2, 3])


def test_success_rows_count_by_hand():
    run = {
        "label": RIGHT,
        "clean|0|int8": torch.tensor([0, 1, 2, 0]),  # the last image does not count
        "own float|0.1|int8": torch.tensor([0, 9, 9, 3]),
        "random|0.1|int8": torch.tensor([9, 1, 2, 3]),
        "Square|0.2|int8": torch.tensor([9, 9]),  # saw the first two images only
        "distance|nearest|int8": torch.rand(4),
    }
    rows = zoo.success_rows("PGD", run, "shapes").set_index("source")
    own, asked = rows.loc["own float"], rows.loc["Square"]
    assert own.n == 3 and own.asr == pytest.approx(2 / 3) and own.asr_noise == pytest.approx(1 / 3)
    assert own.accuracy == pytest.approx(2 / 4) and own.clean_accuracy == pytest.approx(3 / 4)
    assert asked.n == 2 and asked.asr == 1 and asked.images == 2 and asked.asr_noise != asked.asr_noise
    assert set(rows.defense) == {"PGD"} and set(rows.index) == {"own float", "Square"}


def test_distance_rows_pair_each_image_with_the_undefended_network():
    runs = {
        "none": {"distance|nearest|float": torch.tensor([1.0, 2.0, float("nan"), 4.0])},
        "PGD": {"distance|nearest|float": torch.tensor([2.0, 4.0, 5.0, 8.0]), "label": RIGHT},
    }
    rows = zoo.distance_rows(runs, "shapes").set_index("defense")
    assert rows.ratio["PGD"] == 2 and rows.n["PGD"] == 3 and rows.ratio["none"] == 1
    assert rows.distance["PGD"] == 4.0


def test_an_unknown_defense_is_refused():
    with pytest.raises(ParameterError, match="distillation"):
        zoo.load_defense_run("distilation")


@pytest.mark.parametrize("defense", list(defense_runs.NETWORKS))
def test_what_ships_is_what_the_network_says(defense):
    path = defense_runs.FOLDER / f"{defense.lower()}.safetensors"
    run, card = store.load_tensors(path)
    assert card["plan"]["images"] == len(run["label"]) == 520 and card["defense"] == defense
    try:
        test = data.load("cifar10", "test")
    except DataError as error:
        pytest.skip(f"CIFAR-10 is not to be had: {error}")
    chosen = zoo.evaluation_subset(test)
    images, labels = test.take(chosen[torch.linspace(0, len(chosen) - 1, 520).long()][:100])
    assert torch.equal(labels, run["label"][:100])
    net = zoo.load(defense_runs.NETWORKS[defense]).at(32)
    assert (measure.predict(net, images) == run["clean|0|float"][:100]).float().mean() >= 0.99
