"""The store: whole or not at all, noticed when damaged, made once."""

import errno
import json
import multiprocessing
import os
import pathlib

import pytest
import torch

from qpatch import store
from qpatch.errors import InputError, ParameterError, StoreError

TENSORS = {"weight": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(7)}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QPATCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_cache_dir_follows_the_environment(cache, monkeypatch):
    assert store.cache_dir() == cache
    monkeypatch.delenv("QPATCH_CACHE")
    assert store.cache_dir().name == "qpatch" and store.cache_dir() != cache


# ------------------------------------------------------------------------------------------------ keys


def test_key_is_the_sha256_of_canonical_json():
    # sha256 of the 27 bytes {"bits":[8,4],"name":"lsq"}, computed apart with sha256sum
    expected = "cdf53c9537fc4e9ab9b60b90673d51eca10937500f2eb662057ecb3527762b79"
    assert store.key(name="lsq", bits=[8, 4]) == expected
    assert store.key(bits=(8, 4), name="lsq") == expected


@pytest.mark.parametrize(
    "other", [{"a": 2}, {"a": 1.0}, {"a": True}, {"a": "1"}, {"b": 1}, {"a": [1]}, {"a": None}, {"a": 1, "b": None}]
)
def test_key_tells_parts_apart(other):
    assert store.key(**other) != store.key(a=1)


@pytest.mark.parametrize(
    "part",
    [
        *(float("nan"), float("inf"), {1: "int key"}, {1, 2}, b"bytes"),
        *(torch.tensor(1), torch.float32, pathlib.Path("x"), [{}, {"a": object}]),
    ],
)
def test_key_refuses_what_json_cannot_hold(part):
    with pytest.raises(ParameterError, match="part"):
        store.key(part=part)


def test_source_fingerprint_follows_the_source(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    seen = []
    for i, body in enumerate(["return 1", "return 1", "return 2"]):
        (tmp_path / f"recipe{i}.py").write_text(f"def train():\n    {body}\n")
        seen.append(store.source_fingerprint(__import__(f"recipe{i}").train))
    assert seen[0] == seen[1] != seen[2]
    assert store.source_fingerprint(store, store.key) != store.source_fingerprint(store.key, store)
    with pytest.raises(ParameterError, match="source"):
        store.source_fingerprint(len)


# ------------------------------------------------------------------------------------------------ files


def test_tensors_and_card_come_back(tmp_path):
    card = {"clean_accuracy": 0.5, "name": "Größe"}
    store.save_tensors(tmp_path / "a.safetensors", TENSORS, card)
    tensors, read = store.load_tensors(tmp_path / "a.safetensors")
    assert read == card
    assert tensors.keys() == TENSORS.keys() and all(torch.equal(tensors[k], TENSORS[k]) for k in TENSORS)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.json", "a.safetensors"]


def test_views_and_shared_storage_are_stored_as_seen(tmp_path):
    base = torch.arange(12.0).reshape(3, 4).requires_grad_()
    tensors = {"a": base.T, "b": base[1:], "c": base}
    store.save_tensors(tmp_path / "a.safetensors", tensors, {})
    read, _ = store.load_tensors(tmp_path / "a.safetensors")
    assert all(torch.equal(read[k], tensors[k]) for k in tensors)


def test_same_content_gives_the_same_bytes(tmp_path):
    store.save_tensors(tmp_path / "a.safetensors", TENSORS, {"x": 1})
    store.save_tensors(tmp_path / "b.safetensors", dict(reversed(TENSORS.items())), {"x": 1})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


@pytest.mark.parametrize(
    ("tensors", "card"), [({"a": [1.0]}, {}), (TENSORS, {"a": torch.ones(1)}), (TENSORS, {"a": float("nan")})]
)
def test_what_cannot_be_stored_is_refused_before_writing(tmp_path, tensors, card):
    with pytest.raises(InputError):
        store.save_tensors(tmp_path / "a.safetensors", tensors, card)
    assert not list(tmp_path.iterdir())


def truncate(path):
    path.write_bytes(path.read_bytes()[:-5])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def wrong_sha(path):
    card = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({**card, store.SHA_FIELD: "0" * 64}))


def no_sha(path):
    path.with_suffix(".json").write_text("{}")


def half_a_card(path):
    truncate(path.with_suffix(".json"))


def no_card(path):
    path.with_suffix(".json").unlink()


def no_tensors(path):
    path.unlink()


DAMAGES = [truncate, flip_a_bit, wrong_sha, no_sha, half_a_card, no_card, no_tensors]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_noticed(tmp_path, damage):
    path = tmp_path / "a.safetensors"
    store.save_tensors(path, TENSORS, {"x": 1})
    damage(path)
    with pytest.raises(StoreError, match=r"damaged|missing"):
        store.load_tensors(path)


def test_crash_before_the_rename_leaves_the_old_file(tmp_path, monkeypatch):
    store.write_atomic(tmp_path / "a.txt", "old")

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        store.write_atomic(tmp_path / "a.txt", "new")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.txt", "old")]


def test_full_disk_is_explained_and_leaves_nothing(tmp_path, monkeypatch):
    def full(self, content):
        with open(self, "wb") as file:
            file.write(content[:1])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    with pytest.raises(StoreError, match=rf"{tmp_path}.*[Nn]o space.*QPATCH_CACHE"):
        store.save_tensors(tmp_path / "a.safetensors", TENSORS, {})
    assert not list(tmp_path.iterdir())


def test_unwritable_folder_is_explained(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("a file where a folder should be")
    with pytest.raises(StoreError, match="cannot write to"):
        store.write_atomic(tmp_path / "file" / "a.txt", "x")
    monkeypatch.setenv("QPATCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(StoreError, match="QPATCH_CACHE"):
        store.fetch("checkpoint", {}, lambda: (TENSORS, {}))


# ------------------------------------------------------------------------------------------------ fetch


def test_fetch_makes_once_and_keeps_parts_apart(cache):
    made = []

    def make():
        made.append(1)
        return TENSORS, {"accuracy": 0.5}

    first, card = store.fetch("checkpoint", {"seed": 0}, make)
    again, _ = store.fetch("checkpoint", {"seed": 0}, make)
    assert len(made) == 1 and torch.equal(first["weight"], again["weight"])
    assert card == {"accuracy": 0.5, "parts": {"seed": 0}}
    store.fetch("checkpoint", {"seed": 1}, make)
    store.fetch("patch", {"seed": 0}, make)
    assert len(made) == 3


@pytest.mark.parametrize("damage", DAMAGES)
def test_fetch_makes_a_damaged_artefact_again_and_says_so(cache, capsys, damage):
    made = []

    def make():
        made.append(1)
        return TENSORS, {}

    store.fetch("checkpoint", {"seed": 0}, make)
    damage(cache / "checkpoint" / f"{store.key(seed=0)}.safetensors")
    tensors, _ = store.fetch("checkpoint", {"seed": 0}, make)
    assert len(made) == 2 and torch.equal(tensors["weight"], TENSORS["weight"])
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "made again" in said[0]
    store.fetch("checkpoint", {"seed": 0}, make)
    assert len(made) == 2


def test_fetch_clears_what_a_killed_process_left(cache):
    left = cache / "checkpoint" / f".{store.key(seed=0)}.safetensors.99999.tmp"
    left.parent.mkdir(parents=True)
    left.write_text("half")
    store.fetch("checkpoint", {"seed": 0}, lambda: (TENSORS, {}))
    assert not left.exists()


def test_failed_make_stores_nothing_and_frees_the_lock(cache):
    def fail():
        raise RuntimeError("training diverged")

    with pytest.raises(RuntimeError, match="diverged"):
        store.fetch("checkpoint", {"seed": 0}, fail)
    assert store.fetch("checkpoint", {"seed": 0}, lambda: (TENSORS, {}))[1]["parts"] == {"seed": 0}


@pytest.mark.parametrize("kind", ["", "..", "a/b"])
def test_kind_must_be_a_folder_name(cache, kind):
    with pytest.raises(ParameterError, match="kind"):
        store.fetch(kind, {}, lambda: (TENSORS, {}))


def fetch_in_a_process(made: str, start, results):
    def make():
        with open(made, "a") as file:
            file.write("made\n")
        return {"draw": torch.rand(3, generator=torch.Generator().manual_seed(os.getpid()))}, {}

    start.wait()
    results.put(store.fetch("checkpoint", {"seed": 0}, make)[0]["draw"].tolist())


def test_two_processes_that_want_the_same_make_it_once(cache, tmp_path):
    context = multiprocessing.get_context("fork")  # no second import of torch
    start, results = context.Barrier(2), context.Queue()
    task = (str(tmp_path / "made"), start, results)
    workers = [context.Process(target=fetch_in_a_process, args=task) for _ in range(2)]
    for worker in workers:
        worker.start()
    drawn = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert (tmp_path / "made").read_text() == "made\n"
    assert drawn[0] == drawn[1]


def test_tensors_fingerprint_sees_names_values_types_and_shapes_but_not_order():
    one, two = torch.arange(4.0), torch.ones(2)
    base = store.tensors_fingerprint({"a": one, "b": two})
    assert base == store.tensors_fingerprint({"b": two, "a": one})
    changed = [{"a": one + 1, "b": two}, {"a": one, "c": two}, {"a": one.view(2, 2), "b": two}, {"a": one.int(), "b": two}]
    assert base not in [store.tensors_fingerprint(tensors) for tensors in changed]


def test_names_come_in_order(tmp_path):
    names = [f"{letter}{number}" for letter in "zqa" for number in (9, 10, 1)]
    store.save_tensors(tmp_path / "a.safetensors", {name: torch.zeros(1) for name in names}, {})
    assert list(store.load_tensors(tmp_path / "a.safetensors")[0]) == sorted(names)
