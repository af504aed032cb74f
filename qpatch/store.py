"""A cache of artefacts, each under a key that is a hash of what made it.

An artefact is a set of tensors (safetensors) with a JSON card beside it. The card carries the sha256 of the tensor
file and is written last: whoever finds a card that fits has a whole artefact. Nothing here unpickles.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import pathlib
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import filelock
import pooch
import safetensors
import safetensors.torch
from torch import Tensor

from qpatch.errors import InputError, ParameterError, StoreError

SHA_FIELD = "tensors_sha256"
"""The field of a card that holds the sha256 of the tensor file."""


def cache_dir() -> pathlib.Path:
    """The folder of all cached artefacts: the environment variable QPATCH_CACHE, or the user's cache folder."""
    chosen = os.environ.get("QPATCH_CACHE")
    return pathlib.Path(chosen).expanduser() if chosen else pathlib.Path(pooch.os_cache("qpatch"))


def say(message: str) -> None:
    """Print one line for the user, apart from the results: it goes to the error stream."""
    print(f"qpatch: {message}", file=sys.stderr, flush=True)


def source_fingerprint(*sources) -> str:
    """Hash of the source code of modules, classes or functions, so that a key changes when they do.

    Raises:
        ParameterError: the source of one of them cannot be read.
    """
    digest = hashlib.sha256()
    for source in sources:
        try:
            text = textwrap.dedent(inspect.getsource(source))
        except (OSError, TypeError) as error:
            raise ParameterError(f"cannot read the source of {source!r}; pass a module, class or function.") from error
        name = getattr(source, "__qualname__", getattr(source, "__name__", ""))
        digest.update(f"{name}\0{text}\0".encode())
    return digest.hexdigest()


def tensors_fingerprint(tensors: dict[str, Tensor]) -> str:
    """Hash of named tensors' bytes, so that what is made from a network changes with its weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def key(**parts) -> str:
    """The sha256 of `parts` as canonical JSON: independent of their order, tuples equal to lists.

    Raises:
        ParameterError: a part is not made of dict with str keys, list, tuple, str, int, finite float, bool or None.
    """
    return hashlib.sha256(_canonical(parts).encode()).hexdigest()


def write_atomic(path: str | os.PathLike, content: bytes | str) -> None:
    """Write a file whole or not at all: to a temporary file beside it, then fsync, then rename.

    Raises:
        StoreError: the folder cannot be written or the disk is full; nothing half-written remains.
    """
    with _replacing(pathlib.Path(path)) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def save_tensors(path: str | os.PathLike, tensors: dict[str, Tensor], card: dict) -> None:
    """Write tensors to `path` (safetensors) and the card beside it (same stem, .json), each atomically.

    Views and tensors that share storage are stored as copies of what they show.

    Raises:
        InputError: `tensors` is not a dict of tensors, or the card is not JSON.
        StoreError: the folder cannot be written or the disk is full.
    """
    path = pathlib.Path(path)
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise InputError(f"artefact entry {name!r} must be a torch.Tensor, got {type(tensor).__name__}.")
    content = safetensors.torch.save({k: t.detach().cpu().contiguous().clone() for k, t in sorted(tensors.items())})
    full_card = {**card, SHA_FIELD: hashlib.sha256(content).hexdigest()}
    try:
        text = json.dumps(full_card, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise InputError(f"the card of {path.name} is not JSON: {error}.") from error
    write_atomic(path, content)
    write_atomic(path.with_suffix(".json"), text)


def load_tensors(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict]:
    """Read what `save_tensors` wrote, in the order of the names, after a check against the card's sha256.

    Raises:
        StoreError: a file is missing, half-written or damaged; the message says which.
    """
    path = pathlib.Path(path)
    card_path = path.with_suffix(".json")
    try:
        content, text = path.read_bytes(), card_path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise StoreError(f"{error.filename} is missing; an artefact is a tensor file with its card.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"cannot read {path} and its card: {error}.") from error
    try:
        card = json.loads(text)
        expected = card.pop(SHA_FIELD)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise StoreError(f"the card {card_path} is damaged; delete it and make the artefact again.") from error
    if hashlib.sha256(content).hexdigest() != expected:
        raise StoreError(f"{path} is damaged: its sha256 is not the one on its card; delete it and make it again.")
    try:
        return dict(sorted(safetensors.torch.load(content).items())), card  # the file keeps no order, but CSVs must repeat
    except safetensors.SafetensorError as error:
        raise StoreError(f"{path} is not a safetensors file: {error}.") from error


def fetch(
    kind: str, parts: dict, make: Callable[[], tuple[dict[str, Tensor], dict]]
) -> tuple[dict[str, Tensor], dict]:
    """The artefact of this kind and these parts: from the store, or made now, once, whatever the number of processes.

    Args:
        kind: the folder name, for instance "checkpoint".
        parts: everything that determines the artefact, see `key`; it is stored on the card as "parts".
        make: returns (tensors, card); called only if the artefact is not there whole.

    Returns:
        tensors and card, always as read back from the store.

    Raises:
        ParameterError: a part that is no JSON, or a kind that is not a folder name.
        StoreError: the folder cannot be written or the disk is full.
    """
    if kind == ".." or pathlib.PurePath(kind).name != kind or not kind:
        raise ParameterError(f"the kind of an artefact must be a plain folder name, got {kind!r}.")
    path = cache_dir() / kind / f"{key(**parts)}.safetensors"
    try:
        return load_tensors(path)  # without the lock, so that a read-only store serves
    except StoreError:
        pass
    with locked(path.with_suffix(".lock")):
        if path.exists() or path.with_suffix(".json").exists():  # another process may just have made it
            try:
                return load_tensors(path)
            except StoreError as error:
                say(f"{error} It is being made again.")
        remove_leftovers(path.parent, path.stem)
        tensors, card = make()
        save_tensors(path, tensors, {**card, "parts": json.loads(_canonical(parts))})
        return load_tensors(path)


@contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
    """Hold the lock file at `path`; the operating system frees it when its holder dies.

    Raises:
        StoreError: the folder cannot be written.
    """
    with writing_to(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def remove_leftovers(folder: pathlib.Path, stem: str = "") -> None:
    """Remove the temporary files that a killed process left; for whoever holds the lock on what they would become."""
    for leftover in folder.glob(f".{stem}*.tmp"):
        leftover.unlink(missing_ok=True)


@contextmanager
def writing_to(folder: pathlib.Path) -> Iterator[None]:
    """Turn an OSError of the block into a StoreError that names the folder and the way out."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"cannot write to {folder}: {error.strerror or error}; free some space or permit writing there, "
            "or set QPATCH_CACHE to another folder."
        ) from error


def _canonical(parts: dict) -> str:
    _check_json(parts, "parts")
    return json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _check_json(value, where: str) -> None:
    """Refuse what JSON would change silently: int keys, NaN, NumPy numbers, tensors, sets, paths."""
    if isinstance(value, dict):
        for name, item in value.items():
            if type(name) is not str:
                raise ParameterError(f"{where} has the key {name!r}; the keys of a stored part must be str.")
            _check_json(item, f"{where}.{name}")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            _check_json(item, f"{where}[{i}]")
    elif isinstance(value, float) and not -float("inf") < value < float("inf"):
        raise ParameterError(f"{where} is {value}; a stored part must be finite.")
    elif type(value) not in (str, int, float, bool, type(None)):
        raise ParameterError(f"{where} is a {type(value).__name__}; use str, int, float, bool, None, list or dict.")


@contextmanager
def _replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield a temporary path; on success sync it and rename it to `path`, on failure remove it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing_to(path.parent):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
