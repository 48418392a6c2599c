"""Persistent block Gibbs chains in torch: the default sampler."""

from __future__ import annotations

import torch
from torch import Tensor

from scqbm._checks import at_least
from scqbm.ising import RBM, anneal, draw_units, effective_number
from scqbm.samplers._base import Draws, Sampler

LEAST_ESS = 0.5  # resample when fewer than this share of the chains carry the weight


class GibbsSampler(Sampler):
    """Block Gibbs: all hidden units given all visible ones, then the reverse, chain by chain.

    Chains persist from one query to the next (persistent contrastive divergence). Within a
    cluster of codes they mix fast, between clusters hardly, while training moves the clusters'
    masses at every step. So the chains are a weighted population: between queries each weight
    follows its chain's change of free energy (sequential Monte Carlo, Del Moral et al. 2006), and
    heavy chains replace light ones where few would carry the rest. To find clusters that no chain
    is in, the population begins, and every ``renew_every`` queries begins anew, by annealing from
    independent units.

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
        at_least("n_sweeps", n_sweeps, 1)
        at_least("renew_every", renew_every, 0)
        at_least("n_anneal", n_anneal, 1)
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
        mine = state is not None and "log_weight" in state  # not another sampler's
        fits = mine and state["visible"].shape == (n_draws, rbm.n_visible)
        age = state["age"] + 1 if fits else 0
        # the fields of RBM.hidden_field and visible_field with the centring folded into the biases
        b = rbm.hidden_field(torch.zeros_like(rbm.a))
        a = rbm.visible_field(torch.zeros_like(rbm.b))
        W, W_t = rbm.W, rbm.W.T.contiguous()
        field, h = (torch.empty(n_draws, rbm.n_hidden, **like) for _ in range(2))
        if not fits or 0 < self.renew_every <= age:
            v, log_weight = anneal(rbm, n_draws, self.n_anneal, generator)
            age = 0
        else:
            v, energy, log_weight = (
                state[name].to(**like).clone() for name in ("visible", "energy", "log_weight")
            )
            torch.addmm(b, v, W, out=field)
            log_weight += energy - rbm.free_energy(v, field)
        weight = log_weight.softmax(0)
        ess = effective_number(weight, n_draws)
        roots = ess if age == 0 else float(state.get("roots", n_draws))
        if age == 0 or ess < LEAST_ESS * n_draws:
            v = _resample(v, weight, generator)
            torch.addmm(b, v, W, out=field)
            log_weight = torch.zeros_like(log_weight)
        back = torch.empty_like(v)
        for _ in range(self.n_sweeps):  # `field` is that of `v` before and after
            draw_units(field, generator=generator, out=h)
            torch.addmm(a, h, W_t, out=back)
            draw_units(back, rbm.gaussian, generator, out=v)
            torch.addmm(b, v, W, out=field)
        return Draws(
            visible=v,
            hidden=h,
            weights=log_weight.softmax(0),
            state={
                "visible": v.clone(),
                "energy": rbm.free_energy(v, field),
                "log_weight": log_weight,
                "age": age,
                "roots": torch.tensor(roots),
            },
            info={"roots": roots},
        )


def _resample(v: Tensor, weight: Tensor, generator: torch.Generator | None) -> Tensor:
    """Systematic resampling: each state as often as its weight asks, give or take one.

    Survivors stay where they are, so that a chain can be followed; copies fill the gaps.
    """
    n = len(v)
    cdf = weight.double().cumsum(0)
    start = torch.rand((), generator=generator, dtype=cdf.dtype, device=cdf.device)
    points = (torch.arange(n, dtype=cdf.dtype, device=cdf.device) + start) / n
    parents = torch.searchsorted(cdf / cdf[-1], points).clamp(max=n - 1)
    copies = torch.bincount(parents, minlength=n)
    v[copies == 0] = v.repeat_interleave((copies - 1).clamp(min=0), 0)
    return v
