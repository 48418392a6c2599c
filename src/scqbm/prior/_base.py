"""The interface of a prior: all that the loss and the negative phase use, and nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from scqbm.ising import RBM, LogPartition, log_partition


class Prior(nn.Module, ABC):
    """A Boltzmann distribution ``p(z) = exp(-F(z)) / Z`` over the latent code.

    A subclass holds the parameters and gives four methods: :meth:`rbm`, the machine that samplers
    draw from; :meth:`code` and :meth:`layers`, which translate between that machine's layers and
    the code; and :meth:`energy`, the ``F`` of a code. Where it can do better than one draw, it
    also gives :meth:`expected_energy` or :meth:`kl`. A prior that is a mixture of machines gives
    them as :meth:`machines`.

    The prior knows no sampler: a callback copies draws from ``p`` into :attr:`negatives`.

    Parameters
    ----------
    n_latent
        Units of the code.
    """

    max_lr = 1e-3  # learning rate that it bears, at most, where the user sets none
    log_z: Tensor
    log_z_error: Tensor
    positive_energy: Tensor

    def __init__(self, n_latent: int):
        super().__init__()
        self.n_latent = n_latent
        self.register_buffer("log_z", torch.zeros(()))
        self.register_buffer("log_z_error", torch.zeros(()))
        # <F> over the codes of the last training batch, for the record
        self.register_buffer("positive_energy", torch.zeros(()), persistent=False)
        # Plain tensors, not buffers: DDP would overwrite every rank's draws with rank 0's.
        self.negatives: Tensor | None = None
        self.negative_weights: Tensor | None = None
        self.negative_counts: list[int] = []  # how many negatives are from each machine

    # -- what a prior gives --------------------------------------------------------------------

    @abstractmethod
    def rbm(self, frozen: bool = True) -> RBM:
        """The machine as plain numbers in at least single precision, detached if ``frozen``."""

    @abstractmethod
    def code(self, visible: Tensor, hidden: Tensor) -> Tensor:
        """The code that a joint state of the machine stands for."""

    @abstractmethod
    def layers(self, code: Tensor) -> tuple[Tensor, Tensor | None]:
        """The layers that a code fixes; ``None`` for a hidden layer that it leaves open."""

    @abstractmethod
    def energy(self, z: Tensor, rbm: RBM | None = None) -> Tensor:
        """``F(z)``; shape of ``z`` without its last axis."""

    def machines(self) -> list[RBM]:
        """The machines that are to be sampled: :meth:`rbm`, or those of a mixture."""
        return [self.rbm()]

    # -- what the loss uses --------------------------------------------------------------------

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density of the code under the prior, at the stored ``log Z``."""
        return -self.energy(z) - self.log_z

    @property
    def expectation_is_exact(self) -> bool:
        """Whether :meth:`expected_energy` has no noise."""
        return False

    def expected_energy(
        self, qz: Distribution, z: Tensor, rbm: RBM | None = None, **known: Tensor
    ) -> Tensor:
        """``E_q[F]`` per cell, here at the draw(s) ``z``."""
        return mean_over_draws(self.energy(z, rbm), qz)

    def kl(self, qz: Distribution, z: Tensor, **known: Tensor) -> Tensor:
        """``KL(q || p)`` per cell, with its gradient to the encoder only.

        Parameters
        ----------
        qz
            Factorial posterior of the cells.
        z
            Draw(s) from it, shape ``(n_cells, n_latent)`` or ``(n_draws, n_cells, n_latent)``.
        **known
            What else is known of the cells, for priors that make use of it.
        """
        return -qz.entropy().sum(-1) + self.expected_energy(qz, z, **known) + self.log_z

    def contrast(self, qz: Distribution, z: Tensor, **known: Tensor) -> Tensor:
        """A scalar of value 0 whose gradient is ``<dF>_q - <dF>_p``, to the prior only.

        The loss adds it unweighted: the prior learns at full strength while ``kl_weight`` warms
        up. Without negatives (no callback ran) or with a frozen prior it is a plain 0.
        """
        if self.negatives is None or not self.learns:
            return self.log_z.new_zeros(())
        rbm = self.rbm(frozen=False)
        positive = self.expected_energy(_detached(qz), z.detach(), rbm, **known).mean()
        self.positive_energy.copy_(positive.detach())
        difference = positive - self._over_negatives(self.negative_energy(rbm))
        return difference - difference.detach()

    # -- what the negative phase uses ----------------------------------------------------------

    @property
    def learns(self) -> bool:
        """Whether any parameter is trained; frozen priors (query mapping) need no negatives."""
        return any(p.requires_grad for p in self.parameters())

    @torch.no_grad()
    def deliver(
        self, visible: Tensor, weights: Tensor | None = None, counts: list[int] | None = None
    ) -> None:
        """Take draws of the visible layer as negatives (copied), weighted if not equally.

        Parameters
        ----------
        visible
            The draws, machine by machine.
        weights
            Their weights, for each machine on its own.
        counts
            How many are from each of :meth:`machines`; all from one by default.
        """
        like = self.rbm().W
        self.negative_counts = [len(visible)] if counts is None else list(counts)
        if self.negatives is None or self.negatives.shape != visible.shape:
            self.negatives = torch.empty(visible.shape, dtype=like.dtype, device=like.device)
        # in place where possible: a compiled module has captured this tensor
        elif self.negatives.device != like.device or self.negatives.dtype != like.dtype:
            self.negatives = self.negatives.to(like)
        self.negatives.copy_(visible)
        if weights is not None:
            of_each = weights.split(self.negative_counts)
            weights = torch.cat([w.to(like) / w.sum() for w in of_each])
        self.negative_weights = weights

    def negative_energy(self, rbm: RBM | None = None) -> Tensor:
        """``F(v)`` of the negatives, hidden layer summed out (which lowers the noise)."""
        rbm = self.rbm() if rbm is None else rbm
        return rbm.free_energy(self._delivered(rbm))

    @torch.no_grad()
    def mean_negative_energy(self) -> Tensor:
        """``<F>`` over the negatives, the same quantity as :attr:`positive_energy` over codes."""
        rbm = self.rbm()
        v = self._delivered(rbm)
        # where the code holds both layers: the hidden one in expectation given the visible one
        return self._over_negatives(self.energy(self.code(v, rbm.hidden_mean(v)), rbm))

    def log_mean_exp(self, values: Tensor) -> Tensor:
        """Log of the mean of ``exp(values)`` over the negatives."""
        return log_mean_exp(values, self.negative_weights)

    @torch.no_grad()
    def move_log_z(self, change: Tensor) -> None:
        """Add ``change``, of the shape of :meth:`log_mean_exp`, to the stored ``log Z``."""
        self.log_z += change

    def log_partition(
        self, n_chains: int = 256, n_steps: int = 200, generator: torch.Generator | None = None
    ) -> LogPartition:
        """A new estimate of ``log Z``, see :func:`scqbm.ising.log_partition`."""
        return log_partition(self.rbm(), n_chains, n_steps, generator)

    @torch.no_grad()
    def set_log_partition(self, log_z: LogPartition) -> None:
        """Store an estimate of ``log Z`` and its standard error."""
        self.log_z.fill_(log_z.value)
        self.log_z_error.fill_(log_z.error)

    def _delivered(self, rbm: RBM) -> Tensor:
        if self.negatives is None:
            raise RuntimeError("The prior has no negatives yet: call deliver(draws) first.")
        return self.negatives.to(rbm.W.dtype)

    def _over_negatives(self, energy: Tensor) -> Tensor:
        weights = self.negative_weights
        return energy.mean() if weights is None else (weights * energy).sum()


def log_mean_exp(values: Tensor, weights: Tensor | None) -> Tensor:
    """Log of a weighted mean of exponentials."""
    if weights is None:
        return values.logsumexp(0) - torch.tensor(float(len(values))).log()
    return (values + weights.log()).logsumexp(0)


def mean_over_draws(energy: Tensor, qz: Distribution) -> Tensor:
    """Average draws away, if there are several a cell."""
    return energy.mean(0) if energy.dim() > qz.loc.dim() - 1 else energy


def _detached(qz: Distribution) -> Distribution:
    return type(qz)(
        **{name: getattr(qz, name).detach() for name in qz.arg_constraints}, validate_args=False
    )
