"""Make what the zoo ships: `python -m qpatch.zoo networks tiny`, patches, attacks, sweeps, policies, …"""

from __future__ import annotations

import argparse
import time

import torch

from qpatch import store
from qpatch.allocator import keep_freed_memory
from qpatch.errors import QpatchError, one_of
from qpatch.zoo import attacked, cleaned, defense_runs, networks, patched, patches, pixelcnn, policy_runs, specific, sweep
from qpatch.zoo.policies import POLICIES
from qpatch.zoo.recipes import ENTRIES, NOT_SHIPPED, PATCH_DEFENSES
from qpatch.zoo.scenarios import SURROGATE

WHAT = ("networks", "patches", "attacks", "sweeps", "policies", "defenses", "pixelcnn", "cleaned", "patched", "specific")
ATTACKED = ["cifar10", "coffee"]  # tasks whose attack runs ship
PATCHED = [SURROGATE, *(name for name, entry in ENTRIES.items() if entry.defense in PATCH_DEFENSES)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m qpatch.zoo", description=__doc__)
    parser.add_argument("what", choices=WHAT)
    parser.add_argument("names", nargs="*", help="zoo networks, tasks of attacks, sweeps, or policies; all by default")
    parser.add_argument("--device", default="cpu", help="where networks are trained")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of this process")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    keep_freed_memory()
    try:
        if chosen.what in ("pixelcnn", "cleaned"):
            {"pixelcnn": pixelcnn.ship, "cleaned": cleaned.ship}[chosen.what]()
            return 0
        kinds = {"attacks": (ATTACKED, "attacked task"), "policies": (list(POLICIES), "policy"),
                 "sweeps": (list(sweep.SHIPPED), "sweep"), "defenses": (list(defense_runs.NETWORKS), "defense"),
                 "patched": (PATCHED, "patched network"), "specific": (PATCHED, "patched network")}  # fmt: skip
        known, noun = kinds.get(chosen.what, (list(ENTRIES), "zoo network"))
        names = [one_of(name, known, noun) for name in chosen.names or known]
        for name in names:
            if chosen.what == "networks":
                make = networks.train_entry if name in NOT_SHIPPED else networks.ship
                make(name, device=chosen.device)
            elif chosen.what == "attacks":
                _attacks(name)
            elif chosen.what == "sweeps":
                sweep.ship(sweep.SHIPPED[name])
            elif chosen.what == "policies":
                policy_runs.ship(name)
            elif chosen.what == "defenses":
                defense_runs.ship(name)
            elif chosen.what == "patched":
                patched.ship(name)
            elif chosen.what == "specific":
                specific.ship(name)
            else:
                _patches(name)
    except QpatchError as error:
        store.say(str(error))
        return 1
    return 0


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
