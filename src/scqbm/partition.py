"""Log partition function of an RBM: exact where small, else annealed importance sampling."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from scqbm.ising import RBM, all_states

MAX_EXACT_UNITS = 14  # 16,384 states: about the price of a training step
_CHUNK = 2**14


class LogPartition(NamedTuple):
    """Estimate of ``log Z`` and its standard error (0 where exact)."""

    value: float
    error: float


def smaller_side(rbm: RBM) -> int:
    """Units that enumeration has to run over: the smaller layer of bits."""
    return rbm.n_hidden if rbm.gaussian else min(rbm.n_visible, rbm.n_hidden)


@torch.no_grad()
def exact_log_partition(rbm: RBM) -> Tensor:
    """``log Z`` by enumerating the smaller layer of bits and summing the other out."""
    if not rbm.gaussian and rbm.n_visible < rbm.n_hidden:
        rbm = rbm.transposed()
    n = 2**rbm.n_hidden
    like = {"dtype": rbm.W.dtype, "device": rbm.W.device}
    parts = [
        torch.logsumexp(
            -rbm.hidden_free_energy(all_states(rbm.n_hidden, i, min(i + _CHUNK, n), **like)), 0
        )
        for i in range(0, n, _CHUNK)
    ]
    return torch.logsumexp(torch.stack(parts), 0)


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
    like = {"dtype": rbm.W.dtype, "device": rbm.W.device}

    def draw(field: Tensor, gaussian: bool) -> Tensor:
        if gaussian:
            return field + torch.randn(field.shape, generator=generator, **like)
        return (torch.rand(field.shape, generator=generator, **like) < field.sigmoid()).to(field)

    v = draw(rbm.a.expand(n_chains, -1), rbm.gaussian)
    log_weight = torch.zeros(n_chains, **like)
    cold = rbm.scaled(0.0)
    for step in range(1, n_steps + 1):
        warm, cold = cold, rbm.scaled(step / n_steps)
        log_weight += warm.interaction(v) - cold.interaction(v)
        if step < n_steps:
            h = draw(cold.hidden_field(v), False)
            v = draw(cold.visible_field(h), rbm.gaussian)
    return v, log_weight


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
    max_exact_units: int = MAX_EXACT_UNITS,
    generator: torch.Generator | None = None,
) -> LogPartition:
    """``log Z`` and its standard error: enumerated if the smaller layer allows, else annealed."""
    if smaller_side(rbm) <= max_exact_units:
        return LogPartition(exact_log_partition(rbm).item(), 0.0)
    return annealed_log_partition(rbm, n_chains, n_steps, generator)
