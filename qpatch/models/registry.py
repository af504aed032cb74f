"""The one place that fits our constructors to timm's registry."""

from __future__ import annotations

from collections.abc import Callable

from timm.models import register_model
from torch import nn

from qpatch.errors import InputError


def register(name: str, build: Callable[..., nn.Module], input_size: tuple[int, int, int]) -> None:
    """Register `build` as `timm.create_model(name)`.

    timm passes its own keywords (pretrained configuration, cache folder) to every entry point; they are dropped,
    because our weights come from `qpatch.zoo`. `pretrained=True` is refused with that hint.
    """

    def entry(pretrained: bool = False, **keywords) -> nn.Module:
        if pretrained:
            raise InputError(f"{name} has no timm weights; load trained networks with qpatch.zoo.load(...).")
        for timms_own in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
            keywords.pop(timms_own, None)
        model = build(**keywords)
        model.default_cfg = {"architecture": name, "input_size": input_size, "num_classes": keywords.get("num_classes")}
        return model

    entry.__name__ = name
    entry.__module__ = getattr(build, "func", build).__module__  # a partial has none of its own
    entry.__doc__ = build.__doc__
    register_model(entry)
