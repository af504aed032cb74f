"""Input gradients, measured: by steps of a chosen size on the network that really runs, or analytically.

An integer network is a staircase: within half an input step nothing changes, at its edge the scores jump. A difference
quotient with a step below that is zero or huge, whatever the network; with a step of at least one input step it is a
slope. So every measurement here says its step, its score, and from what grid the images are taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from qpatch.attacks.base import frozen
from qpatch.checks import check_eval, check_images, check_labels
from qpatch.errors import InputError, ParameterError, one_of

SMALLEST = 1e-7  # probabilities are cut here before the logarithm, as Keras does


# Scores -----------------------------------------------------------------------------------------------------------


def logits_of(net: nn.Module, images: Tensor) -> Tensor:
    """Logits of an ordinary network, or dequantized logits of one of `qpatch.quant.tflite.network`."""
    return net.logits(images) if hasattr(net, "codes") else net(images)


def probabilities_of(net: nn.Module, images: Tensor) -> Tensor:
    """Softmax of an ordinary network's logits, or what a deployed network gives: its dequantized softmax output."""
    return net(images) if hasattr(net, "codes") else net(images).softmax(dim=1)


def _cross_entropy(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits_of(net, images).double(), labels, reduction="none")


def _probability(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    own = probabilities_of(net, images).double().gather(1, labels[:, None])[:, 0]
    return -own.clamp_min(SMALLEST).log()


def _margin(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return lead(probabilities_of(net, images), labels)


def _raw_margin(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    if not hasattr(net, "codes"):
        raise InputError("only a deployed network has raw output codes; take the score 'margin' for a float one.")
    return lead(net.codes(images), labels)


def lead(outputs: Tensor, labels: Tensor) -> Tensor:
    """ZOO's margin: the output of the true class minus the largest other one, float64 (N,)."""
    outputs = outputs.double()
    own = outputs.gather(1, labels[:, None])
    return own[:, 0] - outputs.scatter(1, labels[:, None], -torch.inf).amax(dim=1)


SCORES: dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor]] = {
    "cross-entropy": _cross_entropy,
    "cross-entropy of probabilities": _probability,
    "margin": _margin,
    "raw margin": _raw_margin,
}
"""Score per image, float64 (N,): the cross-entropy from (dequantized) logits or from the (dequantized) softmax output,
and ZOO's margin of that output, dequantized or in raw integer codes."""


# Differences ------------------------------------------------------------------------------------------------------


def sample_values(images: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """Which values (pixel and channel) of each image to step along: int64 (N, number), without repetition."""
    size = images[0].numel()
    if not 1 <= number <= size:
        raise ParameterError(f"number must lie between 1 and {size}, the values of an image, got {number}.")
    return torch.rand(len(images), size, generator=generator).argsort(dim=1)[:, :number]


def off_grid(images: Tensor, generator: torch.Generator, step: float = 1 / 255) -> Tensor:
    """The images plus uniform noise of at most half a `step`: points between the grid's, as an attack meets them."""
    noise = torch.rand(images.shape, generator=generator) - 0.5
    return (images + step * noise.to(images)).clamp(0, 1)


def central_differences(
    net: nn.Module, images: Tensor, labels: Tensor, at: Tensor, step: float, score: str = "cross-entropy",
    batch: int = 400,
) -> Tensor:  # fmt: skip
    """(score(x + step) − score(x − step)) / distance, one value of one image at a time.

    Points are kept in [0, 1], so at the border the difference is one-sided; the distance is the one really gone. Where
    the network receives the same codes on both sides the difference is zero by definition and is not evaluated.

    Args:
        net: in eval mode; logits, or a deployed network of `qpatch.quant.tflite`.
        images, labels: float32 (N, C, H, W) in [0, 1], int64 (N,).
        at: int64 (N, K), from `sample_values`.
        step: in units of the [0, 1] range; one input step of int8 is 1/255, of int16 1/32767.
        score: one of `SCORES`.
        batch: images per forward pass.

    Returns:
        float64 (N, K), in score per [0, 1] range.

    Raises:
        InputError: train mode or malformed images or labels. ParameterError: a step that is not positive.
    """
    if not step > 0:
        raise ParameterError(f"step must be positive, got {step}.")
    rows = []
    for index, part in _chunks(net, images, labels, max(1, batch // (2 * at.shape[1]))):
        below, above = (nudged(part, at[index], sign * step) for sign in (-1, 1))
        change = _change(net, below, above, labels[index].repeat_interleave(at.shape[1]), score)
        where = at[index].reshape(-1, 1)
        distance = (above.flatten(1).gather(1, where) - below.flatten(1).gather(1, where))[:, 0].double()
        rows.append((change / distance).view(at[index].shape))
    return torch.cat(rows)


def directional_differences(
    net: nn.Module, images: Tensor, labels: Tensor, step: float, number: int, seed: int = 0,
    score: str = "cross-entropy", batch: int = 400,
) -> Tensor:  # fmt: skip
    """(score(x + step·d) − score(x − step·d)) / (2·step) along random directions d of ±1 in every value.

    For a smooth score this is the gradient's product with d, so over directions two networks correlate like the cosine
    of their gradients. No straight-through estimator is involved. The same seed gives the same directions.

    Args:
        number: directions per image.

    The other arguments and errors are those of `central_differences`.

    Returns:
        float64 (N, number).
    """
    if not step > 0:
        raise ParameterError(f"step must be positive, got {step}.")
    generator, rows = torch.Generator().manual_seed(seed), []
    signs = torch.randint(0, 2, (len(images), number, *images.shape[1:]), generator=generator, dtype=torch.int8)
    for index, part in _chunks(net, images, labels, max(1, batch // (2 * number))):
        along = (signs[index] * 2 - 1).to(part)
        below, above = ((part[:, None] + sign * step * along).clamp(0, 1).flatten(0, 1) for sign in (-1, 1))
        change = _change(net, below, above, labels[index].repeat_interleave(number), score)
        rows.append((change / (2 * step)).view(len(part), number))
    return torch.cat(rows)


def nudged(images: Tensor, at: Tensor, step: float) -> Tensor:
    """Copies of each image, each with one value moved by `step` and kept in [0, 1]: (N·K, C, H, W)."""
    return moved(images, at, lambda values: (values + step).clamp(0, 1))


def moved(images: Tensor, at: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Copies of each image, each with one value changed: (N·K, C, H, W)."""
    copies = images[:, None].repeat(1, at.shape[1], *(1,) * (images.dim() - 1)).flatten(2)
    return copies.scatter(2, at[..., None], change(copies.gather(2, at[..., None]))).view(-1, *images.shape[1:])


@torch.no_grad()
def _change(net: nn.Module, below: Tensor, above: Tensor, labels: Tensor, score: str) -> Tensor:
    change = torch.zeros(len(below), dtype=torch.float64)
    seen = torch.ones(len(below), dtype=torch.bool)
    if hasattr(net, "received"):
        seen = (net.received(below) != net.received(above)).flatten(1).any(dim=1)
    if seen.any():
        both, own = torch.cat([below[seen], above[seen]]), labels[seen]
        low, high = SCORES[score](net, both, own.repeat(2)).cpu().chunk(2)
        change[seen] = high - low
    return change


def input_gradients(
    net: nn.Module, images: Tensor, labels: Tensor, score: str = "cross-entropy", batch: int = 100
) -> Tensor:
    """The analytic gradient of each image's score; through a quantized view or twin, its straight-through estimate.

    Returns:
        float32 of the images' shape.

    Raises:
        InputError: train mode, malformed images or labels, or a network without a gradient.
    """
    rows = []
    with frozen(net):
        for index, part in _chunks(net, images, labels, batch):
            part = part.clone().requires_grad_()
            total = SCORES[one_of(score, SCORES, "score")](net, part, labels[index]).sum()
            if not total.requires_grad:
                raise InputError("this network has no gradient; take its tflite.twin(...), or finite differences.")
            rows.append(torch.autograd.grad(total, part)[0])
    return torch.cat(rows)


def _chunks(net: nn.Module, images: Tensor, labels: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    check_eval(net)
    check_images(images, net)
    check_labels(labels, len(images))
    for index in torch.arange(len(images)).split(size):
        yield index, images[index]


# Labels only -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def edges(net: nn.Module, images: Tensor, others: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Points where the class changes on the way from each image to another one: where a label attack takes its probes.

    Args:
        others: (N, C, H, W), images that the network puts into another class.
        tolerance: L2 length, in [0, 1] units, at which the halving ends; GeoDA's is 1e-4.

    Returns:
        points (N, C, H, W), just beyond the change, and the class at `images`, int64 (N,).

    Raises:
        InputError: an image and its other one are in the same class.
    """
    home = net(images).argmax(dim=1)
    if (net(others).argmax(dim=1) == home).any():
        raise InputError("an image and its other one are in the same class; there is no edge between them.")
    near, far = torch.zeros(len(images), 1, 1, 1), torch.ones(len(images), 1, 1, 1)
    way = others - images
    while float(((far - near).flatten() * way.flatten(1).norm(dim=1)).max()) > tolerance:
        middle = (near + far) / 2
        inside = (net(images + middle * way).argmax(dim=1) == home).view(-1, 1, 1, 1)
        near, far = torch.where(inside, middle, near), torch.where(inside, far, middle)
    return (images + far * way).clamp(0, 1), home


@torch.no_grad()
def probes(net: nn.Module, points: Tensor, home: Tensor, sigma: float, number: int, seed: int = 0) -> dict[str, Tensor]:
    """GeoDA's question: Gaussian noise of size `sigma` on all values, `number` times per point; which side is it on?

    Returns:
        same, bool (N, number): the network receives exactly what it receives without noise; back, bool (N, number): the
        class is `home` again. Where all probes of a point agree they say nothing about the boundary's direction.
    """
    generator, same, back = torch.Generator().manual_seed(seed), [], []
    received = getattr(net, "received", lambda images: images)
    for point, own in zip(points, home):
        noise = torch.randn(number, *point.shape, generator=generator)
        noisy = (point + sigma * noise).clamp(0, 1)
        same.append((received(noisy) == received(point[None])).flatten(1).all(dim=1))
        back.append(net(noisy).argmax(dim=1) == own)
    return {"same": torch.stack(same), "back": torch.stack(back)}
