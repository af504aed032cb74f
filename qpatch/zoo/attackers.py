"""Attackers of a defended network: what each knows, and how far it gets.

Everything here counts stored hits, see `qpatch.zoo.patched`; nothing is attacked anew. Who attacks:

| attacker                  | the patch is made on                                                                  |
|---------------------------|---------------------------------------------------------------------------------------|
| papers' setting           | the undefended network's float view; kind "width": its other widths; "all": 4 bits    |
| white-box, same width     | the defended network, at the width that is attacked                                   |
| white-box, another width  | the defended network, at one of the other widths (mean over them)                     |
| white-box, all widths     | the defended network, at a width drawn anew for each image of each step               |
| surrogate, all widths     | the undefended network, likewise                                                      |
| strongest                 | the best single patch of all of these, seed and source: chosen on one half of the     |
|                           | images, judged on the other. The others are means over seeds: an attack that fails in |
|                           | two starts of three and breaks the network in the third is weak on average only       |
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from qpatch.measure.trials import Trials, crossfit, pooled
from qpatch.quant import WIDTHS
from qpatch.zoo.patched import CONTROLS, Patched
from qpatch.zoo.scenarios import MEAN, OTHER_WIDTH, SURROGATE, Shot

RANDOM = 0
"""The "width" of random precision inference: every image meets a width drawn evenly; its success is the exact mean."""

PAPERS, SAME, OTHER = "papers' setting", "white-box, same width", "white-box, another width"
ALL, FOREIGN, STRONGEST = "white-box, all widths", "surrogate, all widths", "strongest"
ATTACKERS = (PAPERS, SAME, OTHER, ALL, FOREIGN, STRONGEST)
UNDEFENDED = "undefended"
INFERENCE = (*WIDTHS, RANDOM)


def label(network: str) -> tuple[str, int]:
    """The defense and the training seed of a zoo network: "qadtr-s1" is ("qadtr", 1), the surrogate is undefended."""
    name, _, seed = network.partition("-s")
    defense = network if not seed.isdigit() else name
    return (UNDEFENDED if network == SURROGATE else defense), int(seed) if seed.isdigit() else 0


def inference(width: int) -> dict:
    """The columns that say how a network is run: at a fixed width, or at random precision."""
    return {"inference": "random precision" if width == RANDOM else "fixed", "target_bits": width}


def trials(run: Patched, access: str, attack: str, setting: str, source: str, width: int) -> Trials:
    """One kind of patch on one network at one width (or `RANDOM`), over the attack's seeds.

    On the undefended network itself both accesses mean its own patches.

    Raises:
        KeyError: the run has no such patch.
    """
    access = "own" if run.network == SURROGATE else access
    origin = run.network if access == "own" else SURROGATE
    if width == RANDOM:
        return pooled([trials(run, access, attack, setting, source, each) for each in WIDTHS])
    number = WIDTHS.index(width)
    wanted = attack, setting, source
    hits = [hits[number] for shot, hits in _of(run, access) if (shot.attack, shot.setting, shot.source) == wanted]
    if not hits:
        raise KeyError(f"{run.network} has no {access} patches {attack}, {setting}, made at {source}.")
    return Trials.of(torch.stack(hits), run.counts(setting)[number], (origin, attack, setting, source))


def control(run: Patched, setting: str, width: int) -> Trials:
    """The strongest of the patches that nobody optimised, at the places of a setting."""
    if width == RANDOM:
        return pooled([control(run, setting, each) for each in WIDTHS])
    number, counts = WIDTHS.index(width), run.counts(setting)[WIDTHS.index(width)]
    hits = {name: run.controls[setting, name][number][None] for name in CONTROLS}
    found = [Trials.of(hit, counts, ("control", setting, name)) for name, hit in hits.items()]
    return max(found, key=lambda each: each.won.sum())


def met(run: Patched, attacker: str, attack: str, kind: str, width: int) -> Trials | None:
    """What an attacker of the module's table achieves with patches of a kind; None where the table has no such case."""
    choices = _choices(attacker, kind, width)
    if not choices:
        return None
    setting = "seen" if kind == "width" else kind
    if attacker == STRONGEST:  # what stands in front of a network has fewer patches of its own than a network has
        choices = [(access, source) for access, source in choices if _has(run, access, attack, setting, source)]
    found = [trials(run, access, attack, setting, source, width) for access, source in choices]
    if attacker == STRONGEST:
        return crossfit([(single,) for each in found for single in each.singles()], lambda each: each.rate)[0]
    return pooled(found)


def _has(run: Patched, access: str, attack: str, setting: str, source: str) -> bool:
    access = "own" if run.network == SURROGATE else access
    made = ((own, shot.attack, shot.setting, shot.source) for own, shot in run.hits)
    return (access, attack, setting, source) in made


def _of(run: Patched, access: str) -> Iterable[tuple[Shot, Tensor]]:
    return sorted(((shot, hits) for (own, shot), hits in run.hits.items() if own == access), key=lambda x: x[0].seed)


def _choices(attacker: str, kind: str, width: int) -> list[tuple[str, str]]:
    """(access, source) of the patches that an attacker may take; several are averaged, or the strongest is chosen."""
    single = [str(each) for each in WIDTHS]
    if attacker == PAPERS:
        sources = {"width": single[1:], "all": [str(OTHER_WIDTH)]}.get(kind, ["32"])
        return [("surrogate", source) for source in sources]
    if kind == "width":  # where the patch is made is this attacker's own choice
        return []
    if attacker == ALL:
        return [("own", MEAN)]
    if attacker == STRONGEST and kind != "seen":
        return [("own", MEAN), ("surrogate", str(OTHER_WIDTH) if kind == "all" else "32")]
    if kind != "seen":
        return []
    if attacker == SAME:
        return [("own", str(width))] if width != RANDOM else []
    if attacker == OTHER:
        return [("own", source) for source in single if source != str(width)]
    if attacker == FOREIGN:
        return [("surrogate", MEAN)]
    return [(access, source) for access in ("own", "surrogate") for source in (*single, MEAN)]
