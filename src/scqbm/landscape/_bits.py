"""A machine's energy as that of coupled bits, and the states in which it is lowest nearby."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scqbm.ising import RBM

_MOST_SWEEPS = 1000  # far more than any descent takes


@dataclass(frozen=True)
class PairEnergy:
    """The energy of coupled bits.

    ``E(u) = -field·u - (u - 1/2)' coupling (u - 1/2) / 2``.

    Parameters
    ----------
    field
        Fields, shape ``(n,)``.
    coupling
        Symmetric couplings with a zero diagonal, shape ``(n, n)``.
    groups
        Slices of units that are not coupled among themselves: all units are in one of them.
    """

    field: Tensor
    coupling: Tensor
    groups: tuple[slice, ...]

    @classmethod
    def of(cls, rbm: RBM) -> PairEnergy:
        """The energy of all bits; Gaussian units are where the hidden bits want them.

        Of spins in a transverse field, it is the part along z.
        """
        rbm = rbm.classical()
        n_v, n_h = rbm.n_visible, rbm.n_hidden
        if rbm.gaussian:  # the least energy over v is -|a + W (h - 1/2)|^2 / 2 less b.h
            coupling = rbm.W.T @ rbm.W
            coupling.fill_diagonal_(0.0)
            alone = tuple(slice(i, i + 1) for i in range(n_h))
            return cls(rbm.b + rbm.W.T @ rbm.a, coupling, alone)
        coupling = rbm.W.new_zeros(n_v + n_h, n_v + n_h)
        coupling[:n_v, n_v:], coupling[n_v:, :n_v] = rbm.W, rbm.W.T
        return cls(torch.cat([rbm.a, rbm.b]), coupling, (slice(0, n_v), slice(n_v, n_v + n_h)))

    def energy(self, bits: Tensor) -> Tensor:
        """Energy of each row of bits."""
        centred = bits - 0.5
        return -(bits @ self.field) - ((centred @ self.coupling) * centred).sum(-1) / 2

    def flips(self, bits: Tensor) -> Tensor:
        """What the energy gains by flipping each bit on its own."""
        return (2 * bits - 1) * (self.field + (bits - 0.5) @ self.coupling)

    def descend(self, bits: Tensor) -> Tensor:
        """The state that each row runs down to, group by group, until no single flip helps."""
        bits = bits.clone()
        for _ in range(_MOST_SWEEPS):
            before = bits.clone()
            for group in self.groups:
                pull = self.field[group] + (bits - 0.5) @ self.coupling[:, group]
                # a bit without any pull stays, so that the energy falls or nothing moves
                bits[:, group] = torch.where(pull == 0, bits[:, group], (pull > 0).to(bits.dtype))
            if torch.equal(before, bits):
                break
        return bits
