"""Quantum hidden units as rings of classical spins, which any Ising sampler can draw.

Suzuki and Trotter: a spin in the fields ``f`` along z and ``gamma`` along x is the limit of a ring
of ``P`` classical spins, each with the field ``f / P``, whose neighbours are coupled by
``-log(tanh(gamma / P)) / 2``. The mean of the ring is the number between -1 and 1 of
:mod:`scqbm.ising`. The visible units feel it as they feel a classical spin.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from scqbm.ising import RBM
from scqbm.samplers.ocean._problem import IsingProblem, coupled_pairs

LONGEST = 64  # spins of a ring
TOLERANCE = 0.02  # error of a unit's free energy, in nats


class Spins(NamedTuple):
    """An Ising problem, and the unit that each of its spins belongs to."""

    fields: np.ndarray
    edges: np.ndarray
    couplings: np.ndarray
    unit: np.ndarray

    def of_units(self, reads: np.ndarray) -> np.ndarray:
        """Mean spin of each unit, in each read."""
        first = np.flatnonzero(np.diff(self.unit, prepend=-1))
        lengths = np.diff(first, append=len(self.unit))
        return np.add.reduceat(reads.astype(np.float64), first, axis=1) / lengths


def spins_of(rbm: RBM) -> Spins:
    """The prior's Ising problem, with a ring in the place of each unit in a transverse field."""
    problem = IsingProblem(rbm.classical(), coupled_pairs(rbm))
    if rbm.gamma is None:
        unit = np.arange(problem.n)
        return Spins(problem.fields, problem.edges, problem.couplings, unit)
    gamma = rbm.gamma.double().abs().cpu().numpy()
    lengths = np.ones(problem.n, dtype=int)
    lengths[-rbm.n_hidden :] = ring_lengths(gamma, largest_fields(problem)[-rbm.n_hidden :])
    unit = np.repeat(np.arange(problem.n), lengths)
    first = np.cumsum(lengths) - lengths
    # all spins of one unit with all of another, as each feels the other's mean
    one, other = problem.edges.T
    count = lengths[one] * lengths[other]
    which = np.repeat(np.arange(len(count)), count)
    place = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    row, column = np.divmod(place, lengths[other][which])
    edges = [np.stack([first[one][which] + row, first[other][which] + column], 1)]
    couplings = [np.repeat(problem.couplings / count, count)]
    if rbm.gaussian:  # a Gaussian layer couples each mean to itself: of a spin a constant
        own = rbm.W.double().square().sum(0).cpu().numpy() / 8
        for i in np.flatnonzero(lengths > 1):
            rows, columns = np.triu_indices(lengths[i], 1)
            edges.append(np.stack([rows, columns], 1) + first[i])
            couplings.append(np.full(len(rows), -2 * own[i] / lengths[i] ** 2))
    for i in np.flatnonzero(lengths > 1):
        steps = np.arange(lengths[i])
        edges.append(np.stack([steps, (steps + 1) % lengths[i]], 1) + first[i])
        along = np.log(np.tanh(gamma[i - problem.n + rbm.n_hidden] / lengths[i])) / 2
        couplings.append(np.full(lengths[i], along))
    return Spins(
        (problem.fields / lengths)[unit], np.concatenate(edges), np.concatenate(couplings), unit
    )


def largest_fields(problem: IsingProblem) -> np.ndarray:
    """A bound on the field of each spin that others rarely pass: three standard deviations."""
    total, square = np.zeros(problem.n), np.zeros(problem.n)
    for end in problem.edges.T:
        np.add.at(total, end, np.abs(problem.couplings))
        np.add.at(square, end, problem.couplings**2)
    return np.abs(problem.fields) + np.minimum(total, 3 * np.sqrt(square))


def ring_lengths(gamma: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """The shortest rings, in powers of two, whose free energies are right up to the tolerance.

    Free energies are compared at fields up to the largest; a constant does not count.
    """
    f, g = np.linspace(0, 1, 65)[:, None] * largest, gamma
    exact = _log_cosh(np.hypot(f, g))
    lengths = np.ones(len(gamma), dtype=int)
    while True:
        a, b = (np.minimum(x / lengths, 300) for x in (f, g))  # more would overflow
        # arccosh(cosh a cosh b), written so that small angles lose no digits
        off = _log_cosh(lengths * 2 * np.arcsinh(np.sqrt(_half(a, b)))) - exact
        short = (np.ptp(off, axis=0) > TOLERANCE) & (lengths < LONGEST)
        if not short.any():
            return lengths
        lengths = np.where(short, 2 * lengths, lengths)


def _half(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``(cosh a cosh b - 1) / 2``."""
    x, y = np.sinh(a / 2) ** 2, np.sinh(b / 2) ** 2
    return x + y + 2 * x * y


def _log_cosh(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(x, -x)
