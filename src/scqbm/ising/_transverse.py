"""Hidden units in a transverse field: what they sum to, their means and draws.

A hidden spin with the field ``f`` along z and ``gamma`` along x has the trace
``2 cosh sqrt(f^2 + gamma^2)``. This is also the integral of ``exp(f m)`` over ``m`` in [-1, 1]
with a positive density: a mass at both ends, as of a classical spin, and
``gamma I_1(gamma sqrt(1 - m^2)) / sqrt(1 - m^2)`` in between. Given the visible units, ``m`` is
drawn from it. Given ``m``, the visible units are as independent as with classical hidden spins.
So block Gibbs sampling stays exact with ``h = (1 + m) / 2`` in the place of hidden bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus
from torch.special import i1e

_FLAT = 1e-3  # a field below which a density is taken as uniform: relative error 1e-7


def log_sum(x: Tensor, gamma: Tensor | None = None) -> Tensor:
    """Log of what a hidden unit with log-odds ``x`` sums to; the classical value if no field.

    A spin of field ``x / 2``, up to the factor ``exp(x / 2)`` that makes the value of the bit 0
    the reference.
    """
    return softplus(x) if gamma is None else _LogSum.apply(x, gamma)


def mean(x: Tensor, gamma: Tensor | None = None) -> Tensor:
    """Mean of ``h``, between 0 and 1."""
    return x.sigmoid() if gamma is None else 0.5 + x * _slope(_length(x, gamma)) / 4


def draw(
    x: Tensor,
    gamma: Tensor | None,
    generator: torch.Generator | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """``h`` given the log-odds ``x``; with ``out``, which receives it, ``x`` may be used up."""
    if gamma is None:
        if out is None:
            out, x = torch.empty_like(x), x.sigmoid()
        else:
            x.sigmoid_()
        return torch.lt(out.uniform_(generator=generator), x, out=out)
    r, f = _length(x, gamma), x / 2
    total = (-2 * r).exp_().add_(1)
    up, down = (f - r).exp_().div_(total), (-f - r).exp_().div_(total)
    u = torch.empty_like(x).uniform_(generator=generator)
    h = u.lt(up).to(x.dtype)
    between = (u >= up) & (u < 1 - down)
    h[between] = (1 + _between(f[between], gamma.expand_as(x)[between], generator)) / 2
    return h if out is None else out.copy_(h)


def _between(f: Tensor, gamma: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draws of ``m`` inside (-1, 1) by rejection, with ``exp(f m)`` as the proposal."""
    m, left = torch.empty_like(f), torch.arange(len(f), device=f.device)
    steep, sign = f.abs(), f.sign()
    most = _bessel(gamma)
    while len(left) > 0:
        u, accept = torch.rand((2, len(left)), generator=generator, dtype=f.dtype, device=f.device)
        g = steep[left].clamp(min=_FLAT)
        tried = (1 + (u + (1 - u) * (-2 * g).exp()).log() / g).clamp(-1, 1) * sign[left]
        tried = torch.where(steep[left] < _FLAT, 2 * u - 1, tried)
        z = gamma[left] * (1 - tried.square()).clamp(min=0).sqrt()
        taken = accept * most[left] < _bessel(z) * (z - gamma[left]).exp()
        m[left[taken]] = tried[taken]
        left = left[~taken]
    return m


def _bessel(z: Tensor) -> Tensor:
    """``exp(-z) I_1(z) / z``."""
    return torch.where(z < 1e-4, 0.5, i1e(z) / z.clamp(min=1e-4))


def _length(x: Tensor, gamma: Tensor) -> Tensor:
    return (x.square() / 4 + gamma.square()).sqrt()


def _slope(r: Tensor) -> Tensor:
    """``tanh(r) / r``."""
    return torch.where(r < 1e-4, 1.0, r.tanh() / r.clamp(min=1e-4))


class _LogSum(torch.autograd.Function):
    """With its gradient by hand, since a root has none where ``x`` and ``gamma`` are 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor) -> Tensor:  # noqa: D102
        ctx.save_for_backward(x, gamma)
        r, classical = _length(x, gamma), x.abs() / 2
        # both differences are exactly 0 without a transverse field
        return (
            softplus(x)
            + (r - classical)
            + ((-2 * r).exp().log1p() - (-2 * classical).exp().log1p())
        )

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        x, gamma = ctx.saved_tensors
        slope = _slope(_length(x, gamma))
        along_x = grad * (0.5 + x * slope / 4)
        along_gamma = (grad * gamma * slope).sum_to_size(gamma.shape)
        return along_x, along_gamma
