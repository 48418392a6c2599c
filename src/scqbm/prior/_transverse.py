"""A quantum Boltzmann machine as a prior: an RBM whose hidden units feel a transverse field."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from scqbm._checks import amount
from scqbm.ising import RBM
from scqbm.prior._rbm import RBMPrior


class TransverseFieldPrior(RBMPrior):
    """The code is the visible layer, and each hidden unit is a spin in a transverse field.

    ``p(z)`` is the diagonal of ``exp(-H) / tr exp(-H)``, where ``H`` is the energy of
    :class:`RBMPrior` less ``gamma_j X_j`` for each hidden spin ``j`` (:mod:`scqbm.ising`). With
    ``gamma = 0`` it is :class:`RBMPrior`. Only the size of each ``gamma`` matters, not its sign.

    Parameters
    ----------
    n_latent
        Units of the code.
    n_hidden
        Hidden spins, at least one.
    *args, **kwargs
        Those of :class:`RBMPrior`.
    gamma
        Transverse field at the start, in units of the temperature.
    learn_gamma
        Whether it is learnt, for each hidden spin on its own.
    """

    def __init__(
        self,
        n_latent: int,
        n_hidden: int,
        *args: Any,
        gamma: float = 1.0,
        learn_gamma: bool = True,
        **kwargs: Any,
    ):
        if n_hidden < 1:
            raise ValueError(
                "A transverse field needs hidden units: `n_prior_hidden` must be at least 1."
            )
        amount("transverse_field", gamma)
        super().__init__(n_latent, n_hidden, *args, **kwargs)
        self.gamma = nn.Parameter(torch.full((n_hidden,), float(gamma)), learn_gamma)
        self.log_z.fill_(self.rbm().log_z_uncoupled())

    def rbm(self, frozen: bool = True) -> RBM:
        """The prior as plain numbers, with its transverse fields."""
        rbm = super().rbm(frozen)
        if not hasattr(self, "gamma"):  # the base class asks before there are any
            return rbm
        gamma = self.gamma.detach() if frozen else self.gamma
        return replace(rbm, gamma=gamma.to(rbm.W.dtype))
