"""Cutting a .tflite at its ends, so that every engine takes and gives the same codes."""

from __future__ import annotations

from qpatch.quant.tflite.graph import Graph
from qpatch.quant.tflite.reader import model_of, parse
from qpatch.quant.tflite.writer import pack


def core(data: bytes) -> bytes:
    """The integer network inside of a file that takes and gives floats: QUANTIZE at its start and DEQUANTIZE at its
    end are cut off, because rounding the images is the caller's part here. Other files are returned as they are.
    """
    graph = parse(data)
    if not graph.ops:
        return data
    first, last = graph.ops[0], graph.ops[-1]
    floats = graph.tensors[graph.input].dtype == "float32"
    begins = floats and first.kind == "QUANTIZE" and first.inputs == (graph.input,)
    ends = last.kind == "DEQUANTIZE" and last.output == graph.output
    if not (begins or ends):
        return data
    model = model_of(data)
    (main,) = model.subgraphs
    main.operators = main.operators[1 if begins else 0 : -1 if ends else None]
    main.inputs = [first.output] if begins else main.inputs
    main.outputs = [last.inputs[0]] if ends else main.outputs
    model.signatureDefs = None
    return pack(model)


def stages(data: bytes, graph: Graph) -> dict[str, bytes]:
    """Files that end with the "scores" and with the "output": they differ by a final SOFTMAX."""
    if graph.ops[-1].kind != "SOFTMAX":
        return {"scores": data, "output": data}
    model = model_of(data)
    (main,) = model.subgraphs
    main.operators, main.outputs = main.operators[:-1], [graph.ops[-1].inputs[0]]
    model.signatureDefs = None
    return {"scores": pack(model), "output": data}


def until(data: bytes, step: int) -> bytes:
    """The same file, ended after operation number `step` (from 0), whose tensor becomes the output."""
    model = model_of(data)
    (main,) = model.subgraphs
    main.operators = main.operators[: step + 1]
    main.outputs = [main.operators[-1].outputs[0]]
    model.signatureDefs = None
    return pack(model)
