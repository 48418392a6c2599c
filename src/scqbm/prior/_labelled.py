"""A restricted Boltzmann machine with a label unit: the joint prior of code and cell type."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from scqbm.ising import RBM, LogPartition, log_partition
from scqbm.prior._base import log_mean_exp
from scqbm.prior._rbm import RBMPrior

_LEAST_CHAINS = 64  # of each label, for an estimate of log Z


class LabelledLogPartition(LogPartition):
    """``log Z`` and its standard error; ``of_labels``: the log of each label's part of ``Z``."""

    of_labels: Tensor


class LabelledPrior(RBMPrior):
    """An RBM whose code is coupled to a label ``y``: one unit with a value for each label.

    ``p(z, y) = exp(-E(z) + c_y + U_y.z) / Z``, with the energy ``E`` of :class:`RBMPrior`. So
    ``p(y | z)`` is the softmax of ``c_y + U_y.z``, which is exact, and ``p(z | y)`` is the same
    machine with the fields ``U_y`` on top of its biases. ``p(z)`` is their mixture.

    Each label has its own negatives, drawn from its machine: no chain has to find its way from one
    type of cell to another, and no sampler has to know of labels. Each machine counts by its share
    of ``Z``, which is estimated and followed for each label.

    Parameters
    ----------
    n_labels
        Labels, at least two.
    *args, **kwargs
        Those of :class:`RBMPrior`.
    """

    log_masses: Tensor

    def __init__(self, n_labels: int, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.n_labels = n_labels
        self.label_bias = nn.Parameter(torch.zeros(n_labels))
        self.label_field = nn.Parameter(torch.zeros(n_labels, self.n_latent))
        # log of the sum of exp(-E(z, y)) over z, for each label
        self.register_buffer("log_masses", torch.zeros(n_labels))
        self.start_from({})

    def start_from(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights of an :class:`RBMPrior`; no label has fields yet."""
        self.load_state_dict(dict(state), strict=False)
        nn.init.zeros_(self.label_bias)
        nn.init.zeros_(self.label_field)
        self.log_masses.fill_(self.log_z)
        self.log_z += math.log(self.n_labels)

    def label_scores(self, z: Tensor, frozen: bool = False) -> Tensor:
        """``c_y + U_y.z`` for each label: ``log p(y | z)`` up to what all labels share."""
        bias, field = self.label_bias, self.label_field
        if frozen:
            bias, field = bias.detach(), field.detach()
        with torch.autocast(z.device.type, enabled=False):
            if field.dtype != torch.float64:
                bias, field = bias.float(), field.float()
            return z.to(field) @ field.T + bias

    def label_energy(self, z: Tensor, frozen: bool = True) -> Tensor:
        """What the label adds to ``F(z)`` when it is summed out."""
        return -self.label_scores(z, frozen).logsumexp(-1)

    def machines(self) -> list[RBM]:
        """``p(z | y)`` for each label."""
        rbm = self.rbm()
        return [rbm.shifted(*self.layers(u.to(rbm.W))) for u in self.label_field.detach()]

    @property
    def label_shares(self) -> Tensor:
        """``p(y)``."""
        return self.log_masses.softmax(0)

    # -- energies of codes ---------------------------------------------------------------------

    def energy(self, z: Tensor, rbm: RBM | None = None) -> Tensor:
        """``F(z)`` with the label summed out."""
        # the loss hands over a machine where it trains the prior
        return super().energy(z, rbm) + self.label_energy(z, frozen=rbm is None)

    @property
    def expectation_is_exact(self) -> bool:
        """No: the label's part is not linear in the bits."""
        return False

    def expected_energy(
        self, qz: Distribution, z: Tensor, rbm: RBM | None = None, **known: Tensor
    ) -> Tensor:
        """Expected energy of the code and the label per cell, less the entropy of the label.

        Parameters
        ----------
        qz, z, rbm
            As in :meth:`Prior.expected_energy`.
        **known
            ``labels``: the posterior ``q(y)`` of each cell, shape ``(n_cells, n_labels)``; one-hot
            where the label is known. By default the best one, ``softmax(c + U.E_q[z])``.
        """
        energy = super().expected_energy(qz, z, rbm)
        return energy + self._label_term(qz.loc, known.get("labels"), rbm is None)

    def kl(self, qz: Distribution, z: Tensor, **known: Tensor) -> Tensor:
        """``KL(q || p)`` per cell of the code and the label; see :meth:`expected_energy`."""
        kl = super().kl(qz, z, **known)
        return kl + self._label_term(qz.loc, known.get("labels")) if self.gaussian else kl

    def _label_term(self, mean: Tensor, labels: Tensor | None, frozen: bool = True) -> Tensor:
        if labels is None:
            return self.label_energy(mean, frozen)
        labels = labels.to(mean)
        entropy = -torch.xlogy(labels, labels).sum(-1)
        return -(labels * self.label_scores(mean, frozen)).sum(-1) - entropy

    # -- negatives, label by label -------------------------------------------------------------

    def negative_energy(self, rbm: RBM | None = None) -> Tensor:
        """``F(v, y)`` of the negatives, hidden layer summed out."""
        frozen = rbm is None
        rbm = self.rbm() if rbm is None else rbm
        v, y = self._delivered(rbm), self._labels_of_negatives()
        bias, field = self.label_bias[y], self.label_field[y]
        if frozen:
            bias, field = bias.detach(), field.detach()
        visible, hidden = self.layers(field.to(rbm.W))
        on_hidden = rbm.hidden_field(v) if hidden is None else rbm.hidden_field(v) + hidden
        return rbm.free_energy(v, on_hidden) - (v * visible).sum(-1) - bias.to(rbm.W)

    @torch.no_grad()
    def mean_negative_energy(self) -> Tensor:
        """``<F>`` over the negatives, with the label summed out."""
        rbm = self.rbm()
        v = self._delivered(rbm)
        _, field = self.layers(self.label_field[self._labels_of_negatives()].to(rbm.W))
        on_hidden = rbm.hidden_field(v) if field is None else rbm.hidden_field(v) + field
        return self._over_negatives(self.energy(self.code(v, on_hidden.sigmoid())))

    @torch.no_grad()
    def log_mean_exp(self, values: Tensor) -> Tensor:
        """The same for each label on its own."""
        parts = zip(values.split(self.negative_counts), self._weights(), strict=True)
        return torch.stack([log_mean_exp(part, weights) for part, weights in parts])

    @torch.no_grad()
    def move_log_z(self, change: Tensor) -> None:
        """Add ``change`` to the log of each label's share of ``Z``."""
        self.log_masses += change
        self.log_z.copy_(self.log_masses.logsumexp(0))

    def log_partition(
        self, n_chains: int = 256, n_steps: int = 200, generator: torch.Generator | None = None
    ) -> LabelledLogPartition:
        """A new estimate of ``log Z``; ``n_chains`` are divided among the labels."""
        n_each = max(_LEAST_CHAINS, n_chains // self.n_labels)
        each = [log_partition(m, n_each, n_steps, generator) for m in self.machines()]
        bias = self.label_bias.detach().double().cpu()
        log_masses = bias + torch.tensor([part.value for part in each], dtype=torch.float64)
        errors = torch.tensor([part.error for part in each], dtype=torch.float64)
        total = log_masses.logsumexp(0)
        error = (log_masses.softmax(0) * errors).square().sum().sqrt()
        estimate = LabelledLogPartition(total.item(), error.item())
        estimate.of_labels = log_masses
        return estimate

    @torch.no_grad()
    def set_log_partition(self, log_z: LogPartition) -> None:
        """Store an estimate of :meth:`log_partition`."""
        super().set_log_partition(log_z)
        assert isinstance(log_z, LabelledLogPartition)
        self.log_masses.copy_(log_z.of_labels)

    def _labels_of_negatives(self) -> Tensor:
        counts = torch.tensor(self.negative_counts, device=self.log_z.device)
        return torch.arange(len(counts), device=counts.device).repeat_interleave(counts)

    def _over_negatives(self, energy: Tensor) -> Tensor:
        means = [
            part.mean() if w is None else (w * part).sum()
            for part, w in zip(energy.split(self.negative_counts), self._weights(), strict=True)
        ]
        return (self.label_shares * torch.stack(means)).sum()

    def _weights(self) -> list[Tensor] | list[None]:
        if self.negative_weights is None:
            return [None] * len(self.negative_counts)
        return list(self.negative_weights.split(self.negative_counts))
