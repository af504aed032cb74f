"""Train networks and make patches of the zoo: `python -m qpatch.zoo networks float joint`, `… patches float`."""

from __future__ import annotations

import argparse
import time

import torch

from qpatch import store
from qpatch.allocator import keep_freed_memory
from qpatch.errors import QpatchError, one_of
from qpatch.zoo import networks, patches
from qpatch.zoo.recipes import ENTRIES


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m qpatch.zoo", description=__doc__)
    parser.add_argument("what", choices=("networks", "patches"))
    parser.add_argument("names", nargs="*", default=list(ENTRIES), help="zoo networks; all by default")
    parser.add_argument("--device", default="cpu", help="where networks are trained")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of this process")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    keep_freed_memory()
    try:
        for name in chosen.names:
            one_of(name, ENTRIES, "zoo network")
        for name in chosen.names:
            if chosen.what == "networks":
                networks.ship(name, device=chosen.device)
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


if __name__ == "__main__":
    raise SystemExit(main())
