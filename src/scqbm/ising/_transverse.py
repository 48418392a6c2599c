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

_FLAT = 1e-3  # a smaller field is taken as this: the density changes by less than this


def log_sum(x: Tensor, gamma: Tensor | None = None) -> Tensor:
    """Log of what a hidden unit with log-odds ``x`` sums to; the classical value if no field.

    A spin of field ``x / 2``, up to the factor ``exp(x / 2)`` that makes the value of the bit 0
    the reference.
    """
    return softplus(x) if gamma is None else _LogSum.apply(x, gamma)


def mean(x: Tensor, gamma: Tensor | None = None) -> Tensor:
    """Mean of ``h``, between 0 and 1."""
    return x.sigmoid() if gamma is None else 0.5 + x * _slope(_length(x, gamma)) / 4


def variance(x: Tensor, gamma: Tensor | None = None) -> Tensor:
    """Variance of ``h``: the second derivative of :func:`log_sum`."""
    if gamma is None:
        p = x.sigmoid()
        return p * (1 - p)
    r = _length(x, gamma)
    slope, safe = _slope(r), r.clamp(min=1e-3)
    # the slope's own slope over r, whose limit is -2/3
    bend = torch.where(r < 1e-3, -2 / 3, (1 - (r * slope).square() - slope) / safe.square())
    return (slope + x.square() / 4 * bend) / 4


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
    gamma = gamma.abs()  # both signs are the same machine
    r = _length(x, gamma)
    total = r.mul(-2).exp_().add_(1)
    up, down = torch.add(-r, x, alpha=0.5).exp_(), torch.add(-r, x, alpha=-0.5).exp_()
    u = torch.empty_like(x).uniform_(generator=generator).mul_(total)
    h = u.lt(up).to(x.dtype)
    inside = ((u >= up) & (u < total.sub_(down))).flatten().nonzero().squeeze(1)
    if len(inside) > 0:
        m = _between(x.flatten()[inside].div_(2), inside % len(gamma), gamma, generator)
        h.view(-1)[inside] = m.add_(1).div_(2)
    return h if out is None else out.copy_(h)


def _between(f: Tensor, unit: Tensor, gamma: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draws of ``m`` inside (-1, 1) for units with these fields along z, by rejection.

    Proposals follow ``exp(f m)``. The rest of the density is largest at ``m = 0`` and least at the
    ends: a proposal that would be taken there needs no Bessel function.
    """
    u, test = f.new_empty(2, len(f)).uniform_(generator=generator)
    steep = f.abs().clamp_(min=_FLAT)
    # 1 + log(u + (1 - u) exp(-2 |f|)) / |f|, towards the sign of f
    m = steep.mul(-2).exp_().lerp_(torch.ones_like(u), u).log_().div_(steep).add_(1)
    m.clamp_(min=-1).mul_(torch.where(f < 0, -1.0, 1.0))
    most = _bessel(gamma)
    doubtful = (test >= (gamma.neg().exp() / 2 / most)[unit]).nonzero().squeeze(1)
    if len(doubtful) > 0:
        its = unit[doubtful]
        z = (1 - m[doubtful].square()).clamp_(min=0).sqrt_().mul_(gamma[its])
        density = _bessel(z) * z.sub_(gamma[its]).exp_()
        left = doubtful[test[doubtful] * most[its] >= density]
        if len(left) > 0:
            m[left] = _between(f[left], unit[left], gamma, generator)
    return m


def _bessel(z: Tensor) -> Tensor:
    """``exp(-z) I_1(z) / z``."""
    return torch.where(z < 1e-4, 0.5, i1e(z) / z.clamp(min=1e-4))


def _length(x: Tensor, gamma: Tensor) -> Tensor:
    return torch.addcmul(gamma.square(), x, x, value=0.25).sqrt_()


def _slope(r: Tensor) -> Tensor:
    """``tanh(r) / r``."""
    return torch.where(r < 1e-4, 1.0, r.tanh() / r.clamp(min=1e-4))


class _LogSum(torch.autograd.Function):
    """With its gradient by hand, since a root has none where ``x`` and ``gamma`` are 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor) -> Tensor:  # noqa: D102
        ctx.save_for_backward(x, gamma)
        if not gamma.any():
            return softplus(x)  # to the last digit
        r = _length(x, gamma)
        return r.mul(-2).exp_().log1p_().add_(r).add_(x, alpha=0.5)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        x, gamma = ctx.saved_tensors
        slope = _slope(_length(x, gamma))
        along_x = grad * (0.5 + x * slope / 4)
        along_gamma = (grad * gamma * slope).sum_to_size(gamma.shape)
        return along_x, along_gamma
