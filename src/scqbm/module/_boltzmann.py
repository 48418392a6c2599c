"""What a Boltzmann prior adds to the loss of any module of scvi-tools."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution

from scqbm.module._mixing import mixing_penalty
from scqbm.prior import Prior


@dataclass
class BoltzmannTerms:
    """Terms of the loss, as a module adds them.

    Parameters
    ----------
    kl
        ``KL(q || p)`` per cell, to be weighted by ``kl_weight``.
    contrast
        A scalar of value 0 whose gradient trains the prior, see
        :meth:`scqbm.prior.Prior.contrast`.
    batch_mixing
        Penalty on codes that differ between batches, weighted; ``None`` where there is none.
    entropy_bonus
        Bonus for uncertain bits, weighted; ``None`` where there is none.
    """

    kl: Tensor
    contrast: Tensor
    batch_mixing: Tensor | None = None
    entropy_bonus: Tensor | None = None

    def add_to(self, loss: Tensor) -> Tensor:
        """A loss that holds the KL already, with the other terms."""
        loss = loss + self.contrast
        if self.batch_mixing is not None:
            loss = loss + self.batch_mixing
        if self.entropy_bonus is not None:
            loss = loss - self.entropy_bonus
        return loss

    def metrics(self) -> dict[str, Tensor]:
        """What the loss holds beside the ELBO, each under its own name, for the history."""
        named = {"batch_mixing": self.batch_mixing, "entropy_bonus": self.entropy_bonus}
        return {name: value.detach() for name, value in named.items() if value is not None}


class BoltzmannMixin:
    """Gives a module of scvi-tools the terms of a Boltzmann prior over its code.

    Inherit from it before the module, set :attr:`prior` at the end of ``__init__``, and let the
    loss use :meth:`boltzmann_terms` in the place of the KL to N(0, I). Train it with a plan that
    inherits from :class:`scqbm.train.BoltzmannPlanMixin`.

    Attributes
    ----------
    prior
        A :class:`~scqbm.prior.Prior` over the code.
    batch_mixing
        Weight of :func:`~scqbm.module.mixing_penalty`; 0 by default.
    entropy_bonus
        Weight of the entropy of the code's posterior; 0 by default.
    """

    prior: Prior
    batch_mixing: float = 0.0
    entropy_bonus: float = 0.0

    def boltzmann_terms(
        self,
        qz: Distribution,
        z: Tensor,
        batch: Tensor | None = None,
        n_batch: int = 1,
        **known: Tensor,
    ) -> BoltzmannTerms:
        """KL, learning signal of the prior, mixing penalty and entropy bonus of a minibatch.

        Parameters
        ----------
        qz
            Posterior of the code.
        z
            Draw(s) from it.
        batch
            Batch of each cell, for the mixing penalty.
        n_batch
            Number of batches.
        **known
            What else the prior is told of the cells.
        """
        # energies need every digit: no half precision
        with torch.autocast(z.device.type, enabled=False):
            terms = BoltzmannTerms(
                self.prior.kl(qz, z, **known), self.prior.contrast(qz, z, **known)
            )
            if self.batch_mixing > 0 and n_batch > 1 and batch is not None:
                codes = qz.loc.to(torch.promote_types(qz.loc.dtype, torch.float32))
                terms.batch_mixing = self.batch_mixing * mixing_penalty(
                    codes, batch, n_batch, terms.kl
                )
        if self.entropy_bonus > 0:
            terms.entropy_bonus = self.entropy_bonus * qz.entropy().sum(-1).mean()
        return terms
