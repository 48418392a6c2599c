"""Annealed importance sampling, and the log partition function: exact where small."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from scqbm._checks import whole
from scqbm.ising._exact import can_enumerate, exact_log_partition
from scqbm.ising._rbm import RBM, draw_units
from scqbm.ising._transverse import draw as draw_hidden
from scqbm.ising._transverse import log_sum


class LogPartition(NamedTuple):
    """Estimate of ``log Z`` and its standard error (0 where exact)."""

    value: float
    error: float


@torch.no_grad()
def anneal(
    rbm: RBM, n_chains: int, n_steps: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Annealed importance sampling (Neal 2001) of the visible layer.

    The couplings are switched on in ``n_steps`` equal steps while the biases stay, with one block
    Gibbs sweep a step; the hidden layer is summed out of the weights.

    Returns
    -------
    Visible states and their log weights, relative to the uncoupled machine: the mean weight is
    ``Z / Z_uncoupled``, and weighted states follow the machine.
    """
    v = draw_units(rbm.a.expand(n_chains, -1), rbm.gaussian, generator)
    log_weight = v.new_zeros(n_chains)
    # as RBM.hidden_field and visible_field at a share of the couplings, with the centring folded
    # into the biases and buffers that are used again: faster
    b, W, W_t = rbm.b, rbm.W, rbm.W.T.contiguous()
    to_b = rbm.hidden_field(torch.zeros_like(rbm.a)) - b
    to_a = rbm.visible_field(torch.zeros_like(b)) - rbm.a
    h, back = v.new_empty(n_chains, len(b)), torch.empty_like(v)
    coupled = torch.addmm(to_b, v, W)  # the couplings' part of the field of `v`
    cold = _log_hidden(b, coupled, 0.0, rbm.gamma)
    for step in range(1, n_steps + 1):
        share = step / n_steps
        field = torch.add(b, coupled, alpha=share)
        log_weight += _log_hidden(field, coupled, share, rbm.gamma) - cold
        if step < n_steps:
            draw_hidden(field, rbm.gamma, generator, h)
            torch.addmm(torch.add(rbm.a, to_a, alpha=share), h, W_t, alpha=share, out=back)
            draw_units(back, rbm.gaussian, generator, out=v)
            torch.addmm(to_b, v, W, out=coupled)
            field = torch.add(b, coupled, alpha=share)
            cold = _log_hidden(field, coupled, share, rbm.gamma)
    return v, log_weight


def _log_hidden(field: Tensor, coupled: Tensor, share: float, gamma: Tensor | None) -> Tensor:
    """Log of what the hidden layer sums to, up to what all shares of the couplings have alike."""
    return log_sum(field, gamma).sum(-1).sub(coupled.sum(-1), alpha=share / 2)


def annealed_log_partition(
    rbm: RBM,
    n_chains: int = 256,
    n_steps: int = 200,
    generator: torch.Generator | None = None,
) -> LogPartition:
    """``log Z`` by annealed importance sampling.

    Parameters
    ----------
    rbm
        The machine.
    n_chains
        Independent annealing runs; the error falls as one over their square root.
    n_steps
        Temperatures; the bias and the variance of a run's log weight fall as one over them.
    generator
        Source of random numbers, on the device of ``rbm``.
    """
    whole("n_chains", n_chains, 2)  # one chain has no error to report
    whole("n_steps", n_steps, 1)
    _, log_weight = anneal(rbm, n_chains, n_steps, generator)
    log_weight = log_weight.cpu().double()
    mean = torch.logsumexp(log_weight, 0) - math.log(n_chains)
    relative = (log_weight - mean).exp()  # weights with mean 1
    error = relative.std() / math.sqrt(n_chains)
    return LogPartition((rbm.log_z_uncoupled().cpu() + mean).item(), error.item())


def log_partition(
    rbm: RBM,
    n_chains: int = 256,
    n_steps: int = 200,
    generator: torch.Generator | None = None,
) -> LogPartition:
    """``log Z`` and its standard error: enumerated if the smaller layer allows, else annealed."""
    if can_enumerate(rbm):
        return LogPartition(exact_log_partition(rbm).item(), 0.0)
    return annealed_log_partition(rbm, n_chains, n_steps, generator)
