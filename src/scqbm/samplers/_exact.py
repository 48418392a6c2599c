"""Independent draws by enumeration: the reference for every other sampler."""

from __future__ import annotations

import torch
from torch import Tensor

from scqbm.ising import RBM, all_states
from scqbm.partition import smaller_side
from scqbm.samplers._base import Draws, Sampler

MAX_UNITS = 20


class ExactSampler(Sampler):
    """Enumerate the smaller layer of bits (up to 20), then draw the other given it."""

    def sample(
        self,
        rbm: RBM,
        n_draws: int,
        state: dict[str, Tensor | int] | None = None,
        generator: torch.Generator | None = None,
    ) -> Draws:
        """Independent, exact draws; see :meth:`Sampler.sample`."""
        if smaller_side(rbm) > MAX_UNITS:
            raise ValueError(
                f"ExactSampler enumerates at most {MAX_UNITS} bits, but the smaller layer of bits "
                f"has {smaller_side(rbm)}: use GibbsSampler."
            )
        if not rbm.gaussian and rbm.n_visible < rbm.n_hidden:
            swapped = self.sample(rbm.transposed(), n_draws, state, generator)
            return Draws(visible=swapped.hidden, hidden=swapped.visible)
        states = all_states(rbm.n_hidden, dtype=rbm.W.dtype, device=rbm.W.device)
        # inverse CDF in double precision: torch.multinomial stops at 2^24 categories and is slow
        cdf = torch.softmax(-rbm.hidden_free_energy(states).double(), 0).cumsum(0)
        u = torch.rand(n_draws, generator=generator, dtype=torch.float64, device=cdf.device)
        hidden = states[torch.searchsorted(cdf, u * cdf[-1]).clamp(max=len(states) - 1)]
        field = rbm.visible_field(hidden)
        if rbm.gaussian:
            visible = field + torch.randn(
                field.shape, generator=generator, dtype=field.dtype, device=field.device
            )
        else:
            u = torch.rand(
                field.shape, generator=generator, dtype=field.dtype, device=field.device
            )
            visible = (u < field.sigmoid()).to(field)
        return Draws(visible=visible, hidden=hidden)
