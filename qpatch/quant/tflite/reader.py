"""From the bytes of a .tflite file, ours or anyone's, to a `Graph`. The file is the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from qpatch.errors import DataError, InputError
from qpatch.quant.tflite.graph import Graph, Op, Tensor, numpy_type
from qpatch.quant.tflite.options import decode
from qpatch.quant.tflite.schema import names, schema

IDENTIFIER = b"TFL3"


def content(source: bytes | str | Path) -> bytes:
    """The bytes of a .tflite, given as such or as the path of a file.

    Raises:
        DataError: no such file, or neither bytes nor a path.
    """
    if isinstance(source, (bytes, bytearray)):
        return bytes(source)
    if not isinstance(source, (str, Path)):
        raise DataError(f"a .tflite is given as bytes or as a path, got {type(source).__name__}.")
    path = Path(source)
    if not path.is_file():
        raise DataError(f"no .tflite file at {path}.")
    return path.read_bytes()


def read(source: bytes | str | Path) -> Graph:
    """The network in a .tflite file: an image classifier with one input 1×H×W×C and one output of class scores.

    Raises:
        DataError: not a .tflite, truncated or damaged, or it cannot be found.
        InputError: several subgraphs, inputs or outputs, a size that is not fixed, or no image classifier.
    """
    graph = parse(content(source))
    _check_classifier(graph)
    return graph


def model_of(data: bytes) -> Any:
    """The schema's object tree of a .tflite.

    Raises:
        DataError: not a .tflite, or damaged.
    """
    if len(data) < 16 or data[4:8] != IDENTIFIER:
        raise DataError("this is not a .tflite file: its identifier TFL3 is missing.")
    try:
        return schema().ModelT.InitFromObj(schema().Model.GetRootAsModel(data, 0))
    except Exception as error:  # the generated code raises whatever the damaged offset leads to
        raise _damaged() from error


def parse(data: bytes) -> Graph:
    """`read` without the checks that the network is a classifier of images."""
    model = model_of(data)
    try:
        count = len(model.subgraphs)
    except TypeError as error:
        raise _damaged() from error
    if count != 1:
        raise InputError(f"this .tflite has {count} subgraphs; qpatch reads networks with one.")
    (main,) = model.subgraphs
    for what, ends in (("input", main.inputs), ("output", main.outputs)):
        if ends is None or len(ends) != 1:
            number = 0 if ends is None else len(ends)
            raise InputError(f"this .tflite has {number} {what}s; qpatch reads classifiers with exactly one.")
    try:
        tensors = tuple(_tensor(entry, model.buffers) for entry in main.tensors)
        ops = tuple(_op(entry, model.operatorCodes) for entry in main.operators)
        graph = Graph(tensors, ops, int(main.inputs[0]), int(main.outputs[0]))
        for index in (graph.input, graph.output, *(i for op in ops for i in (*op.inputs, op.output))):
            if not -1 <= index < len(tensors):
                raise IndexError(index)
    except (TypeError, ValueError, IndexError, KeyError, AttributeError, OverflowError) as error:
        raise _damaged() from error
    return graph


def _damaged() -> DataError:
    return DataError("this .tflite is truncated or damaged; fetch or write it again.")


def _tensor(entry: Any, buffers: list) -> Tensor:
    dtype = names("TensorType")[entry.type].lower()
    shape = tuple(int(size) for size in entry.shape) if entry.shape is not None else ()
    name = entry.name.decode(errors="replace") if entry.name else ""
    raw = buffers[entry.buffer].data
    data = None if raw is None or len(raw) == 0 else _values(np.asarray(raw, np.uint8), dtype, shape)
    quantized = entry.quantization
    if quantized is None or quantized.scale is None:
        return Tensor(name, shape, dtype, data=data)
    scale = np.asarray(quantized.scale, np.float32)
    zero = np.zeros(len(scale)) if quantized.zeroPoint is None else np.asarray(quantized.zeroPoint)
    if dtype != "float32" and (not np.isfinite(scale).all() or (scale <= 0).any()):
        raise ValueError("a scale must be positive")
    return Tensor(name, shape, dtype, scale, zero.astype(np.int64), int(quantized.quantizedDimension), data)


def _values(raw: np.ndarray, dtype: str, shape: tuple[int, ...]) -> np.ndarray | None:
    if dtype == "string":
        return None
    if dtype == "int4":
        return unpack4(raw, int(np.prod(shape))).reshape(shape)
    return np.frombuffer(raw.tobytes(), numpy_type(dtype)).reshape(shape).copy()  # writable


def unpack4(packed: np.ndarray, count: int) -> np.ndarray:
    """int8 codes in −8…7 from bytes that hold two of them, the first in the lower half."""
    nibbles = np.stack([packed & 15, packed >> 4], 1).reshape(-1)[:count].astype(np.int8)
    if len(nibbles) != count:
        raise ValueError("too few bytes")
    return np.where(nibbles > 7, nibbles - 16, nibbles).astype(np.int8)


def _op(entry: Any, codes: list) -> Op:
    code = codes[entry.opcodeIndex]
    kind = names("BuiltinOperator")[max(code.builtinCode, code.deprecatedBuiltinCode)]
    inputs = tuple(int(i) for i in entry.inputs) if entry.inputs is not None else ()
    return Op(kind, inputs, int(entry.outputs[0]), decode(kind, entry.builtinOptions))


def _check_classifier(graph: Graph) -> None:
    image, scores = graph.tensors[graph.input], graph.tensors[graph.output]
    sizes = [*image.shape, *scores.shape]
    if any(size < 1 for size in sizes) or (image.shape[:1] not in ((), (1,)) and len(image.shape) == 4):
        raise InputError(
            f"the input of this .tflite has shape {image.shape} and the output {scores.shape}; qpatch reads networks "
            "of a fixed image size and batch 1: export it with batch size 1 (it is still run on batches)."
        )
    if len(image.shape) != 4 or image.shape[3] not in (1, 3):
        raise InputError(f"the input of this .tflite has shape {image.shape}; a classifier takes 1×H×W×3 or 1×H×W×1.")
    if len(scores.shape) not in (2, 4) or int(np.prod(scores.shape)) != scores.shape[-1] or scores.shape[-1] < 2:
        raise InputError(f"this .tflite is not a classifier: its output has shape {scores.shape}, not 1×classes.")
    for tensor in (image, scores):
        if tensor.dtype not in ("int8", "uint8", "int16", "float32"):
            raise InputError(f"tensor {tensor.name!r} is {tensor.dtype}; qpatch reads int8, uint8, int16 and float32.")
        if tensor.dtype != "float32" and len(tensor.scale) != 1:
            raise InputError(f"tensor {tensor.name!r} has {len(tensor.scale)} scales, but inputs and outputs have one.")
