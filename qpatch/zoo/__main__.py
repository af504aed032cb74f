"""Train zoo networks from the command line: `python -m qpatch.zoo float joint [--ship] [--threads 1]`."""

from __future__ import annotations

import argparse

import torch

from qpatch import store
from qpatch.errors import QpatchError, one_of
from qpatch.zoo.networks import FOLDER, train_entry
from qpatch.zoo.recipes import ENTRIES


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m qpatch.zoo", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(ENTRIES), help="networks to train; all by default")
    parser.add_argument("--dataset", default="cifar10", help="cifar10 or shapes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of this process")
    parser.add_argument("--ship", action="store_true", help="copy the result into the package")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    try:
        for name in chosen.names:
            one_of(name, ENTRIES, "zoo network")
        for name in chosen.names:
            tensors, card = train_entry(name, chosen.dataset, device=chosen.device, report=store.say)
            if chosen.ship:
                card.pop("parts", None)
                store.save_tensors(FOLDER / f"{name}.safetensors", tensors, card)
                store.say(f"{name}: shipped to {FOLDER.name}/")
    except QpatchError as error:
        store.say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
