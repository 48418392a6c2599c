"""Persistent block Gibbs chains in torch: the default sampler."""

from __future__ import annotations

import torch
from torch import Tensor

from scqbm.ising import RBM
from scqbm.partition import anneal
from scqbm.samplers._base import Draws, Sampler


class GibbsSampler(Sampler):
    """Block Gibbs: all hidden units given all visible ones, then the reverse, chain by chain.

    Chains persist from one query to the next (persistent contrastive divergence). Within a
    cluster of codes they mix fast, between clusters hardly; so they begin, and every
    ``renew_every`` queries begin anew, as a population annealed from independent units and
    resampled by its importance weights, which puts the right number of chains in each cluster.

    Parameters
    ----------
    n_sweeps
        Sweeps a query.
    renew_every
        Queries between two annealings; 0 anneals at the start only.
    n_anneal
        Temperatures of an annealing.
    """

    def __init__(self, n_sweeps: int = 5, renew_every: int = 100, n_anneal: int = 200):
        for name, value, least in (
            ("n_sweeps", n_sweeps, 1),
            ("renew_every", renew_every, 0),
            ("n_anneal", n_anneal, 1),
        ):
            if value < least:
                raise ValueError(f"`{name}` must be at least {least}, not {value}.")
        self.n_sweeps = n_sweeps
        self.renew_every = renew_every
        self.n_anneal = n_anneal

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
        age = state.get("age", 0) + 1 if state else 0
        if v is None or v.shape != (n_draws, rbm.n_visible) or 0 < self.renew_every <= age:
            v, log_weight = anneal(rbm, n_draws, self.n_anneal, generator)
            v, age = _resample(v, log_weight, generator), 0
        h = torch.empty(n_draws, rbm.n_hidden, **like)
        noise_h, noise_v = torch.empty_like(h), torch.empty_like(v)
        # the fields of RBM.hidden_field and visible_field with the centring folded into the biases
        b = rbm.hidden_field(torch.zeros_like(rbm.a))
        a = rbm.visible_field(torch.zeros_like(rbm.b))
        W, W_t = rbm.W, rbm.W.T.contiguous()
        for _ in range(self.n_sweeps):
            torch.addmm(b, v, W, out=h).sigmoid_()
            torch.lt(noise_h.uniform_(generator=generator), h, out=h)
            torch.addmm(a, h, W_t, out=v)
            if rbm.gaussian:
                v.add_(noise_v.normal_(generator=generator))
            else:
                v.sigmoid_()
                torch.lt(noise_v.uniform_(generator=generator), v, out=v)
        return Draws(visible=v, hidden=h, state={"visible": v.clone(), "age": age})


def _resample(v: Tensor, log_weight: Tensor, generator: torch.Generator | None) -> Tensor:
    """Systematic resampling: each state as often as its weight asks, give or take one."""
    n = len(v)
    cdf = log_weight.double().softmax(0).cumsum(0)
    start = torch.rand((), generator=generator, dtype=cdf.dtype, device=cdf.device)
    points = (torch.arange(n, dtype=cdf.dtype, device=cdf.device) + start) / n
    return v[torch.searchsorted(cdf, points).clamp(max=n - 1)]
