"""What all patch attacks share: checks, the optimisation of the pixels, and the restoring of the network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from qpatch.attacks.patch import Patch, as_size, check_fits, make_mask, paste, round_to_bytes
from qpatch.attacks.places import sample_places
from qpatch.checks import check_eval, check_images, check_labels
from qpatch.errors import InputError, ParameterError, one_of

UPDATES = ("adam", "sign", "gradient")


@contextmanager
def frozen(net: nn.Module) -> Iterator[nn.Module]:
    """Take the weights out of the graph, so that backward computes no gradient for them; restored on the way out."""
    flags = [(weight, weight.requires_grad) for weight in net.parameters()]
    try:
        for weight, _ in flags:
            weight.requires_grad_(False)
        with torch.enable_grad():
            yield net
    finally:
        for weight, flag in flags:
            weight.requires_grad_(flag)


class Descent:
    """Projected descent in [0, 1] with a step size that falls to zero along half a cosine.

    rule "adam": Adam (β = 0.9, 0.999); "sign": the sign of the gradient; "gradient": the gradient itself.
    """

    def __init__(self, rule: str, lr: float, steps: int) -> None:
        self.rule, self.lr, self.steps = rule, lr, steps
        self.step_number = 0
        self.mean: Tensor | float = 0.0
        self.square: Tensor | float = 0.0

    def step(self, pixels: Tensor, gradient: Tensor) -> Tensor:
        rate = self.lr * 0.5 * (1 + math.cos(math.pi * self.step_number / self.steps))
        self.step_number += 1
        if self.rule == "sign":
            gradient = gradient.sign()
        elif self.rule == "adam":
            t = self.step_number
            self.mean = 0.9 * self.mean + 0.1 * gradient
            self.square = 0.999 * self.square + 0.001 * gradient**2
            gradient = self.mean / (1 - 0.9**t) / ((self.square / (1 - 0.999**t)).sqrt() + 1e-12)
        return (pixels - rate * gradient).clamp_(0, 1)

    def keep(self, alive: Tensor) -> None:
        """Forget the state of the images that are finished."""
        if self.rule == "adam":
            self.mean, self.square = self.mean[alive], self.square[alive]


class PatchAttack:
    """Base class; LaVAN and GAP differ in what they minimise (`objective`) and in how they paste (`render`).

    Calling style of torchattacks: `adv = attack(images, labels)` makes a patch for each image (image-specific);
    `patch = attack.fit(images, labels)` makes a single patch for all (universal).

    Args:
        net: classifier in eval mode, images in [0, 1] to scores before softmax (N, classes). Its weights, buffers
            and requires_grad flags are the same after the attack, also after an exception.
        patch_size: pixels, an int or (height, width).
        target: the class to show; None makes the attack untargeted.
        targeted: may be given for readability; must agree with `target`.
        place: see `sample_places`.
        shape: "square", "circle" or an (h, w) tensor whose non-zero pixels belong to the patch.
        steps: optimisation steps.
        lr: first step size, in units of the [0, 1] pixel range; it falls to zero along half a cosine, so the last
            patch is the settled one and no noisy best-so-far has to be chosen.
        update: "adam", "sign" or "gradient".
        batch: images per step. `fit` draws them without replacement, epoch after epoch.
        restarts: independent starts (pixels and places). `fit` keeps the one with the lowest mean objective on a
            held-out tenth of its images (at most 1,000); an image-specific attack keeps the best for each image.
        seed: fixes start, order and places; the same call gives the same bytes.
        rounded: bring the result to the 8-bit lattice, which is what can be saved, printed or shown.
        progress: called as progress(step, steps, mean objective) after every step.

    Raises:
        InputError: network in train mode, malformed images or labels, patch larger than the image.
        ParameterError: unknown or inconsistent parameters.
    """

    resample = True  # image-specific attacks: draw new places at every step, or keep one place per image?
    stop_at: float | None = None  # image-specific attacks: an image is finished at this probability of success

    def __init__(
        self,
        net: nn.Module,
        patch_size: int | tuple[int, int] = 6,
        *,
        target: int | None = None,
        targeted: bool | None = None,
        place: str | tuple[int, int] = "random",
        shape: str | Tensor = "square",
        steps: int = 300,
        lr: float = 0.05,
        update: str = "adam",
        batch: int = 128,
        restarts: int = 1,
        seed: int = 0,
        rounded: bool = True,
        progress: Callable[[int, int, float], None] | None = None,
    ) -> None:
        if targeted is not None and targeted != (target is not None):
            fix = "give target=CLASS" if targeted else "leave target out"
            raise ParameterError(f"targeted={targeted} but target={target}; {fix}.")
        for name, value in {"steps": steps, "batch": batch, "restarts": restarts}.items():
            if not isinstance(value, int) or value < 1:
                raise ParameterError(f"{name} must be a positive int, got {value!r}.")
        if not lr > 0:
            raise ParameterError(f"lr must be positive, got {lr!r}.")
        self.net, self.size, self.target, self.place = net, as_size(patch_size), target, place
        self.mask = make_mask(shape, self.size)
        self.steps, self.lr, self.update = steps, lr, one_of(update, UPDATES, "update rule")
        self.batch, self.restarts, self.seed = batch, restarts, seed
        self.rounded, self.progress = rounded, progress

    # What an attack supplies ------------------------------------------------------------------------------------

    def objective(self, scores: Tensor, labels: Tensor, universal: bool) -> Tensor:
        """What to minimise, per image: (N, classes), (N,) → (N,)."""
        raise NotImplementedError

    def render(self, images: Tensor, pixels: Tensor, places: Tensor, generator: torch.Generator) -> Tensor:
        """The images with the patch in them, as the optimisation sees them."""
        return paste(images, pixels, self.mask, places)

    # Universal --------------------------------------------------------------------------------------------------

    def fit(self, images: Tensor, labels: Tensor) -> Patch:
        """One patch for all images, places drawn anew at every step.

        Args:
            images: float32 (N, C, H, W) in [0, 1], the training images; not changed.
            labels: int64 (N,).
        """
        labels = self._check(images, labels)
        generator = torch.Generator().manual_seed(self.seed)
        held = min(len(images) // 10, 1000) if self.restarts > 1 else 0
        order = torch.randperm(len(images), generator=generator) if held else torch.arange(len(images))
        with frozen(self.net):
            runs = [self._fit_once(images, labels, order[held:], generator) for _ in range(self.restarts)]
            if held:
                index, places = order[:held].to(images.device), self._places(held, images, generator)
                parts = images[index], labels[index], places
                runs.sort(key=lambda run: float(self._score(run.expand(held, -1, -1, -1), *parts).mean()))
        pixels = runs[0].cpu() * self.mask
        return Patch(round_to_bytes(pixels) if self.rounded else pixels, self.mask, self.target, self.made_on())

    def _fit_once(self, images: Tensor, labels: Tensor, order: Tensor, generator: torch.Generator) -> Tensor:
        pixels = torch.rand(images.shape[1], *self.size, generator=generator).to(images.device)
        descent = Descent(self.update, self.lr, self.steps)
        for step, index in zip(range(self.steps), _minibatches(order, self.batch, generator)):
            index = index.to(images.device)
            places = self._places(len(index), images, generator)
            patched = self.render(images[index], pixels.requires_grad_(), places, generator)
            loss = self.objective(self.net(patched), labels[index], universal=True).mean()
            gradient = torch.autograd.grad(loss, pixels)[0]
            pixels = descent.step(pixels.detach(), gradient)
            self._report(step, loss)
        return pixels

    # Image-specific ---------------------------------------------------------------------------------------------

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """The images, each with a patch of its own: float32 (N, C, H, W) in [0, 1]."""
        pixels, places = self.fit_each(images, labels)
        return paste(images, pixels, self.mask, places)

    def fit_each(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """A patch for each image, all optimised side by side.

        Returns:
            pixels (N, C, h, w) in [0, 1] and places (N, 2), to be pasted with `paste`.
        """
        labels = self._check(images, labels)
        generator = torch.Generator().manual_seed(self.seed)
        found = []
        with frozen(self.net):
            for chunk, truth in zip(images.split(self.batch), labels.split(self.batch)):
                best = None
                for _ in range(self.restarts):
                    places = self._places(len(chunk), chunk, generator)
                    pixels = self._each_once(chunk, truth, places, generator)
                    pixels = round_to_bytes(pixels) if self.rounded else pixels
                    score = self._score(pixels, chunk, truth, places)
                    best = _better(best, (score, pixels, places.to(chunk.device)))
                found.append(best)
        return torch.cat([pixels for _, pixels, _ in found]), torch.cat([places for _, _, places in found])

    def _each_once(self, images: Tensor, labels: Tensor, places: Tensor, generator: torch.Generator) -> Tensor:
        start = torch.rand(len(images), images.shape[1], *self.size, generator=generator)
        result = start.to(images.device)
        lowest = torch.full((len(images),), math.inf, device=images.device)
        alive = torch.arange(len(images), device=images.device)
        pixels, descent = result.clone(), Descent(self.update, self.lr, self.steps)
        for step in range(self.steps):
            now = self._places(len(alive), images, generator) if self.resample else places[alive.cpu()]
            patched = self.render(images[alive], pixels.requires_grad_(), now, generator)
            scores = self.net(patched)
            loss = self.objective(scores, labels[alive], universal=False)
            gradient = torch.autograd.grad(loss.sum(), pixels)[0]
            loss, pixels = loss.detach(), pixels.detach()
            # With the place held fixed the objective is exact: keep the best pixels seen. Otherwise keep the last.
            better = loss < lowest[alive] if not self.resample else torch.ones_like(loss, dtype=torch.bool)
            lowest[alive[better]], result[alive[better]] = loss[better], pixels[better]
            self._report(step, loss.mean())
            pixels = descent.step(pixels, gradient)
            if self.stop_at is not None:
                going = self._goal_probability(scores.detach(), labels[alive]) < self.stop_at
                alive, pixels = alive[going], pixels[going]
                descent.keep(going)
                if len(alive) == 0:
                    break
        return result

    # Helpers ----------------------------------------------------------------------------------------------------

    def made_on(self) -> dict:
        """The part of the attack's parameters that goes onto the patch's card."""
        place = self.place if isinstance(self.place, str) else list(self.place)
        return {"attack": type(self).__name__, "place": place, "steps": self.steps, "lr": self.lr, "seed": self.seed,
                "update": self.update, "batch": self.batch, "restarts": self.restarts}

    def _check(self, images: Tensor, labels: Tensor) -> Tensor:
        check_eval(self.net)
        check_images(images, self.net)
        check_labels(labels, len(images))
        check_fits(self.size, images.shape[-2:])
        with torch.no_grad():
            classes = self.net(images[:1]).shape[1]
        for what, value in {"target": self.target, "the largest label": int(labels.max())}.items():
            if value is not None and not 0 <= value < classes:
                raise InputError(f"{what} is {value}, but the network has {classes} classes, 0 to {classes - 1}.")
        return labels.to(images.device)

    def _places(self, n: int, images: Tensor, generator: torch.Generator) -> Tensor:
        return sample_places(self.place, n, images.shape[-2:], self.size, generator)

    @torch.no_grad()
    def _score(self, pixels: Tensor, images: Tensor, labels: Tensor, places: Tensor) -> Tensor:
        """The objective of the plain patches, pasted exactly: (N,)."""
        parts = zip(pixels.split(500), images.split(500), labels.split(500), places.split(500))
        return torch.cat([self.objective(self.net(paste(x, p, self.mask, at)), y, universal=False)
                          for p, x, y, at in parts])

    def _goal_probability(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Probability of the target class (targeted) or of any class but the true one (untargeted)."""
        probability = scores.softmax(dim=1)
        if self.target is not None:
            return probability[:, self.target]
        return 1 - probability.gather(1, labels[:, None])[:, 0]

    def _report(self, step: int, loss: Tensor) -> None:
        if self.progress is not None:
            self.progress(step + 1, self.steps, float(loss.detach()))


def _better(old: tuple[Tensor, ...] | None, new: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Image by image, whichever of two (score, pixels, places) scores lower."""
    if old is None:
        return new
    win = new[0] < old[0]
    return tuple(torch.where(win.view(-1, *[1] * (a.dim() - 1)), b, a) for a, b in zip(old, new))


def _minibatches(order: Tensor, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless shuffled minibatches of the indices in `order`; a short rest at the end of an epoch is left out."""
    size = min(size, len(order))
    while True:
        shuffled = order[torch.randperm(len(order), generator=generator)]
        yield from shuffled[: len(order) // size * size].split(size)
