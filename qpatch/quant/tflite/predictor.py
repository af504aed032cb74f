"""A .tflite file as a network that takes images in [0, 1] and gives probabilities: what query attacks see."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from qpatch.checks import check_images
from qpatch.errors import one_of
from qpatch.quant.tflite.emulator import Integers
from qpatch.quant.tflite.ends import dequantize, input_of
from qpatch.quant.tflite.engines import ENGINES
from qpatch.quant.tflite.reader import content, read
from qpatch.quant.tflite.surgery import core


class Network(nn.Module):
    """A classifier on an integer engine, in eval mode, without gradients. Made by `network`.

    Attributes:
        precision: "int8", "int16" or "float".
        engine: name of the engine.
        size: of the file, in bytes.
        queries: number of images evaluated so far.
        graph: what the file holds.
    """

    def __init__(self, data: bytes, engine: str, input_range: tuple[float, float] | None):
        super().__init__()
        self.engine, self.size, self.queries = engine, len(data), 0
        inner = core(data)
        self.graph = read(inner)
        self.precision = self.graph.precision
        self.ends = input_of(self.graph.tensors[self.graph.input], input_range)
        self._scores, self._output = self.graph.tensors[self.graph.scores], self.graph.tensors[self.graph.output]
        self._softmax = self.graph.scores != self.graph.output
        self._engine = ENGINES[engine](inner, self.graph, self.ends)
        self.num_classes = self._output.shape[-1]
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Probabilities, float32 (N, classes): the file's own softmax dequantized, or the softmax of its logits.

        Args:
            images: float32 (N, C, H, W) in [0, 1].

        Raises:
            InputError: malformed images, or of another size than the network's.
        """
        if self._softmax:
            return dequantize(self._run(images, "output"), self._output)
        return torch.softmax(self.logits(images), 1)

    def logits(self, images: Tensor) -> Tensor:
        """Dequantized scores before the softmax, float32 (N, classes)."""
        return dequantize(self._run(images, "scores"), self._scores)

    def codes(self, images: Tensor) -> Tensor:
        """The integers that the network gives, int64 (N, classes); for a float file its float32 output."""
        output = self._run(images, "output")
        return output if output.is_floating_point() else output.long()

    def received(self, images: Tensor) -> Tensor:
        """What the network really receives: the input codes dequantized, float32 in the images' units."""
        return self.ends.received(check_images(images))

    @torch.no_grad()
    def _run(self, images: Tensor, wanted: str) -> Tensor:
        check_images(images)
        self.queries += len(images)
        return self._engine(images, wanted)


class Twin(nn.Module):
    """The integer network with gradients: rounding passes them straight through, clipping stops them. See `twin`."""

    def __init__(self, data: bytes, input_range: tuple[float, float] | None):
        super().__init__()
        graph = read(core(data))
        self.integers = Integers(graph)
        self.precision = graph.precision
        self.ends = input_of(graph.tensors[graph.input], input_range)
        self.step = graph.tensors[graph.scores].step
        self.num_classes = graph.tensors[graph.scores].shape[-1]
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Dequantized logits, float32 (N, classes), equal to the emulator's, with a gradient."""
        codes = self.ends.relative(images).contiguous(memory_format=torch.channels_last)
        return self.integers(codes)[self.integers.scores].flatten(1) * self.step

    def received(self, images: Tensor) -> Tensor:
        """What the network really receives, float32 in the images' units."""
        return self.ends.received(check_images(images))


def network(
    source: bytes | str | Path, engine: str = "emulator", *, input_range: tuple[float, float] | None = None
) -> Network:
    """Any int8, int16x8 or float image classifier in a .tflite file as a predictor for images in [0, 1].

    Args:
        source: the file's bytes or its path; ours or any third party's.
        engine: "emulator" (exact like TFLite Micro, batched, fast), "litert" (also for float files and for operations
            that the emulator does not know) or "tflm" (the microcontroller's own code, one image at a time).
        input_range: the real values that pixels 0 and 1 stand for; None decides by the input's scale and zero point,
            see `ends.input_of`. Float files do not tell: pass (0, 255) for one that takes bytes.

    Raises:
        ParameterError: unknown engine, or its package is not installed.
        DataError: not a .tflite, truncated, or not to be found.
        InputError: no image classifier with one input, one output and batch 1, or nothing that the engine can run.
    """
    one_of(engine, ENGINES, "engine")
    return Network(content(source), engine, input_range)


def twin(source: bytes | str | Path, *, input_range: tuple[float, float] | None = None) -> Twin:
    """The torch twin of an integer .tflite, for white-box attacks: same logits as the emulator, with a gradient.

    Raises:
        DataError, InputError: as `network`.
    """
    return Twin(content(source), input_range)
