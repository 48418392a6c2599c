"""First and second moments of an RBM: enumerated if it is small, else sampled."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from scqbm._checks import whole
from scqbm.ising import (
    RBM,
    bits_to_spins,
    can_enumerate,
    enumerate_hidden,
    enumerate_visible,
    smaller_hidden,
)
from scqbm.samplers._ask import check_sampler
from scqbm.samplers._base import Draws, Sampler
from scqbm.samplers._tempering import TemperingSampler


class Moments(NamedTuple):
    """Means of the visible units, the hidden units and their products, with bits as spins (-1, 1).

    Parameters
    ----------
    visible
        Means of the visible units, shape ``(n_visible,)``.
    hidden
        Means of the hidden spins, shape ``(n_hidden,)``.
    product
        Means of the products, shape ``(n_visible, n_hidden)``.
    square
        Means of the squared visible units; 1 for spins.
    hidden_square, product_square
        Means of the squared hidden units and of the squared products; less than those of spins in
        a transverse field.
    n_draws
        Number of independent draws behind the means; infinite if they are exact.
    """

    visible: Tensor
    hidden: Tensor
    product: Tensor
    square: Tensor
    hidden_square: Tensor
    product_square: Tensor
    n_draws: float = float("inf")

    def variances(self) -> tuple[Tensor, Tensor]:
        """Variances of a single draw: of all units, visible ones first, and of the products."""
        means = torch.cat([self.visible, self.hidden])
        first = torch.cat([self.square, self.hidden_square]) - means.square()
        second = self.product_square - self.product.square()
        return first.clamp(min=0), second.clamp(min=0)


@torch.no_grad()
def moments(
    rbm: RBM,
    sampler: Sampler | None = None,
    n_draws: int = 256,
    n_queries: int = 40,
    generator: torch.Generator | None = None,
) -> Moments:
    """First and second moments of an RBM, by enumeration if it is small enough, else sampled.

    Parameters
    ----------
    rbm
        The RBM, for example ``model.module.prior.rbm()``.
    sampler
        Draw from this sampler instead of enumerating. With ``None``, an RBM that is too large to
        enumerate is sampled by a long parallel tempering.
    n_draws
        Draws per query.
    n_queries
        Number of queries; all their draws are pooled.
    generator
        Source of random numbers on the device of ``rbm``.
    """
    whole("n_draws", n_draws)
    whole("n_queries", n_queries)
    if sampler is not None:
        check_sampler(sampler)
    if sampler is None and can_enumerate(rbm):
        return _enumerated(rbm.to(torch.float64))
    if sampler is None:
        sampler = TemperingSampler(n_sweeps=20, n_replicas=24, n_start=2000)
    state, seen = None, []
    for _ in range(n_queries):
        draws = sampler.sample(rbm, n_draws, state, generator)
        state = draws.state
        seen.append(of_draws(rbm, draws))
    # successive queries of persistent chains are correlated: count a quarter as independent
    return mean_of(seen, float(n_draws * max(1, n_queries // 4)))


def mean_of(seen: list[Moments], n_draws: float) -> Moments:
    """Mean over queries, which rests on ``n_draws`` independent draws in all."""
    parts = zip(*(one[:6] for one in seen), strict=True)
    v, s, vs, vv, ss, vvss = (torch.stack(part).mean(0) for part in parts)
    return Moments(v, s, vs, vv, ss, vvss, n_draws)


def of_draws(rbm: RBM, draws: Draws) -> Moments:
    """Weighted means over the draws of one query."""
    v = draws.visible.double() if rbm.gaussian else bits_to_spins(draws.visible.double())
    s = bits_to_spins(draws.hidden.double())
    w = v.new_ones(len(v)) if draws.weights is None else draws.weights.double()
    return _means(w / w.sum(), v, s, v.square(), s.square(), float(len(v)))


def _means(
    w: Tensor, v: Tensor, s: Tensor, v_square: Tensor, s_square: Tensor, n_draws: float
) -> Moments:
    """Of states with weights ``w``, in each of which the two layers are independent."""

    def product(a: Tensor, b: Tensor) -> Tensor:
        return (a * w[:, None]).T @ b

    squares = w @ v_square, w @ s_square, product(v_square, s_square)
    return Moments(w @ v, w @ s, product(v, s), *squares, n_draws)


def _enumerated(rbm: RBM) -> Moments:
    if rbm.gamma is not None:
        return _enumerated_quantum(rbm)
    rbm, swapped = smaller_hidden(rbm)
    energy = torch.cat([energy for _, energy in enumerate_hidden(rbm)])
    p = torch.softmax(-energy, 0)
    parts, first = [], 0
    for h, energy in enumerate_hidden(rbm):
        w, first = p[first : first + len(energy)], first + len(energy)
        field, s = rbm.visible_field(h), bits_to_spins(h)
        v = field if rbm.gaussian else bits_to_spins(field.sigmoid())
        square = v.square() + 1 if rbm.gaussian else torch.ones_like(v)
        parts.append(_means(w, v, s, square, torch.ones_like(s), 0.0)[:-1])
    v, s, vs, vv, ss, vvss = (torch.stack(part).sum(0) for part in zip(*parts, strict=True))
    if swapped:
        return Moments(s, v, vs.T, ss, vv, vvss.T)
    return Moments(v, s, vs, vv, ss, vvss)


def _enumerated_quantum(rbm: RBM) -> Moments:
    """Of the visible spins and the z components of hidden ones in a transverse field."""
    states = list(enumerate_visible(rbm))
    p = torch.softmax(-torch.cat([energy for _, energy in states]), 0)
    visible = torch.cat([v for v, _ in states])
    v, s = bits_to_spins(visible), bits_to_spins(rbm.hidden_mean(visible))
    s_square = s.square() + 4 * rbm.hidden_variance(visible)
    return _means(p, v, s, torch.ones_like(v), s_square, float("inf"))
