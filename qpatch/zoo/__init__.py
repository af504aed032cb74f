"""Trained networks and patches that ship with the package, each with a card: `zoo.load("joint").at(4)`."""

from qpatch.zoo.networks import card, load, shipped, train_entry
from qpatch.zoo.recipes import ENTRIES, Entry

__all__ = ["ENTRIES", "Entry", "card", "load", "shipped", "train_entry"]
