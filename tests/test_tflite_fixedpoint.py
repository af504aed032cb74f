"""The integer arithmetic against an oracle in plain Python integers, and the proof of the fast formula."""

import math

import pytest
import torch

from qpatch.errors import InputError
from qpatch.quant.tflite.fixedpoint import multiply_once_rounded, multiply_twice_rounded, quantize_multiplier
from qpatch.quant.tflite.staircase import Staircase


def c_divide(a: int, b: int) -> int:
    """Division as in C: the quotient is cut towards zero."""
    return abs(a) // b if a >= 0 else -(abs(a) // b)


def oracle_twice(x: int, multiplier: int, shift: int) -> int:
    """The kernels' definition: saturating rounding doubling high multiply, then a rounding right shift."""
    product = (x << max(shift, 0)) * multiplier
    high = c_divide(product + ((1 << 30) if product >= 0 else 1 - (1 << 30)), 1 << 31)
    exponent = max(-shift, 0)
    mask = (1 << exponent) - 1
    threshold = (mask >> 1) + (1 if high < 0 else 0)
    return (high >> exponent) + (1 if (high & mask) > threshold else 0)


def oracle_once(x: int, multiplier: int, shift: int) -> int:
    small = (multiplier + (1 << 15)) >> 16 if multiplier < 0x7FFF0000 else 0x7FFF
    return (x * small + (1 << (14 - shift))) >> (15 - shift)


def random_factors(n: int, seed: int = 0) -> tuple[list[tuple[int, int]], torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    exponents = torch.rand(n, generator=generator) * 9 - 8
    return [quantize_multiplier(2.0 ** float(exponent)) for exponent in exponents], generator


def test_multiplier_of_known_factors():
    assert quantize_multiplier(0.5) == (2**30, 0)
    assert quantize_multiplier(1.0) == (2**30, 1)
    assert quantize_multiplier(0.75) == (3 * 2**29, 0)
    assert quantize_multiplier(1 - 2.0**-40) == (2**30, 1)  # rounds up to the next power of two
    assert quantize_multiplier(0.0) == (0, 0)
    assert quantize_multiplier(2.0**-33) == (0, 0)


def test_rounding_of_halves():
    half = quantize_multiplier(0.5)
    x = torch.tensor([-3, -1, 1, 3])
    assert multiply_twice_rounded(x, *half).tolist() == [-1, 0, 1, 2]  # one rounding only: halves go up
    quarter = quantize_multiplier(0.125)  # shift −2: the second rounding sends halves away from zero
    assert multiply_twice_rounded(torch.tensor([-4, 4, -12, 12]), *quarter).tolist() == [-1, 1, -2, 2]
    assert multiply_once_rounded(x, *half).tolist() == [-1, 0, 1, 2]


ORACLES = [(multiply_twice_rounded, oracle_twice), (multiply_once_rounded, oracle_once)]


@pytest.mark.parametrize(("function", "oracle"), ORACLES)
def test_multiplication_equals_the_definition(function, oracle):
    factors, generator = random_factors(60)
    for multiplier, shift in factors:
        x = torch.randint(-(2**24), 2**24, (50,), generator=generator)
        assert function(x, multiplier, shift).tolist() == [oracle(v, multiplier, shift) for v in x.tolist()]


def staircase(factors, bias, low, high, bound=2**20, **options) -> Staircase:
    multiplier, shift = (torch.tensor(column) for column in zip(*factors, strict=True))
    bounds = torch.full_like(multiplier, bound)
    return Staircase(multiplier, shift, bias, low, high, -bounds, bounds, once=False, rank=2, **options)


@pytest.mark.parametrize(("low", "high"), [(0, 255), (-128, 127), (-131, 124), (-3, 252)])
def test_formula_is_proved_and_equal_at_every_step(low, high):
    factors, generator = random_factors(80, seed=low)
    bias = torch.randint(-5000, 5000, (80,), generator=generator)
    steps = staircase(factors, bias, low, high)
    assert steps.proved.all()
    totals = torch.randint(-(2**20), 2**20 + 1, (2000, 80), generator=generator)
    edges = torch.arange(low - 2, high + 3).view(-1, 1)
    real = torch.tensor([m * 2.0 ** (s - 31) for m, s in factors], dtype=torch.float64)
    at_steps = ((edges - 0.5) / real - bias).round().long().clamp(-(2**20), 2**20)
    for x in (totals, *(at_steps + move for move in (-1, 0, 1))):
        x = x.clamp(-(2**20), 2**20)
        expected = torch.tensor([
            [min(max(oracle_twice(v + b, *f), low), high) for v, b, f in zip(row, bias.tolist(), factors, strict=True)]
            for row in x[:300].tolist()
        ])  # fmt: skip
        assert torch.equal(steps(x[:300].float()).long(), expected)
        assert torch.equal(steps(x.float()).long(), steps.integers(x))


def test_a_wrong_formula_is_not_proved_and_not_used(monkeypatch):
    right = Staircase._formula
    monkeypatch.setattr(Staircase, "_formula", lambda self, x, m, b, n: right(self, x, m, b + 0.01, n))
    factors, generator = random_factors(20)
    steps = staircase(factors, torch.zeros(20, dtype=torch.int64), -128, 127)
    assert not steps.proved.any()
    x = torch.randint(-(2**20), 2**20, (500, 20), generator=generator)
    assert torch.equal(steps(x.float()).long(), steps.integers(x))


def test_proof_holds_for_tiny_and_large_factors():
    factors = [quantize_multiplier(real) for real in (1e-12, 2.0**-31, 1e-9, 0.99999, 1.0, 3.7)]
    steps = staircase(factors, torch.arange(6), -128, 127, bound=1000)
    x = torch.arange(-1000, 1001).view(-1, 1).expand(-1, 6)
    assert torch.equal(steps(x.float()).long(), steps.integers(x))


def test_int16_formula_is_exact():
    factors, generator = random_factors(40)
    multiplier, shift = (torch.tensor(column) for column in zip(*factors, strict=True))
    bias = torch.randint(-(2**30), 2**30, (40,), generator=generator)
    bound = torch.full_like(bias, 2**34)
    steps = Staircase(multiplier, shift, bias, -32768, 32767, -bound, bound, once=True, rank=2)
    x = torch.randint(-(2**34), 2**34, (200, 40), generator=generator)
    expected = [
        [min(max(oracle_once(v + b, *f), -32768), 32767) for v, b, f in zip(row, bias.tolist(), factors, strict=True)]
        for row in x.tolist()
    ]
    assert steps(x.double()).long().tolist() == expected


def test_overflow_is_refused():
    with pytest.raises(InputError, match="overflow"):
        staircase([quantize_multiplier(0.5)], torch.tensor([2**31]), -128, 127)


def test_gradient_is_the_factor_inside_and_zero_where_clipped():
    steps = staircase([quantize_multiplier(0.25)], torch.tensor([0]), -128, 127)
    x = torch.tensor([[-4000.0], [-40.0], [3.0], [40.0], [4000.0]], requires_grad=True)
    steps(x).sum().backward()
    assert x.grad.flatten().tolist() == [0, 0.25, 0.25, 0.25, 0]
    rectified = staircase([quantize_multiplier(0.25)], torch.tensor([0]), 0, 255)
    x = torch.tensor([[-1.0], [1.0]], requires_grad=True)
    rectified(x).sum().backward()
    assert x.grad.flatten().tolist() == [0, 0.25]
    assert math.isclose(float(steps(torch.tensor([[40.0]]))), 10)
