"""Exact draws by enumeration."""

from __future__ import annotations

import torch
from torch import Tensor

from scqbm.ising import (
    MAX_EXACT_UNITS,
    RBM,
    can_enumerate,
    enumerate_hidden,
    enumerate_visible,
    smaller_hidden,
    smaller_side,
    states,
)
from scqbm.samplers._base import Draws, Sampler, State


class ExactSampler(Sampler):
    """Independent, exact draws by enumeration, for small priors.

    Lists all states of the smaller layer of bits, which may have up to 20 units, draws from them,
    and then draws the other layer given that one. The reference for every other sampler.
    """

    transverse = True

    def sample(
        self,
        rbm: RBM,
        n_draws: int,
        state: State | None = None,
        generator: torch.Generator | None = None,
    ) -> Draws:
        """Independent, exact draws; see :meth:`Sampler.sample`."""
        if not can_enumerate(rbm):
            raise ValueError(
                f"ExactSampler enumerates at most {MAX_EXACT_UNITS} bits, but the smaller layer "
                f"of bits has {smaller_side(rbm):g}: use GibbsSampler."
            )
        if rbm.gamma is not None:
            energy = torch.cat([energy for _, energy in enumerate_visible(rbm)])
            rows = _rows(energy, n_draws, generator)
            visible = states(rows, rbm.n_visible, dtype=rbm.W.dtype)
            return Draws(visible=visible, hidden=rbm.draw_hidden(visible, generator))
        rbm, swapped = smaller_hidden(rbm)
        energy = torch.cat([energy for _, energy in enumerate_hidden(rbm)])
        rows = _rows(energy, n_draws, generator)
        hidden = states(rows, rbm.n_hidden, dtype=rbm.W.dtype)
        visible = rbm.draw_visible(hidden, generator)
        if swapped:
            visible, hidden = hidden, visible
        return Draws(visible=visible, hidden=hidden)


def _rows(energy: Tensor, n_draws: int, generator: torch.Generator | None) -> Tensor:
    """States drawn by their energies."""
    # inverse CDF in double precision: torch.multinomial is slow and stops at 2^24 categories
    cdf = torch.softmax(-energy.double(), 0).cumsum(0)
    u = torch.rand(n_draws, generator=generator, dtype=torch.float64, device=cdf.device)
    return torch.searchsorted(cdf, u * cdf[-1]).clamp(max=len(cdf) - 1)
