"""How the options of each TFLite operation are named in `graph.Op.options` and in the schema."""

from __future__ import annotations

from typing import Any

from qpatch.quant.tflite.schema import names, numbers, schema

# our option: the schema's attributes; pairs are (height, width)
_STRIDE = {"stride": ("strideH", "strideW")}
_ENUMS = {"padding": "Padding", "fusedActivationFunction": "ActivationFunctionType"}
_ACTIVATION = {"activation": "fusedActivationFunction"}
_WINDOW = {"padding": "padding", **_ACTIVATION, **_STRIDE}
_DILATION = {"dilation": ("dilationHFactor", "dilationWFactor")}

_TABLES: dict[str, tuple[str, dict[str, str | tuple[str, str]]]] = {
    "CONV_2D": ("Conv2DOptions", {**_WINDOW, **_DILATION}),
    "DEPTHWISE_CONV_2D": ("DepthwiseConv2DOptions", {**_WINDOW, **_DILATION, "multiplier": "depthMultiplier"}),
    "FULLY_CONNECTED": ("FullyConnectedOptions", _ACTIVATION),
    "ADD": ("AddOptions", _ACTIVATION),
    "AVERAGE_POOL_2D": ("Pool2DOptions", {**_WINDOW, "filter": ("filterHeight", "filterWidth")}),
    "MAX_POOL_2D": ("Pool2DOptions", {**_WINDOW, "filter": ("filterHeight", "filterWidth")}),
    "SOFTMAX": ("SoftmaxOptions", {"beta": "beta"}),
    "MEAN": ("ReducerOptions", {"keep": "keepDims"}),
    "STRIDED_SLICE": ("StridedSliceOptions", {"begin_mask": "beginMask", "end_mask": "endMask"}),
    "PAD": ("PadOptions", {}),
    "RESHAPE": ("ReshapeOptions", {}),
    "QUANTIZE": ("QuantizeOptions", {}),
}
_FIXED = {"AddOptions": {"potScaleInt16": False}}  # the general int16 addition


def decode(kind: str, table: Any) -> dict[str, Any]:
    """The options of an operation from its schema table; empty for operations that are not listed here."""
    if kind not in _TABLES or table is None:
        return {}
    options = {}
    for ours, theirs in _TABLES[kind][1].items():
        if isinstance(theirs, tuple):
            options[ours] = tuple(int(getattr(table, name)) for name in theirs)
        elif theirs in _ENUMS:
            options[ours] = names(_ENUMS[theirs])[getattr(table, theirs)]
        else:
            options[ours] = getattr(table, theirs)
    if kind == "STRIDED_SLICE":
        options["other_masks"] = table.ellipsisMask | table.newAxisMask | table.shrinkAxisMask
    return options


def encode(kind: str, options: dict[str, Any]) -> tuple[int, Any]:
    """The union type and the schema table of an operation's options."""
    name, fields = _TABLES[kind]
    table = getattr(schema(), f"{name}T")()
    for attribute, value in _FIXED.get(name, {}).items():
        setattr(table, attribute, value)
    for ours, theirs in fields.items():
        if isinstance(theirs, tuple):
            for attribute, value in zip(theirs, options[ours], strict=True):
                setattr(table, attribute, value)
        else:
            value = options[ours]
            setattr(table, theirs, numbers(_ENUMS[theirs])[value] if theirs in _ENUMS else value)
    return numbers("BuiltinOptions")[name], table
