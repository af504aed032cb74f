"""The way of a patch to a device: a float tensor, a PNG file, and an integer network that is shown it.

| form                | the file                                         | the fake-quantized network beside it          |
|---------------------|--------------------------------------------------|-----------------------------------------------|
| int8                | paper C's policy, from the float view            | the same scales, in floats (`measure.device`) |
| int16x8             | the same with int16 activations                  | the same                                      |
| int8, 4-bit weights | int8 activations, packed int4 weights            | the same                                      |
| W8A8 … W2A2         | the view's own codes and ranges (`tflite.export`) | the view itself, as in papers A and B         |
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qpatch import data
from qpatch.attacks import LaVAN, Patch, grey_patch, make_mask, paste, sample_places
from qpatch.attacks.controls import noise_pixels, photo_pixels
from qpatch.errors import ParameterError, one_of
from qpatch.measure.device import Answers, Simulation, answers
from qpatch.quant import tflite
from qpatch.zoo.calibration import calibration_images
from qpatch.zoo.networks import load
from qpatch.zoo.printed import printed, printed_each

CONVERTED = {"int8": ("int8", 8), "int16x8": ("int16", 8), "int8, 4-bit weights": ("int8", 4)}
VIEWS = {f"W{bits}A{bits}": bits for bits in (8, 5, 4, 2)}
FORMS = (*CONVERTED, *VIEWS)
INTERPRETERS = {"tflm": "TFLite Micro", "litert": "LiteRT"}
FLOAT, FAKE, INTEGERS = "float", "fake-quantized", "integers"
CLEAN, TENSOR, PRINT = "clean", "float patch", "printed patch"
CONTROLS = ("noise", "grey", "photo")
CHAIN = (
    ("float tensor, float network", FLOAT, TENSOR),
    ("float tensor, fake-quantized", FAKE, TENSOR),
    ("8-bit PNG, fake-quantized", FAKE, PRINT),
    ("8-bit PNG, integers", INTEGERS, PRINT),
    ("8-bit PNG, TFLite Micro", INTERPRETERS["tflm"], PRINT),
    ("8-bit PNG, LiteRT", INTERPRETERS["litert"], PRINT),
)
"""(step, network, pictures), in order; "integers" is the emulator."""

_PHOTOS = 100  # training images from which control photographs are taken
_FIT_IMAGES = 10_000  # training images that a universal patch is made on
_OPTIONS = {"lr": 0.1, "batch": 64}  # of the zoo's universal LaVAN patches


@dataclass(frozen=True)
class Deployment:
    """A zoo network in one form.

    Attributes:
        network: of the zoo.
        form: one of `FORMS`.
        source: the float view, on which papers A to C make their attacks.
        fake: the fake-quantized network.
        file: the .tflite.
    """

    network: str
    form: str
    source: nn.Module
    fake: nn.Module
    file: bytes

    @property
    def name(self) -> str:
        """As in tables: "joint W2A2"."""
        return f"{self.network} {self.form}"

    @property
    def attackable(self) -> nn.Module:
        """What an attacker who knows the device takes gradients from: the view, or the twin of the file's integers."""
        return self.fake if self.form in VIEWS else tflite.twin(self.file)

    def networks(self, engines: tuple[str, ...] = ()) -> dict[str, nn.Module]:
        """The networks of the chain by their names there: "integers" or, if `engines` are given, these interpreters."""
        if engines:
            return {INTERPRETERS[engine]: tflite.network(self.file, engine) for engine in engines}
        return {FLOAT: self.source, FAKE: self.fake, INTEGERS: tflite.network(self.file)}


def deployment(
    name: str, dataset: str = "cifar10", *, calibration: Tensor | None = None, retrain: bool = False
) -> Deployment:
    """A network in the form that its name says: "tiny int8", "joint W2A2".

    Args:
        calibration: images that choose the ranges; None takes the zoo's, see `calibration_images`.

    Raises:
        ParameterError: unknown network or form, or a view that the network does not have.
        InputError: a view that cannot be exported, see `export`.
    """
    network, _, form = name.partition(" ")
    one_of(form, FORMS, "form of a deployed network")
    net = load(network, dataset, retrain=retrain)
    source = net.at(32)
    if calibration is None:
        calibration = calibration_images(data.load(dataset, "train"))
    if form in VIEWS:
        view = net.at(VIEWS[form])
        return Deployment(network, form, source, view, tflite.export(view, calibration))
    file = tflite.convert(source, calibration, *CONVERTED[form])
    return Deployment(network, form, source, Simulation(file), file)


class Bench:
    """The same test images, places and printed controls for every network.

    Args:
        dataset: "cifar10" or "shapes".
        n: number of test images, class-balanced.
        size: of the patch, in pixels.
        seed: of places, controls and patches.

    Attributes:
        images, labels: float32 (n, C, H, W) in [0, 1] and int64 (n,).
        places: int64 (n, 2), where the patches lie.
        controls: "noise", "grey" and "photo" → the images with such a square, after a PNG file.
    """

    def __init__(self, dataset: str, n: int, size: int = 6, seed: int = 0):
        if n < 1:
            raise ParameterError(f"the number of images must be positive, got {n!r}.")
        self.dataset, self.size, self.seed = dataset, size, seed
        self.train, test = data.load(dataset, "train"), data.load(dataset, "test")
        self.images, self.labels = test.take(data.balanced_subset(test, n))
        self.mask = make_mask("square", size)
        generator = torch.Generator().manual_seed(seed)
        self.places = sample_places("random", n, self.images.shape[-2:], size, generator)
        photos = self.train.take(data.balanced_subset(self.train, _PHOTOS))
        channels = self.images.shape[1]
        squares = {"noise": noise_pixels(n, channels, size, seed), "photo": photo_pixels(n, *photos, None, size, seed),
                   "grey": grey_patch(size, channels).pixels.repeat(n, 1, 1, 1)}  # fmt: skip
        self.controls = {name: self.pasted(printed_each(squares[name])) for name in CONTROLS}

    def pasted(self, pixels: Tensor, places: Tensor | None = None) -> Tensor:
        """The images with a patch (C, h, w) for all, or one for each (n, C, h, w), at the bench's or other places."""
        return paste(self.images, pixels, self.mask, self.places if places is None else places)

    def fit(self, net: nn.Module, steps: int = 200) -> Patch:
        """A universal, untargeted LaVAN patch made on training images, as a float tensor that nobody has rounded."""
        count = min(_FIT_IMAGES, len(self.train) // 10 * 10)
        attack = LaVAN(net, self.size, steps=steps, seed=self.seed, rounded=False, **_OPTIONS)
        return attack.fit(*self.train.take(data.balanced_subset(self.train, count, seed=0)))

    def pictures(self, patch: Patch) -> dict[str, Tensor]:
        """Everything that a network of the chain is shown, by name: clean, float patch, printed patch, controls."""
        shown = {CLEAN: self.images, TENSOR: self.pasted(patch.pixels), PRINT: self.pasted(printed(patch).pixels)}
        return shown | self.controls

    def pictures_each(self, net: nn.Module, steps: int = 40) -> dict[str, Tensor]:
        """The same with a LaVAN patch for each image, printed on a sheet; without controls.

        The patches lie at places of their own.
        """
        attack = LaVAN(net, self.size, steps=steps, seed=self.seed, rounded=False, lr=_OPTIONS["lr"])
        pixels, places = attack.fit_each(self.images, self.labels)
        shown = {TENSOR: pixels, PRINT: printed_each(pixels)}
        return {CLEAN: self.images} | {name: self.pasted(squares, places) for name, squares in shown.items()}

    def calibrations(self, patch: Patch) -> dict[str, Tensor]:
        """The zoo's calibration images alone, and with themselves under a square of noise, or under the patch."""
        images = calibration_images(self.train)
        generator = torch.Generator().manual_seed(self.seed + 1)
        places = sample_places("random", len(images), images.shape[-2:], self.size, generator)
        noise = noise_pixels(len(images), images.shape[1], self.size, self.seed)
        squares = {"clean and noise-patched images": noise, "clean and patched images": printed(patch).pixels}
        under = {name: paste(images, pixels, self.mask, places) for name, pixels in squares.items()}
        return {"clean images": images} | {name: torch.cat([images, also]) for name, also in under.items()}

    def ask(self, deployed: Deployment, shown: dict[str, Tensor], engines: tuple[str, ...] = ()) -> Answers:
        """The logits of the deployment's networks on these pictures; the slow interpreters see no controls."""
        given = answers(deployed.networks(), shown)
        if engines:
            given |= answers(deployed.networks(engines), {name: shown[name] for name in (CLEAN, PRINT)})
        return given
