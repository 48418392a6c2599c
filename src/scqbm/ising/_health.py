"""Figures that tell whether draws can be what they claim; cheap enough for every epoch."""

from __future__ import annotations

import torch
from torch import Tensor

from scqbm.ising._rbm import RBM, bits_to_spins

MAX_BETA = 100.0
_STIFFNESS = 25.0  # one over the variance of the prior on beta


def effective_number(weights: Tensor | None, n_draws: int) -> float:
    """How many equally weighted draws the weights are worth (Kish)."""
    if weights is None:
        return float(n_draws)
    return (weights.sum().square() / weights.square().sum()).item()


def autocorrelation(before: Tensor, after: Tensor) -> float:
    """Correlation over chains between two times, pooled over units by their variance."""
    if len(before) < 2 or before.shape != after.shape:
        return 0.0
    if torch.equal(before, after):
        return 1.0  # constant draws have no variance to correlate
    x, y = before - before.mean(0), after - after.mean(0)
    scale = (x.square().sum() * y.square().sum()).sqrt()
    return ((x * y).sum() / scale).item() if scale > 0 else 0.0


@torch.no_grad()
def effective_beta(
    rbm: RBM, visible: Tensor, hidden: Tensor, weights: Tensor | None = None
) -> float:
    """Inverse temperature at which draws look drawn from ``rbm``: 1 where they are.

    Maximum pseudolikelihood: the factor on the log-odds of each bit given all others under which
    the bits as drawn are likeliest. A Gaussian layer is integrated out first; if the hidden units
    are in a transverse field, it is the factor on the means of the Gaussian units instead.

    Parameters
    ----------
    rbm
        The machine.
    visible
        Draws of its visible layer.
    hidden
        Draws of its hidden layer, from the same joint states.
    weights
        Weights of the draws, if not equal.
    """
    if rbm.gaussian and rbm.gamma is not None:  # the factor on the means of the Gaussian units
        mean, share = rbm.visible_field(hidden), 1.0
        if weights is not None:
            share = weights.unsqueeze(-1) * (len(weights) / weights.sum())
        along, square = (share * visible * mean).sum(), (share * mean.square()).sum()
        return float((along + _STIFFNESS) / (square + _STIFFNESS))
    if rbm.gaussian:
        fields, upper, _ = rbm.hidden_ising()
        odds = -2 * (fields + bits_to_spins(hidden) @ (upper + upper.T))
        drawn = hidden
    else:
        odds, drawn = rbm.visible_field(hidden), visible
        if rbm.gamma is None:  # else the hidden draws are no bits
            odds = torch.cat([odds, rbm.hidden_field(visible)], -1)
            drawn = torch.cat([drawn, hidden], -1)
    return pseudolikelihood_beta(odds * bits_to_spins(drawn), weights)


def pseudolikelihood_beta(alignment: Tensor, weights: Tensor | None = None) -> float:
    """The factor ``beta`` that maximises ``sum log sigmoid(beta * alignment)``.

    A prior of 1 +- 0.2 keeps it at 1 where the couplings are too weak for the draws to tell.

    Parameters
    ----------
    alignment
        Log-odds of each unit's value as drawn, given the others, at inverse temperature 1; shape
        ``(n_draws, n_units)``.
    weights
        Weights of the draws, if not equal.
    """
    n = len(alignment)
    share = 1.0 if weights is None else weights.unsqueeze(-1) * (n / weights.sum())
    beta, low, high = 1.0, -MAX_BETA, MAX_BETA  # the slope falls: the root stays in between
    for _ in range(60):
        against = torch.sigmoid(-beta * alignment)
        pull = (share * alignment * against).sum().item()
        slope = pull - _STIFFNESS * (beta - 1)
        curvature = (share * alignment.square() * against * (1 - against)).sum().item()
        step = slope / (curvature + _STIFFNESS)
        if abs(step) < 1e-4:
            break
        # Newton where it stays in the bracket, else halve that
        low, high = (beta, high) if slope > 0 else (low, beta)
        reach = 1 + abs(beta)
        guess = beta + min(max(step, -reach), reach)
        beta = guess if low < guess < high else (low + high) / 2
    return beta
