"""The engines that compute a .tflite: 10,000 images through int8, and how each engine stands to float PyTorch.

The limit is LiteRT's interpreter alone, called with full batches of codes that were made before. The other engines have
no limit: their ratio to the float network says what they cost. Use one thread to compare them, because TFLite Micro has
no other and the interpreter is given no other.

    python -m benchmarks.tflite_engines --threads 1
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks._harness import Limit, Peer, compare, main
from benchmarks._steps import float_network, images_and_labels
from qpatch.quant import tflite

FILES = {"int8": ("int8", 8), "int16": ("int16", 8), "int8, int4 weights": ("int8", 4)}
ENGINES = {"emulator": 200, "litert": 200, "tflm": 20, "twin": 100, "twin with gradient": 100}  # images of a call
BATCH = 100


def measure(smoke: bool) -> list[dict]:
    count, alone = (200, 20) if smoke else (10_000, 500)
    model, (images, _) = float_network("qpatch_resnet8_plain"), images_and_labels(count, 32)
    rows, seconds = [], None if smoke else 15
    for name, (activations, bits) in FILES.items():
        file = tflite.convert(model, images[:200], activations, bits)
        if name == "int8" and tflite.installed("litert"):
            rows += _many(file, images, alone, seconds)
        for engine, size in ENGINES.items():
            if tflite.installed(engine) if engine in tflite.ENGINES else True:
                part = images[: 4 if smoke else size]
                floats = Limit("float network", lambda: torch.no_grad()(model)(part))
                rows += compare(f"{name}, {engine}", _call(file, engine, part), floats, seconds=None if smoke else 1)
    return rows


def _many(file: bytes, images: Tensor, alone: int, seconds: float | None) -> list[dict]:
    """All images in one call, against the bare interpreter, and against a loop over single images."""
    net = tflite.network(file, "litert")
    codes = net.ends.codes(images).permute(0, 2, 3, 1).to(torch.int8).contiguous().numpy()
    whole, single = interpreter(file, BATCH), interpreter(file, 1)
    return compare(
        f"int8, {len(images):,} images", lambda: net.codes(images),
        Limit("interpreter, full batches", lambda: [whole(codes[i : i + BATCH]) for i in range(0, len(codes), BATCH)], 1.1),
        Peer("loop over images", lambda: [single(code[None]) for code in codes[:alone]], times=len(codes) / alone,
             package="ai-edge-litert"), seconds=seconds)  # fmt: skip


def interpreter(file: bytes, batch: int) -> Callable:
    """LiteRT itself with one batch size: from codes to codes."""
    from ai_edge_litert.interpreter import Interpreter

    net = Interpreter(model_content=file, num_threads=1)
    entry, result = net.get_input_details()[0], net.get_output_details()[0]
    net.resize_tensor_input(entry["index"], (batch, *entry["shape"][1:]))
    net.allocate_tensors()

    def call(codes):
        net.set_tensor(entry["index"], codes)
        net.invoke()
        return net.get_tensor(result["index"])

    return call


def _call(file: bytes, engine: str, images: Tensor) -> Callable:
    if engine in tflite.ENGINES:
        net = tflite.network(file, engine)
        return lambda: net.codes(images)
    twin = tflite.twin(file)
    return (lambda: _gradient(twin, images)) if engine != "twin" else (lambda: torch.no_grad()(twin)(images))


def _gradient(net: nn.Module, images: Tensor) -> Tensor:
    inputs = images.clone().requires_grad_()
    return torch.autograd.grad(net(inputs).logsumexp(1).sum(), inputs)[0]


if __name__ == "__main__":
    raise SystemExit(main("tflite_engines", __doc__, measure))
