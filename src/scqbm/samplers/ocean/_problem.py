"""A prior as an Ising problem with one number for each coupled pair of units."""

from __future__ import annotations

import math

import numpy as np
import torch

from scqbm.ising import RBM


class IsingProblem:
    """Fields and couplings of the spins, visible ones first, as NumPy arrays.

    A Gaussian layer is integrated out, which leaves the hidden spins, all coupled to each other.

    Parameters
    ----------
    rbm
        The prior.
    edges
        Pairs of units, as :func:`coupled_pairs` lists them.
    """

    def __init__(self, rbm: RBM, edges: np.ndarray):
        fields, J, _ = rbm.hidden_ising() if rbm.gaussian else rbm.to_ising()
        self.fields = fields.double().cpu().numpy()
        self.n = len(self.fields)
        self.edges = edges
        rows, columns = torch.from_numpy(edges - [0, _first_column(rbm)]).to(J.device).T
        here = J[rows, columns]
        self.couplings = here.double().cpu().numpy()
        # counted only if pairs may be missing, as this takes time for a large prior
        whole = rbm.gaussian or len(edges) == J.numel()
        self.is_complete = whole or bool(J.count_nonzero() == here.count_nonzero())

    def torque(self) -> float:
        """Root mean square of a coupling times the root of the mean number of neighbours."""
        if len(self.couplings) == 0:
            return 0.0
        neighbours = 2 * len(self.couplings) / self.n
        return math.sqrt((self.couplings**2).mean() * neighbours)

    def minimize(self, spins: np.ndarray, broken: np.ndarray) -> None:
        """Set broken units, in place, to their best value given the others.

        Units are set one at a time, the one with the largest field first. Broken units that are
        not set yet exert no field. This is the rule of Ocean's ``MinimizeEnergy``, here for all
        reads at once.
        """
        coupled = np.zeros((self.n, self.n))
        coupled[self.edges[:, 0], self.edges[:, 1]] = self.couplings
        coupled += coupled.T
        torn = np.flatnonzero(broken.any(1))
        known = np.where(broken[torn], 0.0, spins[torn])
        open_ = broken[torn].copy()
        field = self.fields + known @ coupled
        while open_.any():
            unit = np.where(open_, np.abs(field), -1.0).argmax(1)
            read = np.flatnonzero(open_.any(1))
            unit = unit[read]
            value = np.where(field[read, unit] > 0, -1.0, 1.0)
            known[read, unit] = value
            open_[read, unit] = False
            field[read] += value[:, None] * coupled[unit]
        spins[torn] = known.astype(spins.dtype)


def coupled_pairs(rbm: RBM) -> np.ndarray:
    """Pairs of units, visible ones counted first, whose coupling is not zero; shape ``(n, 2)``.

    These are all pairs if no coupling is set, as training will set some, and all pairs of hidden
    units if a Gaussian layer is integrated out.
    """
    if rbm.gaussian:
        pairs = torch.triu_indices(rbm.n_hidden, rbm.n_hidden, 1).T
    else:
        pairs = rbm.W.nonzero().cpu()
        if len(pairs) == 0:
            pairs = torch.ones(rbm.W.shape).nonzero()
    return pairs.numpy() + [0, _first_column(rbm)]


def _first_column(rbm: RBM) -> int:
    """The unit of the first column of the couplings."""
    return 0 if rbm.gaussian else rbm.n_visible
