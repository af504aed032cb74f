"""Make what the zoo ships: `python -m qpatch.zoo networks tiny`, patches, attacks, sweeps, policies, …"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

import torch

from qpatch import store
from qpatch.allocator import keep_freed_memory
from qpatch.errors import QpatchError, one_of
from qpatch.zoo import (
    adaptive, attacked, black_box, cleaned, comparators, defense_runs, imagenet_runs, networks, patched, patches,
    pixelcnn, policy_runs, pool, specific, sweep,
)  # fmt: skip
from qpatch.zoo.policies import POLICIES
from qpatch.zoo.recipes import COMPARATORS, ENTRIES, NOT_SHIPPED, PATCH_DEFENSES, TRIQDEF_DEFENSES
from qpatch.zoo.scenarios import SURROGATE

ATTACKED = ["cifar10", "coffee"]  # tasks whose attack runs ship
DEFENDED = PATCH_DEFENSES | TRIQDEF_DEFENSES | COMPARATORS
PATCHED = [SURROGATE, *(name for name, entry in ENTRIES.items() if entry.defense in DEFENDED)]


def main() -> int:
    work = _work()
    parser = argparse.ArgumentParser(prog="python -m qpatch.zoo", description=__doc__)
    parser.add_argument("what", choices=work)
    parser.add_argument("names", nargs="*", help="zoo networks, tasks of attacks, sweeps, or policies; all by default")
    parser.add_argument("--device", default="cpu", help="where networks are trained and attacked")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of this process")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    keep_freed_memory()
    os.environ["QPATCH_DEVICE"] = chosen.device
    noun, known, make = work[chosen.what]
    try:
        for name in [one_of(name, known, noun) for name in chosen.names or known]:
            make(name, chosen.device) if chosen.what == "networks" else make(name)
    except QpatchError as error:
        store.say(str(error))
        return 1
    return 0


def _work() -> dict[str, tuple[str, list[str], Callable]]:
    """What can be made: what its names are, all of them, and how one is made."""
    return {
        "networks": ("zoo network", list(ENTRIES), _network),
        "patches": ("zoo network", list(ENTRIES), _patches),
        "pool": ("set of patches", ["pool"], lambda _: pool.ship(networks.load("float").at(32))),
        "attacks": ("attacked task", ATTACKED, _attacks),
        "sweeps": ("sweep", list(sweep.SHIPPED), lambda name: sweep.ship(sweep.SHIPPED[name])),
        "policies": ("policy", list(POLICIES), policy_runs.ship),
        "defenses": ("defense", list(defense_runs.NETWORKS), defense_runs.ship),
        "pixelcnn": ("model of images", ["pixelcnn"], lambda _: pixelcnn.ship()),
        "cleaned": ("set of images", ["cleaned"], lambda _: cleaned.ship()),
        "patched": ("patched network", PATCHED, patched.ship),
        "specific": ("patched network", PATCHED, specific.ship),
        "black-box": ("patched network", PATCHED, black_box.ship),
        "adaptive": ("attacked network", list(adaptive.NETWORKS), adaptive.ship),
        "imagenet": ("set of photographs", ["photographs"], lambda _: imagenet_runs.ship()),
        "comparators": ("comparator", ["jedi"], lambda _: comparators.ship()),
    }


def _network(name: str, device: str) -> None:
    (networks.train_entry if name in NOT_SHIPPED else networks.ship)(name, device=device)


def _patches(name: str) -> None:
    """Make and ship every patch of the zoo that is made on this network."""
    wanted = [entry for entry in patches.shipped_entries() if entry.network == name]
    for number, entry in enumerate(wanted, start=1):
        started = time.perf_counter()
        patches.ship(entry)
        store.say(f"{name}: patch {number} of {len(wanted)}, {entry.path.name}, {time.perf_counter() - started:.0f} s")


def _attacks(task: str) -> None:
    """Make and ship every attack run of a task that does not ship yet."""
    for entry in attacked.shipped_entries(task):
        if not entry.path.exists():
            attacked.ship(entry)


if __name__ == "__main__":
    raise SystemExit(main())
