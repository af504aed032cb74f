"""PatchAttack: a patch found by questions alone, mono-coloured or cut from a texture (Yang et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qpatch.attacks.agents import Agents
from qpatch.attacks.patch import as_size, check_fits, make_mask, paste, round_to_bytes
from qpatch.attacks.places import allowed_places, sample_places
from qpatch.checks import check_eval, check_images, check_labels
from qpatch.errors import InputError, ParameterError, one_of

VARIANTS = ("mono", "texture")
POLICIES = ("reinforce", "random")


@dataclass(frozen=True, eq=False)
class Queried:
    """What the queries found, image by image.

    Attributes:
        images: float32 (N, C, H, W), each with the best patch that was asked about.
        success: bool (N,), whether that patch fooled the network when it was asked about.
        queries: int64 (N,), how many questions were asked.
        first: int64 (N,), the question that first succeeded, counted from 1; 0 if none did.
        pixels: float32 (N, C, h, w), the patches. places: int64 (N, 2), where they lie; see `paste`.
    """

    images: Tensor
    success: Tensor
    queries: Tensor
    first: Tensor
    pixels: Tensor
    places: Tensor

    def within(self, budget: int) -> Tensor:
        """Whom a budget of so many questions would have fooled: bool (N,). Budgets are prefixes of each other."""
        return (self.first > 0) & (self.first <= budget)


class QueryPatchAttack:
    """PatchAttack of Yang et al. 2020 (arXiv 2004.05682, code GitHub Chenglin-Yang/PatchAttack), with one patch.

    Each image has an agent that proposes a place and a look of the patch, asks the network, and is rewarded with the
    logarithm of the probability of success: of any class but the true one, or of the target. REINFORCE makes rewarded
    choices more likely. No gradient of the network is ever taken. Variant "mono" (the paper's MPA) chooses a colour;
    "texture" (TPA) chooses a texture of a class and where to cut it.

    Deviations: (1) One patch whose area is that of the white-box attacks, as paper A's 6×6 must mean; the published
    code lets MPA trade area for success and TPA add up to ten patches. (2) The published agent is an LSTM, updated from
    50 batches of 500 queries; here the choices have independent probabilities (the column given the row), updated
    after every query against a moving mean and deviation of the rewards, so that some hundred queries can teach.
    (3) Neighbouring rows, columns and cuts share what is learnt (`smooth`). (4) Colours have `levels` shades per
    channel instead of 255. (5) Untargeted textures may be of any class but the true one, not of one class given.

    Args:
        view: any callable, images (N, C, H, W) in [0, 1] to scores before softmax (N, classes). It is called without
            gradients. A module must be in eval mode.
        patch_size: pixels, an int or (height, width).
        target: the class to show; None makes the attack untargeted.
        place: where the agent may put the patch, see `sample_places`; "random" and "away" leave it the choice.
        variant: one of `VARIANTS`.
        textures: float32 (classes, clusters, C, H, W) in [0, 1], see `texture_dictionary`; for the texture variant.
        queries: the most questions per image.
        policy: "reinforce", or "random": the agent never learns and draws all its choices evenly, the control.
        levels: shades per colour channel, evenly from 0 to 1, brought to bytes.
        lr: step of the choices' logits for a reward one deviation above the mean.
        smooth: how far rows, columns and cuts share what is learnt, in pixels; 0 keeps them apart.
        entropy: weight of the agents' entropy beside the reward.
        life: after so many queries without success an agent forgets what it learnt, because by then it keeps to a few
            choices. The published code lets a new agent add another patch.
        stop_at: an image is finished once a query succeeds with this probability of success. 0, as published, stops at
            the first success; 1 uses the whole budget, for patches that are to be shown to other networks.
        seed: the same call gives the same bytes; an image's draws do not depend on how other images fare.
        batch: images per forward pass.
        progress: called as progress(query, queries, images that go on) after every query.

    Raises:
        InputError: network in train mode, malformed images, labels or textures, patch larger than the image.
        ParameterError: unknown or inconsistent parameters.
    """

    def __init__(
        self,
        view: Callable[[Tensor], Tensor],
        patch_size: int | tuple[int, int] = 6,
        *,
        target: int | None = None,
        place: str | tuple[int, int] = "random",
        variant: str = "mono",
        textures: Tensor | None = None,
        queries: int = 250,
        policy: str = "reinforce",
        levels: int = 4,
        lr: float = 0.3,
        smooth: float = 2.0,
        entropy: float = 0.3,
        life: int = 200,
        stop_at: float = 0.0,
        seed: int = 0,
        batch: int = 100,
        progress: Callable[[int, int, int], None] | None = None,
    ) -> None:
        counts = (("queries", queries, 1), ("levels", levels, 2), ("life", life, 1), ("batch", batch, 1))
        for name, value, least in counts:
            if not isinstance(value, int) or value < least:
                raise ParameterError(f"{name} must be an int of at least {least}, got {value!r}.")
        if not lr > 0 or not smooth >= 0 or not entropy >= 0 or not 0 <= stop_at <= 1:
            raise ParameterError("lr must be positive, smooth and entropy at least 0, and stop_at in [0, 1].")
        if (one_of(variant, VARIANTS, "variant") == "texture") != (textures is not None):
            raise ParameterError("textures belong to variant='texture'; make them with texture_dictionary(...).")
        self.view, self.size, self.target, self.place = view, as_size(patch_size), target, place
        self.mask = make_mask("square", self.size)
        self.variant, self.textures, self.queries, self.levels = variant, textures, queries, levels
        self.policy, self.lr, self.smooth = one_of(policy, POLICIES, "policy"), lr, smooth
        self.entropy, self.life, self.stop_at, self.seed = entropy, life, stop_at, seed
        self.batch, self.progress = batch, progress

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """The images, each with a patch of its own: float32 (N, C, H, W) in [0, 1]."""
        return self.run(images, labels).images

    @torch.no_grad()
    def run(self, images: Tensor, labels: Tensor) -> Queried:
        """Attack every image with a patch of its own.

        Args:
            images: float32 (N, C, H, W) in [0, 1]; not changed. labels: int64 (N,), the true classes.
        """
        labels = self._check(images, labels).cpu()
        n, generator = len(images), torch.Generator().manual_seed(self.seed)
        agents = self._agents(images, labels)
        best, success = torch.full((n,), -math.inf), torch.zeros(n, dtype=torch.bool)
        asked, first = torch.zeros(n, dtype=torch.int64), torch.zeros(n, dtype=torch.int64)
        choices = torch.zeros(n, agents.factors, dtype=torch.int64)
        alive = torch.arange(n)
        for query in range(1, self.queries + 1):
            drawn = agents.draw(alive, generator)
            scores = self._ask(images, alive, drawn)
            reward, hit = self._judge(scores, labels[alive])
            asked[alive] = query
            first[alive[hit & (first[alive] == 0)]] = query
            better = (hit & ~success[alive]) | ((hit == success[alive]) & (reward > best[alive])) | (query == 1)
            index = alive[better]
            best[index], success[index], choices[index] = reward[better], hit[better], drawn[better]
            if self.policy == "reinforce":
                agents.learn(alive, drawn, reward)
            if query % self.life == 0:
                agents.forget()
            alive = alive[~(hit & (reward.exp() >= self.stop_at)) | (self.stop_at == 1)]
            if self.progress is not None:
                self.progress(query, self.queries, len(alive))
            if len(alive) == 0:
                break
        pixels, places = self._pixels(choices), choices[:, :2]
        adversarial = paste(images, pixels, self.mask, places)
        return Queried(adversarial, success, asked, first, pixels, places)

    def _check(self, images: Tensor, labels: Tensor) -> Tensor:
        classes = check_question(self.view, self.size, self.target, images, labels)
        if self.textures is not None:
            shape = self.textures.shape
            if len(shape) != 5 or shape[0] != classes or shape[2] != images.shape[1]:
                wanted = f"({classes}, clusters, {images.shape[1]}, H, W)"
                raise InputError(f"textures must have the shape {wanted}, got {tuple(shape)}.")
            check_images(self.textures.flatten(0, 1))
            check_fits(self.size, shape[-2:])
        return labels

    def _agents(self, images: Tensor, labels: Tensor) -> Agents:
        allowed = _region(self.place, images.shape[-2:], self.size)
        even = lambda k: torch.zeros(1, k)  # noqa: E731
        shared = torch.zeros(len(images), dtype=torch.int64)
        rows = (allowed.sum(dim=1).double().log().float()[None], shared, self.smooth)
        columns = (allowed.float().log(), None, self.smooth)
        if self.variant == "mono":
            shade = (even(self.levels), shared, 0.0)
            looks = [shade] * images.shape[1]
        else:
            classes, clusters, _, height, width = self.textures.shape
            same = torch.eye(classes, dtype=torch.bool)
            of_class = torch.zeros(classes, classes).masked_fill(same if self.target is None else ~same, -math.inf)
            key = labels if self.target is None else torch.full_like(labels, self.target)
            cuts = [(even(side - length + 1), shared, self.smooth) for side, length in zip((height, width), self.size)]
            looks = [(of_class, key, 0.0), (even(clusters), shared, 0.0), *cuts]
        return Agents(len(images), [rows, columns, *looks], self.lr, self.entropy)

    def _pixels(self, choices: Tensor) -> Tensor:
        """The patches that choices (n, factors) stand for: (n, C, h, w)."""
        looks, (height, width) = choices[:, 2:], self.size
        if self.variant == "mono":
            return round_to_bytes(looks / (self.levels - 1))[:, :, None, None].expand(-1, -1, height, width)
        kind, cluster, top, left = (part[:, None, None] for part in looks.unbind(dim=1))
        rows, columns = top + torch.arange(height)[:, None], left + torch.arange(width)
        return self.textures.cpu()[kind, cluster, :, rows, columns].permute(0, 3, 1, 2)

    def _ask(self, images: Tensor, alive: Tensor, drawn: Tensor) -> Tensor:
        """The network's scores for the images `alive` with the patches drawn, on the CPU."""
        parts = zip(alive.split(self.batch), drawn.split(self.batch))
        return torch.cat([
            self.view(paste(images[index.to(images.device)], self._pixels(part), self.mask, part[:, :2])).cpu()
            for index, part in parts
        ])  # fmt: skip

    def _judge(self, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The logarithm of the probability of success, and whether the class changed as it should."""
        logs, shown = scores.float().log_softmax(dim=1), scores.argmax(dim=1)
        if self.target is not None:
            return logs[:, self.target], shown == self.target
        return logs.scatter(1, labels[:, None], -math.inf).logsumexp(dim=1), shown != labels


def _region(place: str | tuple[int, int], image_size: Sequence[int], size: tuple[int, int]) -> Tensor:
    """Where the patch may lie: bool, one entry per top-left corner."""
    if place in ("random", "away"):
        return allowed_places(place, tuple(image_size), size)
    allowed = torch.zeros(image_size[0] - size[0] + 1, image_size[1] - size[1] + 1, dtype=torch.bool)
    corners = ("top_left", "top_right", "bottom_left", "bottom_right")
    for kind in corners if place == "corner" else (place,):
        row, column = sample_places(kind, 1, tuple(image_size), size)[0]
        allowed[row, column] = True
    return allowed


def check_question(view, size: tuple[int, int], target: int | None, images: Tensor, labels: Tensor) -> int:
    """Check what an attack that only asks is given, and return the number of classes.

    Raises:
        InputError: wrong images or labels, a network in train mode, a patch that does not fit, a class that is not there.
    """
    net = view if isinstance(view, nn.Module) else None
    if net is not None:
        check_eval(net)
    check_images(images, net)
    check_labels(labels, len(images))
    check_fits(size, images.shape[-2:])
    classes = view(images[:1]).shape[1]
    for what, value in {"target": target, "the largest label": int(labels.max())}.items():
        if value is not None and not 0 <= value < classes:
            raise InputError(f"{what} is {value}, but the network has {classes} classes, 0 to {classes - 1}.")
    return classes
