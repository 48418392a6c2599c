"""Persistent block Gibbs chains in torch, the default sampler."""

from __future__ import annotations

import torch
from torch import Tensor

from scqbm._checks import at_least
from scqbm.ising import RBM, anneal, draw_hidden, draw_units, effective_number
from scqbm.samplers._base import Draws, Sampler, State

LEAST_ESS = 0.5  # resample when the effective number of chains falls below this share


class GibbsSampler(Sampler):
    """Block Gibbs chains, the default: all hidden units given all visible units, then the reverse.

    The chains persist from one query to the next (persistent contrastive divergence). They mix
    fast within a mode of the prior, but rarely cross from one mode to another, while training
    changes the probabilities of the modes at every step. Therefore each chain carries a weight.
    When the prior changes, the weight follows the change of the chain's free energy (sequential
    Monte Carlo, Del Moral et al. 2006). When a few chains carry most of the weight, copies of
    heavy chains replace light ones. To find modes without any chain, all chains are drawn anew
    every ``renew_every`` queries, by annealing from independent units, as at the start.

    ``info`` holds ``roots``, the effective number of independent starts that the chains descend
    from.

    Parameters
    ----------
    n_sweeps
        Gibbs sweeps per query.
    renew_every
        Queries between two annealings; with 0 there is only the one at the start.
    n_anneal
        Number of temperatures in an annealing.
    """

    transverse = True

    def __init__(self, n_sweeps: int = 2, renew_every: int = 100, n_anneal: int = 200):
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
        state: State | None = None,
        generator: torch.Generator | None = None,
    ) -> Draws:
        """Advance the chains and return their states; see :meth:`Sampler.sample`."""
        like = {"dtype": rbm.W.dtype, "device": rbm.W.device}
        state = state if state and "log_weight" in state else {}  # not that of another sampler
        fits = bool(state) and state["visible"].shape == (n_draws, rbm.n_visible)
        age = state["age"] + 1 if fits else 0
        # as RBM.hidden_field and visible_field, with the centring folded into the biases: faster
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
        for _ in range(self.n_sweeps):  # `field` belongs to `v` at the start and at the end
            draw_hidden(field, rbm.gamma, generator, h)
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
    """Systematic resampling: the copies of each state follow its weight, rounded up or down.

    Surviving states keep their rows, so that a chain can be followed. Copies fill the other rows.
    """
    n = len(v)
    cdf = weight.double().cumsum(0)
    start = torch.rand((), generator=generator, dtype=cdf.dtype, device=cdf.device)
    points = (torch.arange(n, dtype=cdf.dtype, device=cdf.device) + start) / n
    parents = torch.searchsorted(cdf / cdf[-1], points).clamp(max=n - 1)
    copies = torch.bincount(parents, minlength=n)
    v[copies == 0] = v.repeat_interleave((copies - 1).clamp(min=0), 0)
    return v
