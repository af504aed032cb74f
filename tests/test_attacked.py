"""Attack runs as artefacts: what a row says, that an interrupted run goes on, and that what ships is whole."""

import dataclasses

import pytest
import torch

from qpatch import data, store
from qpatch.attacks import pixel
from qpatch.errors import DataError, ParameterError, StoreError
from qpatch.measure import predict
from qpatch.measure.distortion import NORMS, distortion
from qpatch.zoo import attacked, networks
from qpatch.zoo.attacked import AttackEntry, Target, load_attacked, load_examples, ship
from qpatch.zoo.deployed import PRECISIONS
from untrained import untrained_target

SHORT = {"ZOO": {"binary_steps": 1, "steps": 2, "coordinates": 16}, "DeepFool": {"steps": 5}}


@pytest.fixture(scope="module")
def aim():
    return untrained_target()


@pytest.fixture(autouse=True)
def small_world(aim, tmp_path, monkeypatch):
    """Random weights in place of the zoo's, empty folders, short attacks."""
    monkeypatch.setenv("QPATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(attacked, "FOLDER", tmp_path / "attacked")
    monkeypatch.setattr(attacked, "target", lambda task, retrain=False: aim)
    monkeypatch.setattr(attacked, "SMOKE", SHORT)


def images_of(n):
    return data.load("shapes", "test").take(slice(0, n))


def test_a_gradient_run_says_who_is_fooled_and_by_how_much(aim):
    entry = AttackEntry("DeepFool", "int8", "shapes", images=6)
    frame = load_attacked(entry)
    images, labels = images_of(6)
    made = pixel.attack("DeepFool", aim.logits("int8"), images, labels, **SHORT["DeepFool"])
    assert frame["image"].tolist() == list(range(6)) and frame["label"].tolist() == labels.tolist()
    for precision in PRECISIONS:
        judge = aim.scores(precision)
        assert frame[f"clean_{precision}"].tolist() == predict(judge, images).tolist()
        assert frame[f"adv_{precision}"].tolist() == predict(judge, made).tolist()
        norms = distortion(images, made, judge)
        for norm in NORMS:
            assert frame[f"{norm}_{precision}"].tolist() == pytest.approx(norms[norm].tolist(), rel=1e-5)
    assert (frame["queries"] == 0).all() and not frame.isna().any(axis=None)
    examples = load_examples(entry)
    assert examples.shape == (4, 3, 32, 32) and float((examples - made[:4]).abs().max()) < 1e-5


def test_a_query_run_asks_the_integers_and_counts(aim):
    frame = load_attacked(AttackEntry("ZOO", "int8", "shapes", images=2))
    images, labels = images_of(2)
    integers = aim.scores("int8")
    pixel.attack("ZOO", integers, images, labels, **SHORT["ZOO"])
    assert frame["queries"].sum() == integers.queries and (frame["queries"] > 33).all()
    assert (frame["l2_int8"] == 0).all(), "a probe below the input step cannot move an int8 network"


def test_an_interrupted_run_goes_on_and_a_longer_one_adds_to_it(monkeypatch):
    monkeypatch.setattr(attacked, "_ONE_BY_ONE", 1)
    calls, attack = [], pixel.attack

    def counted(name, net, images, labels, *args, **options):
        calls.append(len(images))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return attack(name, net, images, labels, *args, **options)

    monkeypatch.setattr(pixel, "attack", counted)
    entry = AttackEntry("ZOO", "float", "shapes", images=2)
    with pytest.raises(KeyboardInterrupt):
        load_attacked(entry)
    lines = []
    frame = load_attacked(entry, progress=lines.append)
    assert calls == [1, 1, 1] and len(lines) == 2 and "images 1 to 2 of 2" in lines[1]
    longer = load_attacked(dataclasses.replace(entry, images=3))
    assert calls == [1] * 4 and longer[:2].equals(frame)


def test_another_network_is_another_run(aim):
    entry = AttackEntry("DeepFool", "float", "shapes", images=1)
    other = Target(aim.float, aim.files | {"int8": aim.files["int16"]})
    assert store.key(**attacked._key(entry, aim, 0, 1)) != store.key(**attacked._key(entry, other, 0, 1))


def test_a_shipped_run_is_loaded_without_the_network_and_by_its_first_images(monkeypatch):
    entry = AttackEntry("DeepFool", "float", "shapes", images=4)
    ship(entry, None)
    card = attacked.card(entry)
    assert card["parameters"] == {"overshoot": 0.008, "steps": 5} and card["not_as_published"] == {"steps": 5}
    for name in ("seconds", "threads", "versions", "commit", "fingerprints", "library", "data"):
        assert name in card
    whole = load_attacked(entry)
    monkeypatch.setattr(attacked, "target", lambda *_: pytest.fail("the network was made"))
    assert load_attacked(dataclasses.replace(entry, images=2)).equals(whole[:2])


def test_a_row_can_be_made_again():
    entry = AttackEntry("ZOO", "float", "shapes", images=2)
    assert attacked.remake(entry, 1).equals(load_attacked(entry)[1:].reset_index(drop=True))


def test_a_damaged_run_is_named():
    entry = AttackEntry("DeepFool", "float", "shapes", images=1)
    ship(entry, None)
    entry.path.write_bytes(entry.path.read_bytes()[:-1])
    with pytest.raises(StoreError, match="deepfool-float.safetensors is damaged"):
        load_attacked(entry)


def test_the_control_has_the_norms_of_the_attack_and_another_place():
    images = torch.full((3, 3, 8, 8), 0.5)
    noise = torch.zeros_like(images)
    noise[:, 0, :2, :2] = torch.tensor([[0.1, -0.2], [0.05, 0.3]])
    control = attacked.shuffle_noise(images, images + noise, seed=1)
    expected, got = distortion(images, images + noise), distortion(images, control)
    assert all(got[norm].tolist() == pytest.approx(expected[norm].tolist(), rel=1e-5) for norm in NORMS)
    assert not torch.equal(control[0], control[1])
    assert torch.equal(control[1:], attacked.shuffle_noise(images[1:], (images + noise)[1:], seed=2))


def test_unknown_runs_are_refused():
    with pytest.raises(ParameterError, match="Did you mean 'DeepFool'"):
        AttackEntry("Deepfool")
    with pytest.raises(ParameterError, match="unknown precision"):
        AttackEntry("PGD", "int4")
    with pytest.raises(ParameterError, match="PGD has no variant"):
        AttackEntry("PGD", variant="int8 step")
    with pytest.raises(ParameterError, match="unknown task"):
        AttackEntry("PGD", task="cifar")


def test_every_run_has_a_file_of_its_own():
    entries = [entry for task in ("cifar10", "coffee") for entry in attacked.shipped_entries(task)]
    assert len({entry.path for entry in entries}) == len(entries) == (12 * 3 + 4) + 6 * 2
    assert {entry.n for entry in entries} == {500, 100}


# What ships ---------------------------------------------------------------------------------------------------------

SHIPPED = [path for task in ("cifar10", "coffee") for path in sorted((attacked.FOLDER / task).glob("*.safetensors"))]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_shipped_run_is_whole_and_belongs_to_the_shipped_network(path):
    tensors, card = store.load_tensors(path)
    task = card["entry"]["task"]
    assert path.name == AttackEntry(**card["entry"]).path.name
    assert len(tensors["image"]) == card["entry"]["images"] == dataclasses.replace(AttackEntry(**card["entry"]), images=None).n
    net = networks.load(card["network"]).at(32)
    assert card["fingerprints"]["float"] == store.tensors_fingerprint(net.state_dict())
    try:
        test = data.load(task, "test")
    except DataError as error:
        pytest.skip(str(error))
    assert card["data"] == test.fingerprint and tensors["label"].tolist() == test.labels[: len(tensors["label"])].tolist()
