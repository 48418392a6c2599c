"""Parallel tempering in torch, for priors with modes that plain Gibbs chains cannot leave."""

from __future__ import annotations

import torch
from torch import Tensor

from scqbm._checks import at_least
from scqbm.ising import RBM, draw_hidden, draw_units
from scqbm.samplers._base import Draws, Sampler, State


class TemperingSampler(Sampler):
    """Parallel tempering, for priors with separated modes: each draw has its own set of replicas.

    The replicas of a draw form a ladder. Each runs block Gibbs sweeps with the couplings scaled by
    a factor between 0 and 1, while the biases stay. Neighbours on the ladder swap states. In this
    way, states from the hot end (factor 0), where all units are independent, reach the cold end
    (factor 1), which is the prior itself and gives the draw. The factors adapt from query to query
    until all neighbours swap equally often. The replicas persist between queries, as the chains of
    :class:`~scqbm.samplers.GibbsSampler` do. A query costs as much as that of ``n_replicas`` times
    as many plain Gibbs chains.

    ``info`` holds ``swap_rate`` (smallest share of accepted swaps among neighbours) and
    ``swap_rate_mean``.

    Parameters
    ----------
    n_sweeps
        Gibbs sweeps per query, each with one round of swaps.
    n_replicas
        Replicas per draw. There are enough if ``info["swap_rate"]`` stays above about 0.2.
    n_start
        Sweeps before the first query is answered.
    """

    transverse = True

    def __init__(self, n_sweeps: int = 10, n_replicas: int = 16, n_start: int = 500):
        at_least("n_sweeps", n_sweeps, 1)
        at_least("n_replicas", n_replicas, 2)
        at_least("n_start", n_start, 0)
        self.n_sweeps = n_sweeps
        self.n_replicas = n_replicas
        self.n_start = n_start

    @torch.no_grad()
    def sample(
        self,
        rbm: RBM,
        n_draws: int,
        state: State | None = None,
        generator: torch.Generator | None = None,
    ) -> Draws:
        """Advance the replicas and return the cold ones; see :meth:`Sampler.sample`."""
        shape = (self.n_replicas, n_draws, rbm.n_visible)
        like = {"dtype": rbm.W.dtype, "device": rbm.W.device}
        n_sweeps = self.n_sweeps
        state = state if state and "scales" in state else {}  # not that of another sampler
        if state and state["visible"].shape == shape:
            ladders = _Ladders(
                rbm,
                state["visible"].to(**like, copy=True),
                state["level"].to(like["device"], copy=True),
                state["scales"].to(like["device"], copy=True),
            )
            if "rate" in state:  # not in checkpoints of earlier versions
                ladders.rate = state["rate"].to(like["device"], copy=True)
                ladders.n_done = int(state["n_done"])
        else:
            v = draw_units(rbm.a.expand(shape), rbm.gaussian, generator)
            level = torch.arange(self.n_replicas, device=like["device"])
            ladders = _Ladders(
                rbm,
                v,
                level[:, None].repeat(1, n_draws),
                torch.linspace(0, 1, self.n_replicas, dtype=torch.float64, device=like["device"]),
            )
            block = max(50, self.n_sweeps)
            for done in range(0, self.n_start, block):
                ladders.run(min(block, self.n_start - done), generator)
                ladders.adapt()
        swapped = ladders.run(n_sweeps, generator)
        ladders.adapt()
        v, h = ladders.cold()
        return Draws(
            visible=v,
            hidden=h,
            state={
                "visible": ladders.v.view(shape),
                "level": ladders.level,
                "scales": ladders.scales,
                "rate": ladders.rate,
                "n_done": torch.tensor(ladders.n_done),
            },
            info={"swap_rate": swapped.min().item(), "swap_rate_mean": swapped.mean().item()},
        )


class _Ladders:
    """The replicas of all ladders as rows of one matrix. A swap exchanges factors, not states."""

    def __init__(self, rbm: RBM, v: Tensor, level: Tensor, scales: Tensor):
        self.rbm = rbm
        self.shape = level.shape
        self.v = v.flatten(0, 1)
        self.level = level
        self.scales = scales
        self.h = rbm.W.new_empty(len(self.v), rbm.n_hidden)
        self.rate = scales.new_ones(len(scales) - 1)  # of accepted swaps, by rung
        self.n_done = 0  # sweeps so far: even and odd rungs take turns
        # as RBM.hidden_field and visible_field, but without the biases, which are not scaled
        centre = rbm.hidden_field(torch.zeros_like(rbm.a)) - rbm.b
        self.centre, self.W, self.W_t = centre, rbm.W, rbm.W.T.contiguous()

    def run(self, n_sweeps: int, generator: torch.Generator | None) -> Tensor:
        """Sweep and swap; returns the share of accepted swaps between neighbouring levels."""
        rbm, v, h = self.rbm, self.v, self.h
        x, field, back = torch.empty_like(h), torch.empty_like(h), torch.empty_like(v)
        rungs = len(self.scales)
        gaps = self.scales.diff().to(v)
        scales = self.scales.to(v)
        holder = self.level.argsort(0)  # the replica at each level
        accepted = v.new_zeros(rungs - 1, self.shape[1])
        tried = v.new_zeros(rungs - 1, 1)
        u = v.new_empty(rungs - 1, self.shape[1])
        s = scales[self.level].view(-1, 1)
        for sweep in range(n_sweeps):
            torch.addmm(self.centre, v, self.W, out=x)
            torch.addcmul(rbm.b, x, s, out=field)
            draw_hidden(field, rbm.gamma, generator, h).sub_(0.5)
            # both layers are known here: the log odds of a swap are differences of their coupling
            coupling = torch.mul(x, h, out=field).sum(-1).view(self.shape).gather(0, holder)
            first = (self.n_done + sweep) % 2
            low, high = slice(first, rungs - 1, 2), slice(first + 1, rungs, 2)
            odds = gaps[first::2, None] * (coupling[low] - coupling[high])
            u.uniform_(generator=generator)
            swap = u[first::2] < odds.exp()
            accepted[first::2] += swap
            tried[first::2] += 1
            below, above = holder[low].clone(), holder[high].clone()
            holder[low] = torch.where(swap, above, below)
            holder[high] = torch.where(swap, below, above)
            self.level = holder.argsort(0)
            s = scales[self.level].view(-1, 1)
            torch.mm(h, self.W_t, out=back)
            torch.addcmul(rbm.a, back, s, out=back)
            draw_units(back, rbm.gaussian, generator, out=v)
        self.n_done += n_sweeps
        tried = tried.squeeze(1)
        rate = (accepted.mean(1) / tried.clamp(min=1)).double()
        self.rate = torch.where(tried > 0, rate, self.rate)  # one sweep tries every other rung
        return self.rate

    def adapt(self) -> None:
        """Move the factors so that all neighbours swap equally often (Syed et al. 2022)."""
        like = {"dtype": self.scales.dtype, "device": self.scales.device}
        barrier = torch.cat([self.scales.new_zeros(1), (1 - self.rate).clamp(min=1e-3).cumsum(0)])
        even = torch.linspace(0, 1, len(barrier), **like) * barrier[-1]
        i = torch.searchsorted(barrier, even[1:-1]).clamp(1, len(barrier) - 1)
        part = (even[1:-1] - barrier[i - 1]) / (barrier[i] - barrier[i - 1])
        self.scales[1:-1] = self.scales[i - 1] + part * (self.scales[i] - self.scales[i - 1])

    def cold(self) -> tuple[Tensor, Tensor]:
        """Copies of both layers at factor 1."""
        row = (self.level == len(self.scales) - 1).float().argmax(0)
        pick = row * self.shape[1] + torch.arange(self.shape[1], device=row.device)
        return self.v[pick], self.h[pick] + 0.5
