"""From a `Graph` to the bytes of a .tflite file that LiteRT and TFLite Micro run."""

from __future__ import annotations

from typing import Any

import numpy as np

from qpatch.quant.tflite.graph import Graph, Tensor
from qpatch.quant.tflite.options import encode
from qpatch.quant.tflite.reader import IDENTIFIER
from qpatch.quant.tflite.schema import numbers, schema

# operator versions by the type of the activations: the least that the interpreters ask for
_VERSIONS = {
    "CONV_2D": {"int8": 3, "int16": 4}, "DEPTHWISE_CONV_2D": {"int8": 3, "int16": 5},
    "FULLY_CONNECTED": {"int8": 4, "int16": 7}, "ADD": {"int8": 2, "int16": 3},
    "AVERAGE_POOL_2D": {"int8": 2, "int16": 3}, "MAX_POOL_2D": {"int8": 2, "int16": 3},
    "SOFTMAX": {"int8": 2, "int16": 3}, "MEAN": {"int8": 2, "int16": 3}, "PAD": {"int8": 2, "int16": 3},
    "STRIDED_SLICE": {"int8": 2, "int16": 4}, "QUANTIZE": {"int8": 2, "int16": 2},
}  # fmt: skip
_INT4_VERSION = 7  # of CONV_2D


def write(graph: Graph) -> bytes:
    """The .tflite file of a network. The same graph gives the same bytes."""
    s = schema()
    model, main = s.ModelT(), s.SubGraphT()
    model.version, model.description, model.subgraphs = 3, b"qpatch", [main]
    model.buffers, model.operatorCodes = [s.BufferT()], []
    main.tensors = [_tensor(tensor, model.buffers) for tensor in graph.tensors]
    main.inputs, main.outputs = [graph.input], [graph.output]
    main.operators, codes = [], {}
    for op in graph.ops:
        versions = _VERSIONS.get(op.kind, {})
        version = versions.get(graph.tensors[op.output].dtype, 1)
        if any(graph.tensors[i].dtype == "int4" for i in op.inputs):
            version = _INT4_VERSION
        entry = s.OperatorT()
        entry.opcodeIndex = codes.setdefault((op.kind, version), len(codes))
        entry.inputs, entry.outputs = list(op.inputs), [op.output]
        entry.builtinOptionsType, entry.builtinOptions = encode(op.kind, op.options)
        main.operators.append(entry)
    model.operatorCodes = [_code(kind, version) for kind, version in codes]
    return pack(model)


def pack(model: Any) -> bytes:
    """The bytes of the schema's object tree."""
    import flatbuffers  # comes with the package that carries the schema

    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


def pack4(codes: np.ndarray) -> np.ndarray:
    """Bytes with two codes in −8…7 each, the first in the lower half."""
    nibbles = np.append(codes.ravel(), np.zeros(codes.size % 2, np.int8)).astype(np.uint8) & 15
    return nibbles[0::2] | (nibbles[1::2] << 4)


def _code(kind: str, version: int) -> Any:
    code = schema().OperatorCodeT()
    code.builtinCode, code.version = numbers("BuiltinOperator")[kind], version
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    return code


def _tensor(tensor: Tensor, buffers: list) -> Any:
    entry = schema().TensorT()
    entry.name, entry.shape = tensor.name.encode(), list(tensor.shape)
    entry.type, entry.buffer = numbers("TensorType")[tensor.dtype.upper()], 0
    if len(tensor.scale):
        entry.quantization = schema().QuantizationParametersT()
        entry.quantization.scale, entry.quantization.zeroPoint = tensor.scale, tensor.zero
        entry.quantization.quantizedDimension = tensor.axis
    if tensor.data is not None:
        values = pack4(tensor.data) if tensor.dtype == "int4" else np.ascontiguousarray(tensor.data)
        buffer = schema().BufferT()
        buffer.data = np.frombuffer(values.tobytes(), np.uint8)
        entry.buffer = len(buffers)
        buffers.append(buffer)
    return entry
