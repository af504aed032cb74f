"""Long attack runs as per-image results: who is fooled, on float, int16 and int8, and by how much noise.

Thousands of queries per image take hours, so what ships is one small table per run, with a card that says how it was
made. `python -m qpatch.zoo attacks cifar10` makes it again, in parts that are kept: an interrupted run goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from qpatch import store
from qpatch.attacks import pixel
from qpatch.attacks.pixel import ATTACKS, Probabilities, published
from qpatch.errors import ParameterError, one_of
from qpatch.measure.distortion import NORMS, distortion, kept
from qpatch.measure.success import predict
from qpatch.quant import tflite
from qpatch.zoo import networks
from qpatch.zoo.calibration import calibration_images
from qpatch.zoo.deployed import PRECISIONS, files
from qpatch.zoo.tasks import TASKS

FOLDER = Path(__file__).parent / "attacked"
IMAGES = {"gradient": 500, "query": 100}  # the first so many test images; all networks see the same
COFFEE = ("PGD", "DeepFool", "CW-L2", "CW-Linf", "EAD", "Square-Linf")  # 224 pixels: what takes minutes, on 100 images
SHORTER = {"AutoAttack": {"queries": 1000}, "Boundary": {"steps": 200}}  # than published, in every run, to save hours
VARIANTS: dict[str, dict[str, dict]] = {
    "published": {},
    "int8 step": {"ZOO": {"h": 1 / 255}, "GeoDA": {"sigma": 1 / 255}},  # probes that an int8 network can notice
}
SMOKE = {  # on procedural images: a smoke run shows that everything works, not how well
    "PGD": {"restarts": 2}, "DeepFool": {"steps": 20}, "AutoAttack": {"steps": 5, "queries": 50}, "ZOO": {"binary_steps": 1},
    "Square-L2": {"steps": 50}, "Square-Linf": {"steps": 50}, "Boundary": {"steps": 10}, "GeoDA": {"queries": 600},
}  # fmt: skip
_ONE_BY_ONE = 10  # images per kept part where the library takes them one by one
_EXAMPLES = 4  # adversarial images that are kept of each run, where they are small
_EXAMPLE_VALUES = 5_000  # what small means: values per image


@dataclass(frozen=True)
class AttackEntry:
    """One run of one attack on one network.

    Attributes:
        attack: one of `qpatch.attacks.pixel.ATTACKS`.
        made_on: "float", "int16" or "int8": where it is made. A gradient attack on an integer network goes through its
            twin, a query attack asks the integer network itself.
        task: one of `qpatch.zoo.TASKS`: the data, the network, and whose parameters apply.
        variant: "published", or "int8 step" for ZOO and GeoDA with probes of one step of an int8 input.
        images: the first so many test images; None takes 500 for gradient and 100 for query attacks, 100 on coffee.
        seed: of all random draws.
    """

    attack: str
    made_on: str = "float"
    task: str = "cifar10"
    variant: str = "published"
    images: int | None = None
    seed: int = 0

    def __post_init__(self):
        one_of(self.attack, ATTACKS, "attack")
        one_of(self.made_on, PRECISIONS, "precision")
        one_of(self.task, TASKS, "task")
        if self.variant != "published" and self.attack not in VARIANTS[one_of(self.variant, VARIANTS, "variant")]:
            raise ParameterError(f"{self.attack} has no variant {self.variant!r}; take 'published'.")

    @property
    def n(self) -> int:
        """Number of images."""
        return self.images or IMAGES["query" if self.task == "coffee" else ATTACKS[self.attack].kind]

    @property
    def overrides(self) -> dict[str, object]:
        """What is not as published."""
        shorter = SMOKE if self.task == "shapes" else SHORTER
        return shorter.get(self.attack, {}) | VARIANTS[self.variant].get(self.attack, {})

    @property
    def path(self) -> Path:
        """Where it lies in the package."""
        tag = "" if self.variant == "published" else "-" + self.variant.replace(" ", "-")
        return FOLDER / self.task / f"{self.attack.lower()}-{self.made_on}{tag}.safetensors"


@dataclass(frozen=True, eq=False)
class Target:
    """A task's network at its three precisions, as every run sees it."""

    float: nn.Module
    files: dict[str, bytes]

    def scores(self, precision: str) -> nn.Module:
        """Images to probabilities: the integers themselves, or the float network with a softmax."""
        return Probabilities(self.float) if precision == "float" else tflite.network(self.files[precision])

    def logits(self, precision: str) -> nn.Module:
        """Images to logits with a gradient: the float network, or the twin of an integer one."""
        return self.float if precision == "float" else tflite.twin(self.files[precision])

    @property
    def fingerprints(self) -> dict[str, str]:
        """What tells one target from another."""
        numbers = {name: torch.frombuffer(bytearray(data), dtype=torch.uint8) for name, data in self.files.items()}
        return {"float": store.tensors_fingerprint(self.float.state_dict())} | {
            name: store.tensors_fingerprint({"file": content}) for name, content in numbers.items()
        }


@cache
def target(task: str, retrain: bool = False) -> Target:
    """The network of a task, with its int16 and int8 files, calibrated on training images.

    Raises:
        DataError: the task's data are not on this machine; the message says how to get them.
    """
    chosen = TASKS[one_of(task, TASKS, "task")]
    net = chosen.network(retrain)
    return Target(net, files(net, calibration_images(chosen.load("train"))))


def load_attacked(
    entry: AttackEntry, *, retrain: bool = False, progress: Callable[[str], None] | None = None
) -> pd.DataFrame:
    """Per-image results of a run: the shipped ones, or ones made now and kept in the store.

    Args:
        entry: which run; one with fewer images than the shipped run gets the first of them.
        retrain: make it anew, from the (retrained, if that is in the store) network.
        progress: gets a line per finished part.

    Returns:
        One row per image: image (index in the test split), label; for each of float, int16 and int8 the predicted
        class when clean, under attack (`adv_…`) and under the same noise with its values shuffled over the image
        (`noise_…`), and the distortion as that network receives it (`l0_…` to `linf_…`, in [0, 1] units); the part of
        the noise that survives input rounding (`kept_int16`, `kept_int8`, see `measure.distortion.kept`); `queries`,
        the images that the attacked network evaluated for this one (0 for gradient attacks).

    Raises:
        DataError: it must be made and the task's data are not on this machine.
        StoreError: a shipped run is damaged.
    """
    return _frame(_load(entry, retrain, progress)[0])


def remake(entry: AttackEntry, image: int, retrain: bool = False) -> pd.DataFrame:
    """One row of `load_attacked`, computed again from scratch.

    It repeats the row where images do not share random draws: for attacks without chance (DeepFool, both C&W, EAD) up
    to the last digits of a sum, and for those that a library runs one by one (ZOO, Boundary, GeoDA).
    """
    return _frame(_part(entry, target(entry.task, retrain), image, image + 1)[0])


def load_examples(entry: AttackEntry, *, retrain: bool = False) -> Tensor:
    """The first few adversarial images of a run, float32 in [0, 1], to 1/65,535; none of large images."""
    return _load(entry, retrain, None)[0]["examples"].float() / 65535


def card(entry: AttackEntry) -> dict:
    """How a shipped run was made: parameters, what is not as published, seconds, versions, commit.

    Raises:
        StoreError: it does not ship, or its files are damaged.
    """
    return store.load_tensors(entry.path)[1]


def shipped_entries(task: str) -> list[AttackEntry]:
    """Every run that ships for a task: all attacks on all three precisions, and the variant with probes of an int8 step.

    That variant is for float and int8: on int16 the published probes are three and seven input steps long already.
    Coffee has those of `COFFEE`, on float and int8.
    """
    if task == "coffee":
        return [AttackEntry(name, on, task) for on in ("float", "int8") for name in COFFEE]
    entries = [AttackEntry(name, on, task) for on in PRECISIONS for name in ATTACKS]
    return entries + [AttackEntry(name, on, task, "int8 step") for on in ("float", "int8") for name in VARIANTS["int8 step"]]


def ship(entry: AttackEntry, progress: Callable[[str], None] | None = store.say) -> None:
    """Make a run from the shipped network, or take it from the store, and write it into the package."""
    tensors, made = _make(entry, False, progress)
    store.save_tensors(entry.path, tensors, made)


def _load(entry: AttackEntry, retrain: bool, progress) -> tuple[dict[str, Tensor], dict]:
    if entry.path.exists() and not retrain:
        tensors, made = store.load_tensors(entry.path)
        if made["entry"]["seed"] == entry.seed and made["entry"]["images"] >= entry.n:
            return {name: values[: entry.n] for name, values in tensors.items()}, made
    return _make(entry, retrain, progress)


def _make(entry: AttackEntry, retrain: bool, progress) -> tuple[dict[str, Tensor], dict]:
    """All parts of a run, each from the store or made now, and its card."""
    aim, parts = target(entry.task, retrain), []
    for first, last in _parts(entry):
        done, made = store.fetch("attacked", _key(entry, aim, first, last), lambda: _part(entry, aim, first, last))
        parts.append((done, made["seconds"]))
        if progress:
            fooled = (done[f"adv_{entry.made_on}"] != done["label"]).sum()
            progress(f"{entry.path.stem}: images {first} to {last} of {entry.n}, {made['seconds']:.0f} s, {fooled} misclassified")
    tensors = {name: torch.cat([part[name] for part, _ in parts]) for name in parts[0][0]}
    tensors["examples"] = tensors["examples"][:_EXAMPLES].clone()
    return tensors, {
        "entry": asdict(entry) | {"images": entry.n},
        "parameters": published(entry.attack, TASKS[entry.task].parameters, **entry.overrides),
        "not_as_published": entry.overrides,
        "library": ATTACKS[entry.attack].library,
        "seconds": round(sum(seconds for _, seconds in parts), 1),
        "threads": torch.get_num_threads(),
        "network": TASKS[entry.task].zoo,
        "fingerprints": aim.fingerprints,
        "data": TASKS[entry.task].load("test").fingerprint,
        "versions": {name: version(name) for name in ("torch", "torchattacks", "adversarial-robustness-toolbox", "numpy")},
        "commit": networks._commit(),
    }


def _parts(entry: AttackEntry) -> Iterator[tuple[int, int]]:
    size = _ONE_BY_ONE if ATTACKS[entry.attack].one_by_one else pixel.BATCH
    for first in range(0, entry.n, size):
        yield first, min(first + size, entry.n)


def _key(entry: AttackEntry, aim: Target, first: int, last: int) -> dict:
    """What determines one part; the number of images is not among it, so that a longer run goes on from a shorter."""
    return {
        "run": {name: value for name, value in asdict(entry).items() if name != "images"},
        "images": [first, last],
        "parameters": published(entry.attack, TASKS[entry.task].parameters, **entry.overrides),
        "fingerprints": aim.fingerprints,
        "data": TASKS[entry.task].load("test").fingerprint,
        "source": store.source_fingerprint(ATTACKS[entry.attack].module, pixel.base, pixel.attack, _part),
    }


def _part(entry: AttackEntry, aim: Target, first: int, last: int) -> tuple[dict[str, Tensor], dict]:
    """Attack the test images first to last − 1, and show the results to all three precisions."""
    started = time.perf_counter()
    images, labels = TASKS[entry.task].load("test").take(slice(first, last))
    judges = {precision: aim.scores(precision) for precision in PRECISIONS}
    queries = ATTACKS[entry.attack].kind == "query"
    net = aim.scores(entry.made_on) if queries else aim.logits(entry.made_on)
    size, made, asked = 1 if ATTACKS[entry.attack].one_by_one else pixel.BATCH, [], []
    for start in range(0, len(images), size):
        part, before = slice(start, start + size), getattr(net, "queries", 0)
        made.append(pixel.attack(entry.attack, net, images[part], labels[part], TASKS[entry.task].parameters,
                                 seed=entry.seed + first + start, **entry.overrides))  # fmt: skip
        share = (net.queries - before) / len(made[-1]) if queries else 0.0
        asked.append(torch.full((len(made[-1]),), share))
    adversarial = torch.cat(made)
    shuffled = shuffle_noise(images, adversarial, entry.seed + first)
    tensors = {"image": torch.arange(first, last, dtype=torch.int32), "label": labels.to(torch.uint8), "queries": torch.cat(asked)}
    for precision, judge in judges.items():
        for name, shown in {"clean": images, "adv": adversarial, "noise": shuffled}.items():
            tensors[f"{name}_{precision}"] = predict(judge, shown).to(torch.uint8)
        norms = distortion(images, adversarial, judge)
        tensors |= {f"{norm}_{precision}": torch.tensor(norms[norm].to_numpy(), dtype=torch.float32) for norm in NORMS}
        if precision != "float":
            tensors[f"kept_{precision}"] = kept(images, adversarial, judge)
    examples = adversarial[:_EXAMPLES] if images[0].numel() <= _EXAMPLE_VALUES and first == 0 else adversarial[:0]
    tensors["examples"] = (examples * 65535).round().to(torch.uint16)
    return tensors, {"seconds": time.perf_counter() - started}


def shuffle_noise(images: Tensor, adversarial: Tensor, seed: int) -> Tensor:
    """The control of every attack: the same changes at other values of the same image, drawn at random.

    So all four norms are those of the attack, up to clipping to [0, 1]. Image k draws from seed + k.
    """
    noise = (adversarial - images).flatten(1)
    orders = [torch.randperm(noise.shape[1], generator=torch.Generator().manual_seed(seed + k)) for k in range(len(noise))]
    moved = noise.gather(1, torch.stack(orders).to(noise.device))
    return (images + moved.view_as(images)).clamp(0, 1)


def _frame(tensors: dict[str, Tensor]) -> pd.DataFrame:
    frame = pd.DataFrame({name: values.numpy() for name, values in tensors.items() if name != "examples"})
    order = ["image", "label", *(f"{kind}_{precision}" for precision in PRECISIONS for kind in ("clean", "adv", "noise", *NORMS)),
             "kept_int16", "kept_int8", "queries"]  # fmt: skip
    small = frame.select_dtypes(["uint8", "int32"]).columns
    return frame.astype(dict.fromkeys(small, "int64"))[order]
