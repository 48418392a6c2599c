"""Persistent block Gibbs chains in torch: the default sampler."""

from __future__ import annotations

import torch
from torch import Tensor

from scqbm.ising import RBM
from scqbm.samplers._base import Draws, Sampler


class GibbsSampler(Sampler):
    """Block Gibbs: all hidden units given all visible ones, then the reverse, chain by chain.

    Chains persist from one query to the next (persistent contrastive divergence).

    Parameters
    ----------
    n_sweeps
        Sweeps a query.
    n_burn_in
        Sweeps when the chains are first made.
    """

    def __init__(self, n_sweeps: int = 5, n_burn_in: int = 100):
        if n_sweeps < 1:
            raise ValueError(f"n_sweeps must be at least 1, got {n_sweeps}.")
        self.n_sweeps = n_sweeps
        self.n_burn_in = n_burn_in

    @torch.no_grad()
    def sample(
        self,
        rbm: RBM,
        n_draws: int,
        state: dict[str, Tensor | int] | None = None,
        generator: torch.Generator | None = None,
    ) -> Draws:
        """Advance the chains and return where they are; see :meth:`Sampler.sample`."""
        like = {"dtype": rbm.W.dtype, "device": rbm.W.device}
        v = state["visible"].to(**like).clone() if state else None
        n_sweeps = self.n_sweeps
        if v is None or v.shape != (n_draws, rbm.n_visible):
            v = torch.randn(n_draws, rbm.n_visible, generator=generator, **like)
            v = v if rbm.gaussian else (v > 0).to(v)
            n_sweeps = max(self.n_burn_in, self.n_sweeps)
        h = torch.empty(n_draws, rbm.n_hidden, **like)
        noise_h, noise_v = torch.empty_like(h), torch.empty_like(v)
        # the fields of RBM.hidden_field and visible_field with the centring folded into the biases
        b = rbm.hidden_field(torch.zeros_like(rbm.a))
        a = rbm.visible_field(torch.zeros_like(rbm.b))
        W, W_t = rbm.W, rbm.W.T.contiguous()
        for _ in range(n_sweeps):
            torch.addmm(b, v, W, out=h).sigmoid_()
            torch.lt(noise_h.uniform_(generator=generator), h, out=h)
            torch.addmm(a, h, W_t, out=v)
            if rbm.gaussian:
                v.add_(noise_v.normal_(generator=generator))
            else:
                v.sigmoid_()
                torch.lt(noise_v.uniform_(generator=generator), v, out=v)
        return Draws(visible=v, hidden=h, state={"visible": v.clone()})
