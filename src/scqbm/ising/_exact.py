"""Enumeration of the smaller layer of bits, and the one limit on it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from scqbm.ising._rbm import RBM

MAX_EXACT_UNITS = 20  # a million states: under a second, about as long as annealing takes
_CHUNK = 2**14


def smaller_side(rbm: RBM) -> float:
    """Units that enumeration has to run over: the smaller layer of bits, infinite if none is."""
    if rbm.gamma is not None:  # only visible bits have states that can be listed
        return math.inf if rbm.gaussian else rbm.n_visible
    return rbm.n_hidden if rbm.gaussian else min(rbm.n_visible, rbm.n_hidden)


def can_enumerate(rbm: RBM) -> bool:
    """Whether the smaller layer of bits has at most :data:`MAX_EXACT_UNITS` units."""
    return smaller_side(rbm) <= MAX_EXACT_UNITS


def smaller_hidden(rbm: RBM) -> tuple[RBM, bool]:
    """The machine with its smaller layer of bits as the hidden one, and whether that swapped."""
    swapped = not rbm.gaussian and rbm.n_visible < rbm.n_hidden
    return (rbm.transposed() if swapped else rbm), swapped


def enumerate_hidden(rbm: RBM) -> Iterator[tuple[Tensor, Tensor]]:
    """All states of the hidden layer and their free energies, in chunks."""
    n, like = 2**rbm.n_hidden, {"dtype": rbm.W.dtype, "device": rbm.W.device}
    for i in range(0, n, _CHUNK):
        h = all_states(rbm.n_hidden, i, min(i + _CHUNK, n), **like)
        yield h, rbm.hidden_free_energy(h)


def enumerate_visible(rbm: RBM) -> Iterator[tuple[Tensor, Tensor]]:
    """All states of a visible layer of bits and their free energies, in chunks."""
    n, like = 2**rbm.n_visible, {"dtype": rbm.W.dtype, "device": rbm.W.device}
    for i in range(0, n, _CHUNK):
        v = all_states(rbm.n_visible, i, min(i + _CHUNK, n), **like)
        yield v, rbm.free_energy(v)


@torch.no_grad()
def exact_log_partition(rbm: RBM) -> Tensor:
    """``log Z`` by enumerating the smaller layer of bits and summing the other out."""
    if rbm.gamma is None:
        rbm, _ = smaller_hidden(rbm)
        parts = [torch.logsumexp(-energy, 0) for _, energy in enumerate_hidden(rbm)]
    else:
        parts = [torch.logsumexp(-energy, 0) for _, energy in enumerate_visible(rbm)]
    return torch.logsumexp(torch.stack(parts), 0)


def all_states(n_bits: int, start: int = 0, stop: int | None = None, **kwargs) -> Tensor:
    """Rows ``start..stop`` of the table of all ``2 ** n_bits`` states; ``kwargs`` of ``.to``."""
    return states(torch.arange(start, 2**n_bits if stop is None else stop), n_bits, **kwargs)


def states(rows: Tensor, n_bits: int, **kwargs) -> Tensor:
    """These rows of that table."""
    bits = torch.arange(n_bits, device=rows.device)
    table = rows.unsqueeze(-1).bitwise_right_shift(bits).bitwise_and(1)
    return table.to(kwargs.pop("dtype", torch.get_default_dtype())).to(**kwargs)
