"""The engines that compute a .tflite: our exact batched emulator, LiteRT (XNNPACK), and TFLite Micro itself.

An engine is called with images N×C×H×W and with what is wanted, "scores" (before a final softmax) or "output"; it gives
codes N×classes.
"""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from qpatch.errors import InputError, ParameterError, one_of
from qpatch.quant.tflite.emulator import Integers
from qpatch.quant.tflite.ends import Input
from qpatch.quant.tflite.graph import Graph, numpy_type
from qpatch.quant.tflite.surgery import stages

_WORKING_SET = 2**19  # elements of the largest activation of a chunk, so that it stays in the cache
_ARENA = 2**25  # bytes for TFLite Micro's activations; far more than any microcontroller has


class Emulator:
    """`Integers` in chunks that fit the cache."""

    def __init__(self, data: bytes, graph: Graph, ends: Input):
        self.net, self.graph, self.ends = Integers(graph).eval(), graph, ends
        largest = max(int(np.prod(graph.tensors[op.output].shape)) for op in graph.ops)
        self.chunk = max(1, _WORKING_SET // largest)

    @torch.no_grad()
    def __call__(self, images: Tensor, wanted: str) -> Tensor:
        index = self.net.scores if wanted == "scores" else self.net.last
        parts = []
        for part in images.split(self.chunk):
            codes = self.ends.relative(part).contiguous(memory_format=torch.channels_last)
            parts.append(self.net(codes)[index].flatten(1))
        return torch.cat(parts).long() + self.graph.tensors[index].offset


class LiteRT:
    """Google's interpreter for phones and computers, with its XNNPACK kernels; float files as well."""

    chunk = 64

    def __init__(self, data: bytes, graph: Graph, ends: Input):
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise ParameterError(_missing("litert", "ai-edge-litert", "Linux and macOS on ARM")) from error
        self.ends, self.dtype = ends, numpy_type(graph.tensors[graph.input].dtype)
        self.nets = {}
        for wanted, file in stages(data, graph).items():
            try:
                net = Interpreter(model_content=file, num_threads=1)
                net.allocate_tensors()
            except (RuntimeError, ValueError) as error:
                raise InputError(f"LiteRT refuses this .tflite: {_first_line(error)}") from error
            self.nets[wanted] = net

    def __call__(self, images: Tensor, wanted: str) -> Tensor:
        return torch.cat([torch.from_numpy(self._run(self.nets[wanted], part)) for part in images.split(self.chunk)])

    def _run(self, net, images: Tensor) -> np.ndarray:
        codes = self.ends.codes(images).permute(0, 2, 3, 1).numpy().astype(self.dtype)
        entry, result = net.get_input_details()[0], net.get_output_details()[0]
        if tuple(entry["shape"]) != codes.shape:
            net.resize_tensor_input(entry["index"], codes.shape)
            net.allocate_tensors()
        net.set_tensor(entry["index"], codes)
        net.invoke()
        return net.get_tensor(result["index"]).reshape(len(codes), -1)


class TFLM:
    """TFLite Micro, as on a microcontroller, one image at a time."""

    def __init__(self, data: bytes, graph: Graph, ends: Input):
        try:
            from tflite_micro.python.tflite_micro import runtime
        except ImportError as error:
            raise ParameterError(_missing("tflm", "tflite-micro", "Linux on x86-64")) from error
        self.ends, self.dtype = ends, numpy_type(graph.tensors[graph.input].dtype)
        self.nets = {}
        for wanted, file in stages(data, graph).items():
            try:
                self.nets[wanted] = runtime.Interpreter.from_bytes(file, arena_size=_ARENA)
            except RuntimeError as error:
                raise InputError(f"TFLite Micro refuses this .tflite: {_first_line(error)}") from error

    def __call__(self, images: Tensor, wanted: str) -> Tensor:
        codes = self.ends.codes(images).permute(0, 2, 3, 1).numpy().astype(self.dtype)
        return torch.from_numpy(np.stack([self._run(self.nets[wanted], code) for code in codes]))

    @staticmethod
    def _run(net, code: np.ndarray) -> np.ndarray:
        net.set_input(code[None], 0)
        net.invoke()
        return net.get_output(0).reshape(-1).copy()


_PACKAGES = {"litert": "ai_edge_litert", "tflm": "tflite_micro"}
ENGINES: dict[str, type] = {"emulator": Emulator, "litert": LiteRT, "tflm": TFLM}


def installed(engine: str) -> bool:
    """Whether the package of an engine is installed here.

    Raises:
        ParameterError: no such engine.
    """
    one_of(engine, ENGINES, "engine")
    return engine not in _PACKAGES or find_spec(_PACKAGES[engine]) is not None


def _missing(engine: str, package: str, where: str) -> str:
    return (
        f"engine {engine!r} needs the package {package}, which exists for {where}; pip install {package}, "
        "or use engine='emulator', which computes the same integers as TFLite Micro."
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
