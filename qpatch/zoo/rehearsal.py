"""What notebooks 22 and 23 do in front of the reader: training steps watched, and small attacks made on the spot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import combinations

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qpatch import data, training
from qpatch.defenses import QADTR, RandomPrecision
from qpatch.measure.gradients import input_gradients
from qpatch.measure.success import predict
from qpatch.measure.trials import Trials, contrast, pooled
from qpatch.quant import WIDTHS, MultiBit
from qpatch.training import Batch, Loss
from qpatch.zoo import networks, specific
from qpatch.zoo.attackers import ALL, INFERENCE, RANDOM, inference, met, trials
from qpatch.zoo.comparisons import training_gap
from qpatch.zoo.losses import make_loss
from qpatch.zoo.patched import Patched, judged, made_patches, remade, shown
from qpatch.zoo.patches import evaluation_subset
from qpatch.zoo.recipes import entry
from qpatch.zoo.scenarios import ATTACKS, MEAN, SURROGATE, Shot, attacked_view, deployed_views
from qpatch.zoo.specific import Specific


class Rehearsal:
    """Small pieces of the long runs, done now, on the same images and with the same rules as the stored results.

    Args:
        dataset: "cifar10" or "shapes".
        retrain: use networks that were trained anew.

    Attributes:
        images, labels: the test images that every stored hit refers to.
    """

    def __init__(self, dataset: str = "cifar10", retrain: bool = False):
        self.dataset, self.retrain = dataset, retrain
        test = data.load(dataset, "test")
        self.images, self.labels = test.take(evaluation_subset(test))

    @cached_property
    def train(self) -> data.Dataset:
        return data.load(self.dataset, "train")

    def training_steps(self, network: str, steps: int, batch: int = 64) -> pd.DataFrame:
        """The first steps of a defense's training, from the network that it starts from, with every pass written down.

        Args:
            network: a defense of paper B; its own loss and recipe are used, with smaller batches and no warm-up.

        Returns:
            one row per pass through a view: network, step, number (of the pass in its step), width, role ("attacked": an
            iteration of the inner attack; "trained": the loss), loss (of the whole step). Moves that the place search
            only tries are left out.
        """
        wanted, net = entry(network, self.dataset), self._load(entry(network, self.dataset).start)
        part = data.balanced_subset(self.train, steps * batch)
        few = replace(self.train, images=self.train.images[part], labels=self.train.labels[part])
        recipe = replace(wanted.recipe, epochs=1, batch_size=batch, warmup=0.0)
        watched = _Watched(make_loss(wanted, self._load), net)
        training.train(net, watched, few, recipe, report=lambda line: None)
        return pd.DataFrame(watched.rows).assign(network=network)

    def gradient_rows(self, names: Sequence[str], images: int, widths: Sequence[int] = WIDTHS) -> pd.DataFrame:
        """What an attacker's gradient is worth on deployed networks: cosines of ∇ₓ of the cross-entropy, image by image.

        Returns:
            one row per network and comparison: value, low, high (normal interval over images), n. Compared are "two
            passes" (the same view twice), "two widths" (mean over all pairs), and "another image" (chance: the float
            view's gradient for the next image).
        """
        found, (x, y) = [], self._some(images)
        for name in names:
            views = deployed_views(name, self.dataset, self.retrain)
            first, second = ({w: input_gradients(views[w], x, y).flatten(1).double() for w in widths} for _ in range(2))
            cosine = lambda a, b: F.cosine_similarity(a, b, dim=1, eps=1e-30)  # noqa: E731
            compared = {
                "two passes": torch.stack([cosine(first[w], second[w]) for w in widths]).mean(0),
                "two widths": torch.stack([cosine(first[a], first[b]) for a, b in combinations(widths, 2)]).mean(0),
                "another image": cosine(first[32], first[32].roll(1, 0)),
            }
            for what, values in compared.items():
                mean, half = float(values.mean()), 1.96 * float(values.std()) / len(values) ** 0.5
                origin = {"dataset": self.dataset, "network": name, "compared": what}
                found.append({**origin, "value": mean, "low": mean - half, "high": mean + half, "n": len(values)})
        return pd.DataFrame(found)

    def remade_rows(self, run: Patched, shot: Shot, steps: int | None = None) -> pd.DataFrame:
        """A stored patch made once more from the same seed, and both judged.

        Another number of threads may give another patch; it should not be a weaker one.

        Returns:
            one row per width: stored and now (success), difference with low and high, agree (share of the images that
            count on which the two say the same), n.
        """
        pixels = remade(run.network, shot, self.dataset, steps=steps, retrain=self.retrain)
        stored, again, found = run.hits["own", shot], self._judged(run.network, shot, pixels), []
        for number, width in enumerate(WIDTHS):
            counts = run.counts(shot.setting)[number]
            before, now = Trials.of(stored[number][None], counts, "stored"), Trials.of(again[number][None], counts, "now")
            gap = contrast((1, now), (-1, before))
            agree = float((stored[number] == again[number])[counts].float().mean())
            found.append({"target_bits": width, "stored": before.rate, "now": now.rate, "difference": gap.value,
                          "low": gap.low, "high": gap.high, "agree": agree, "n": gap.n})  # fmt: skip
        return pd.DataFrame(found)

    def drawn_rows(self, run: Patched, shot: Shot, draws: int) -> pd.DataFrame:
        """Random precision inference, really drawn: success of a patch made on this network, beside its exact mean.

        The clean and the patched image meet the same width, as in the exact mean; every draw gives each image a new one.

        Returns:
            one row per draw: draw, drawn (success), exact, n.
        """
        views, found = deployed_views(run.network, self.dataset, self.retrain), []
        pixels = made_patches(run.network, self.dataset, seeds=shot.seed + 1, retrain=self.retrain)[shot]
        patched = shown(shot, pixels, self.images)
        exact = float(trials(run, "own", shot.attack, shot.setting, shot.source, RANDOM).by_seed[shot.seed])
        for draw in range(draws):
            right = predict(RandomPrecision(views, draw), self.images) == self.labels
            hit = predict(RandomPrecision(views, draw), patched) != self.labels
            found.append({"draw": draw, "drawn": float(hit[right].float().mean()), "exact": exact, "n": int(right.sum())})
        return pd.DataFrame(found)

    def step_rows(self, runs: Mapping[str, Specific], steps: Sequence[int], images: int) -> pd.DataFrame:
        """Does an attacker with more patience get past a defense? A patch for each image, with fewer and more steps.

        The patches are LaVAN's, made on all widths of the network. One of the points is the stored run.

        Args:
            runs: image-specific results by network. steps: of the attacks that are made now. images: the first ones.

        Returns:
            one row per network and number of steps: value (success, expectation over the widths), low, high, n.
        """
        found = []
        for name, run in runs.items():
            hits = {run.card["attack"]["steps"]: run.hits[MEAN][:, :images]}
            for count in steps:
                views = deployed_views(name, self.dataset, self.retrain)
                part = self.images[:images], self.labels[:images]
                hits[count] = specific.hits_after(count, attacked_view(views, MEAN), views, *part)
            for count, hit in sorted(hits.items()):
                value = contrast((1, replace(run, right=run.right[:, :images], hits={MEAN: hit}).trials(MEAN, RANDOM)))
                found.append({"dataset": self.dataset, "network": name, "attack": "LaVAN", "steps": count, **value._asdict()})
        return pd.DataFrame(found)

    def gir_rows(self, runs: Mapping[str, Patched], names: Sequence[str], without: str) -> pd.DataFrame:
        """Does GIR make a network harder to fool, or only harder to attack through its own gradient?

        Three comparisons per network, attack and width, for seen patches that were made on all widths of a network:

        - "own patches": success of its own patches on the network without GIR, minus the same on this one. Above 0, GIR
          helps against the attacker who follows its gradient.
        - "borrowed patches": success on *this* network of patches made on the network without GIR, minus that of its
          own. Above 0, the way around its gradients leads farther than through them: GIR hides the gradient and leaves
          the weakness.
        - "surrogate's patches": the same with patches of the undefended network.

        Args:
            runs: all networks by name. names: those with GIR. without: the same defense without it.

        Returns:
            one row each: value, low, high, n, seeds; for "own patches" also training_gap and margin, margin_low and
            margin_high, the value minus twice the gap.
        """
        found, seeds = [], len({shot.seed for _, shot in runs[without].hits})
        patches = made_patches(without, self.dataset, seeds=seeds, retrain=self.retrain)
        for name, attack in ((name, attack) for name in names for attack in ATTACKS):
            shots, run = [Shot(attack, "seen", MEAN, seed) for seed in range(seeds)], runs[name]
            borrowed = torch.stack([self._judged(name, shot, patches[shot]) for shot in shots])
            gap = training_gap(runs, ALL, attack, "seen")
            for width in INFERENCE:
                own, bare = (met(runs[each], ALL, attack, "seen", width) for each in (name, without))
                foreign = trials(run, "surrogate", attack, "seen", MEAN, width)
                values = {
                    "own patches": contrast((1, bare), (-1, own)),
                    "borrowed patches": contrast((1, _at(borrowed, run, width, without)), (-1, own)),
                    "surrogate's patches": contrast((1, foreign), (-1, own)),
                }
                beyond = np.subtract(values["own patches"][:3], 2 * gap)
                margin = dict(zip(("margin", "margin_low", "margin_high"), beyond))
                for compared, value in values.items():
                    origin = {"dataset": self.dataset, "network": name, "attack": attack, "compared": compared}
                    extra = {"training_gap": gap, **margin} if compared == "own patches" else {}
                    found.append({**origin, **inference(width), **value._asdict(), **extra})
        return pd.DataFrame(found)

    def adaptive_rows(self, images: int, iterations: int, step: float = 0.05) -> pd.DataFrame:
        """A-QAPA as an attack: one patch per image on the undefended network, by the inner attack of the training.

        Patches are made on the float view, on the attacked width itself ("own"), on a width drawn anew at every
        iteration ("all"), or adaptively; all from the same start at the same places.

        Returns:
            rows like those of `comparisons.made_at_rows`, of scope "image-specific".
        """
        net, batch, made = self._load(SURROGATE), Batch(*self._some(images)), {}
        for name, rule in (("float", "float"), ("own", "own"), ("all", "random"), ("adaptive", "adaptive")):
            attack = QADTR(made_at=rule, gir="none", share=1.0, iterations=iterations, step=step)
            for targets in [(width,) for width in WIDTHS] if rule == "own" else [WIDTHS]:
                patched = attack.patched(net, batch, targets, torch.Generator().manual_seed(0))
                for width in targets:
                    right, hit = (predict(net.at(width), x) == batch.labels for x in (batch.images, patched))
                    made[name, width] = Trials.of(~hit[None], right, name)
        found = []
        for width in WIDTHS:
            values = {(name, "success"): contrast((1, each)) for (name, at), each in made.items() if at == width}
            for name, base in (("all", "float"), ("all", "own"), ("adaptive", "float"), ("adaptive", "own")):
                values[name, f"gain over {base}"] = contrast((1, made[name, width]), (-1, made[base, width]))
            for (name, compared), value in values.items():
                origin = {"dataset": self.dataset, "scope": "image-specific", "attack": "inner", "made_at": name}
                found.append({**origin, "compared": compared, "target_bits": width, **value._asdict()})
        return pd.DataFrame(found)

    def _load(self, name: str) -> MultiBit:
        return networks.load(name, self.dataset, retrain=self.retrain)

    def _some(self, number: int) -> tuple[Tensor, Tensor]:
        """Some of the images, spread evenly."""
        chosen = torch.linspace(0, len(self.labels) - 1, min(number, len(self.labels))).long()
        return self.images[chosen], self.labels[chosen]

    def _judged(self, network: str, shot: Shot, pixels: Tensor) -> Tensor:
        """Whom a patch fools on a network as it is deployed: bool (W, N)."""
        return judged(deployed_views(network, self.dataset, self.retrain), shot, pixels, self.images, self.labels)


class _Watched:
    """A loss that writes down which views it looks at."""

    def __init__(self, loss: Loss, net: MultiBit):
        self.loss, self.rows, self.passes = loss, [], []
        self.adjust_gradients = getattr(loss, "adjust_gradients", lambda net, step: None)
        for width in net.bits:
            net.at(width).register_forward_hook(lambda view, *_, width=width: self._note(view, width))

    def _note(self, view: nn.Module, width: int) -> None:
        if torch.is_grad_enabled():  # without: a move of the place search, which is only tried
            self.passes.append((width, "trained" if view.training else "attacked"))

    def __call__(self, net: MultiBit, batch: Batch, step: int) -> Tensor:
        self.passes.clear()
        value = self.loss(net, batch, step)
        self.rows += [
            {"step": step, "number": number, "width": width, "role": role, "loss": float(value.detach())}
            for number, (width, role) in enumerate(self.passes)
        ]
        return value


def _at(hits: Tensor, run: Patched, width: int, origin: str, setting: str = "seen") -> Trials:
    """Trials from bool (S, W, N) at one width, or at random precision."""
    counts = run.counts(setting)
    numbers = range(len(WIDTHS)) if width == RANDOM else [WIDTHS.index(width)]
    return pooled([Trials.of(hits[:, number], counts[number], origin) for number in numbers])
