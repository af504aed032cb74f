"""Sparse-RS, patch version (Croce et al. 2022): random search for a patch, without any gradient."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from qpatch.attacks.patch import Patch, as_size, check_places, make_mask, paste
from qpatch.attacks.patch_attack import Queried, _region, check_question
from qpatch.attacks.places import sample_places
from qpatch.errors import ParameterError

# Up to this query of 10,000, a change covers this share of α of the patch's area; other budgets are scaled to these.
SCHEDULE = (
    (10, 1), (50, 1 / 2), (200, 1 / 4), (500, 1 / 8), (1000, 1 / 16), (4000, 1 / 32), (8000, 1 / 64), (10_000, 1 / 128),
)  # fmt: skip
_REACH = 0.75  # largest move at the start, as a share of the image's side; it falls to nothing along the budget


class SparseRS:
    """Random search over the pixels and the place of a patch (Croce et al. 2022, arXiv 2006.12834, GitHub fra31/sparse-rs).

    A query changes one thing at random and keeps the change unless the margin, the score of the true class minus the
    highest other one, gets worse: either the colour of a small square of the patch (every channel 0 or 1; the square
    shrinks along the budget) or, more and more rarely, the patch's place. The patch starts as vertical stripes. The
    network is only asked for its scores, so masked gradients cannot stop this search: it is the control for them.

    `run` makes a patch for each image, finished at the first success. `fit` makes one patch for all images: its place is
    drawn anew for each of them, and the search sees a minibatch that is drawn again every `resample` queries.

    Deviations: every image draws its own squares (there: one draw for all). Places keep to a rule (`place`), and a move
    goes to any allowed place within its reach. A change that leaves the margin as it is is kept, because a quantized
    network's scores have plateaus. A universal patch sees minibatches (there: 90 fixed pairs of image and place, drawn
    again every 10,000 queries).

    Distance measure: L0 (pixels outside the patch do not change).

    Args:
        view: any callable, images (N, C, H, W) in [0, 1] to scores before softmax (N, classes). It is called without
            gradients. A module must be in eval mode.
        patch_size: pixels, an int or (height, width).
        target: the class to show; None makes the attack untargeted.
        place: where the patch may lie, see `sample_places`; "random" and "away" leave the search the choice.
        queries: the most questions per image; for `fit`, the most evaluations of a minibatch.
        alpha: α, see `SCHEDULE`; 0.4 is published for untargeted patches.
        resample: `fit` draws new images and places after so many queries.
        confidence: `fit` stops rewarding an image once its margin passes this many score units.
        seed: the same call gives the same bytes; an image's draws do not depend on how other images fare.
        batch: images per forward pass; of `fit`, per query.
        progress: called as progress(query, queries, images that go on or mean margin) after every query.

    Raises:
        InputError: network in train mode, malformed images or labels, patch larger than the image.
        ParameterError: a malformed parameter.

    Example:
        >>> found = SparseRS(net.at(2), patch_size=6, place="away", queries=500).run(images, labels)
        >>> float(found.success.float().mean()), found.first   # how often, and after how many questions
    """

    def __init__(
        self,
        view: Callable[[Tensor], Tensor],
        patch_size: int | tuple[int, int] = 6,
        *,
        target: int | None = None,
        place: str | tuple[int, int] = "random",
        queries: int = 500,
        alpha: float = 0.4,
        resample: int = 20,
        confidence: float = 5.0,
        seed: int = 0,
        batch: int = 100,
        progress: Callable[[int, int, float], None] | None = None,
    ) -> None:
        for name, value in {"queries": queries, "resample": resample, "batch": batch}.items():
            if not isinstance(value, int) or value < 1:
                raise ParameterError(f"{name} must be a positive int, got {value!r}.")
        if not 0 < alpha <= 1 or not confidence > 0:
            raise ParameterError(f"alpha must lie in (0, 1] and confidence be positive, got {alpha!r}, {confidence!r}.")
        self.view, self.size, self.target, self.place = view, as_size(patch_size), target, place
        self.mask = make_mask("square", self.size)
        self.queries, self.alpha, self.resample, self.confidence = queries, alpha, resample, confidence
        self.seed, self.batch, self.progress = seed, batch, progress

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """The images, each with a patch of its own: float32 (N, C, H, W) in [0, 1]."""
        return self.run(images, labels).images

    @torch.no_grad()
    def run(self, images: Tensor, labels: Tensor, places: Tensor | None = None) -> Queried:
        """A patch of its own for every image; stops asking about an image at its first success.

        Args:
            images: float32 (N, C, H, W) in [0, 1]; not changed. labels: int64 (N,), the true classes.
            places: int64 (N, 2), where the patches stay, so that only pixels are searched: the control for attacks that
                do not move their patches either. None searches for the place as well.
        """
        labels, n = self._check(images, labels), len(images)
        generator, allowed = torch.Generator().manual_seed(self.seed), _region(self.place, images.shape[-2:], self.size)
        free = places is None and int(allowed.sum()) > 1
        pixels = self._stripes(n, images.shape[1], generator)
        drawn = _drawn(allowed.expand(n, -1, -1), generator)
        places = drawn if places is None else check_places(places, images, self.size).cpu()
        lowest, first = torch.full((n,), math.inf), torch.zeros(n, dtype=torch.int64)
        asked, alive = torch.zeros(n, dtype=torch.int64), torch.arange(n)
        for query in range(1, self.queries + 1):
            new_pixels, new_places = pixels, places
            if query > 1 and free and self._moves(query):
                new_places = self._moved(places, allowed, query, generator)
            elif query > 1:
                new_pixels = self._recoloured(pixels, query, generator)
            margin, hit = self._ask(images[alive.to(images.device)], labels[alive], new_pixels[alive], new_places[alive])
            asked[alive] = query
            first[alive[hit]] = query
            kept = alive[hit | (margin <= lowest[alive])]
            lowest[alive] = torch.where(hit, margin, torch.minimum(margin, lowest[alive]))
            pixels, places = pixels.clone(), places.clone()
            pixels[kept], places[kept] = new_pixels[kept], new_places[kept]
            alive = alive[~hit]
            if self.progress is not None:
                self.progress(query, self.queries, len(alive))
            if len(alive) == 0:
                break
        return Queried(paste(images, pixels, self.mask, places), first > 0, asked, first, pixels, places)

    @torch.no_grad()
    def fit(self, images: Tensor, labels: Tensor) -> Patch:
        """One patch for all images, at places that are drawn by the rule."""
        labels, generator = self._check(images, labels), torch.Generator().manual_seed(self.seed)
        pixels, lowest = self._stripes(1, images.shape[1], generator), math.inf
        for query in range(1, self.queries + 1):
            if (query - 1) % self.resample == 0:  # new images and places: the patch so far is judged again
                part = torch.randperm(len(images), generator=generator)[: self.batch]
                places = sample_places(self.place, len(part), images.shape[-2:], self.size, generator)
                seen, truth, candidate = images[part.to(images.device)], labels[part], pixels
                lowest = math.inf
            else:
                candidate = self._recoloured(pixels, query, generator)
            margin, _ = self._ask(seen, truth, candidate.expand(len(seen), -1, -1, -1), places)
            loss = float(margin.clamp(min=-self.confidence).mean())
            if loss <= lowest:
                pixels, lowest = candidate, loss
            if self.progress is not None:
                self.progress(query, self.queries, lowest)
        made_on = {"attack": "SparseRS", "place": self.place if isinstance(self.place, str) else list(self.place),
                   "queries": self.queries, "alpha": self.alpha, "batch": self.batch, "seed": self.seed}  # fmt: skip
        return Patch(pixels[0], self.mask, self.target, made_on)

    # Moves ------------------------------------------------------------------------------------------------------

    def side(self, query: int) -> tuple[int, int]:
        """Height and width of the square that this query recolours: √(α·share) of the patch's, at least a pixel."""
        scaled = query * 10_000 // self.queries
        share = next((share for last, share in SCHEDULE if scaled <= last), SCHEDULE[-1][1])
        return tuple(max(int((self.alpha * share) ** 0.5 * side), 1) for side in self.size)

    def _moves(self, query: int) -> bool:
        """The place is tried every fifth query, and a fifth of the queries less often after each 1,000."""
        return (query - 1) % (5 * (1 + (query - 1) // 1000)) == 0

    def _stripes(self, n: int, channels: int, generator: torch.Generator) -> Tensor:
        colours = torch.randint(2, (n, channels, 1, self.size[1]), generator=generator).float()
        return colours.expand(-1, -1, self.size[0], -1).contiguous()

    def _recoloured(self, pixels: Tensor, query: int, generator: torch.Generator) -> Tensor:
        """All patches (n, C, h, w), each with a square of a random colour at a random offset."""
        n, channels, height, width = pixels.shape
        inside = torch.ones(n, 1, 1, dtype=torch.bool)
        for axis, (length, side) in enumerate(zip((height, width), self.side(query))):
            start = torch.randint(length - side + 1, (n, 1), generator=generator)
            along = (torch.arange(length) >= start) & (torch.arange(length) < start + side)
            inside = inside & along.view((n, length, 1) if axis == 0 else (n, 1, length))
        colour = torch.randint(2, (n, channels, 1, 1), generator=generator).float()
        return torch.where(inside[:, None], colour, pixels)

    def _moved(self, places: Tensor, allowed: Tensor, query: int, generator: torch.Generator) -> Tensor:
        """Other allowed places within the reach of this query, or the same one where there is no other."""
        left = _REACH * (1 - query / self.queries)
        near = allowed.expand(len(places), -1, -1)
        for axis, length in enumerate(allowed.shape):
            reach = int(left * (length + self.size[axis] - 1))
            far = (torch.arange(length) - places[:, axis, None]).abs() > reach
            near = near & ~far.view((-1, length, 1) if axis == 0 else (-1, 1, length))
        own = torch.zeros_like(near)
        own[torch.arange(len(places)), places[:, 0], places[:, 1]] = True
        others = near & ~own
        return _drawn(torch.where(others.flatten(1).any(1)[:, None, None], others, own), generator)

    # Questions --------------------------------------------------------------------------------------------------

    def _ask(self, images: Tensor, labels: Tensor, pixels: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Margins (n,), below zero for a success, and whether the class changed as it should, on the CPU."""
        parts = zip(images.split(self.batch), pixels.split(self.batch), places.split(self.batch))
        scores = torch.cat([self.view(paste(x, p, self.mask, at)).float().cpu() for x, p, at in parts])
        anchor = labels if self.target is None else torch.full_like(labels, self.target)
        others = scores.masked_fill(F.one_hot(anchor, scores.shape[1]).bool(), -math.inf).amax(dim=1)
        margin, shown = scores.gather(1, anchor[:, None])[:, 0] - others, scores.argmax(dim=1)
        return (margin, shown != anchor) if self.target is None else (-margin, shown == anchor)

    def _check(self, images: Tensor, labels: Tensor) -> Tensor:
        check_question(self.view, self.size, self.target, images, labels)
        return labels.cpu()


def _drawn(allowed: Tensor, generator: torch.Generator) -> Tensor:
    """One allowed place per image, evenly: bool (N, rows, columns) → int64 (N, 2)."""
    index = torch.multinomial(allowed.flatten(1).float(), 1, generator=generator)[:, 0]
    return torch.stack([index // allowed.shape[2], index % allowed.shape[2]], dim=1)
