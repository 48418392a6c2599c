"""How high one has to climb from one state to another."""

from __future__ import annotations

import torch
from torch import Tensor

from scqbm.landscape._bits import PairEnergy

_AT_A_TIME = 20_000  # paths


@torch.no_grad()
def barriers(energy: PairEnergy, states: Tensor, pairs: Tensor) -> Tensor:
    """The highest energy on a path between two states: an upper bound of the lowest such height.

    A path flips the bits in which the states differ, each once, and always the one that costs
    least. Of the ways there and back, the lower one counts.

    Parameters
    ----------
    energy
        The landscape.
    states
        Rows of bits.
    pairs
        Which states, shape ``(n_pairs, 2)``.
    """
    heights = []
    for some in pairs.split(_AT_A_TIME):
        one, other = states[some[:, 0]], states[some[:, 1]]
        there, back = _climb(energy, one, other), _climb(energy, other, one)
        heights.append(torch.minimum(there, back))
    return torch.cat(heights) if heights else states.new_zeros(0)


def _climb(energy: PairEnergy, start: Tensor, end: Tensor) -> Tensor:
    bits, left = start.clone(), start != end
    now = energy.energy(bits)
    highest = now.clone()
    rows = torch.arange(len(bits), device=bits.device)
    pull = energy.field + (bits - 0.5) @ energy.coupling
    for _ in range(int(left.sum(1).max()) if len(left) else 0):
        cost = ((2 * bits - 1) * pull).masked_fill_(~left, torch.inf)
        least, which = cost.min(1)
        moves = least.isfinite()  # shorter paths have arrived
        rows_, which_ = rows[moves], which[moves]
        now[moves] += least[moves]
        step = 1 - 2 * bits[rows_, which_]
        bits[rows_, which_] += step
        left[rows_, which_] = False
        pull[moves] += step.unsqueeze(1) * energy.coupling[which_]
        torch.maximum(highest, now, out=highest)
    return highest
