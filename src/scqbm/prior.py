"""The Boltzmann prior as a module: its KL, its learning signal and its log Z."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Normal, kl_divergence

from scqbm.ising import RBM
from scqbm.partition import LogPartition
from scqbm.topology import native_layout

if TYPE_CHECKING:
    import networkx as nx


class RBMPrior(nn.Module):
    """An RBM over the latent code.

    Two layouts share this interface. With ``n_hidden = 0`` the two halves of the code are the two
    layers, so a factorial posterior has an exact expected energy. With ``n_hidden > 0`` the code
    is the visible layer and the hidden bits are summed out: ``p(z) = sum_h exp(-E(z, h)) / Z``.

    The prior knows no sampler: a callback copies draws from p into :attr:`negatives`.

    Parameters
    ----------
    n_latent
        Units of the code.
    n_hidden
        Hidden bits outside the code; 0 lays the RBM over the code's halves.
    gaussian
        Whether the code is continuous (needs ``n_hidden > 0``).
    init_scale
        Standard deviation of the initial couplings. Exactly zero would be a saddle point.
    topology
        Couplings only where an annealer's chip has couplers, see
        :func:`scqbm.topology.native_layout`; ``None`` couples all units of one layer to all of
        the other.
    """

    def __init__(
        self,
        n_latent: int,
        n_hidden: int,
        gaussian: bool = False,
        init_scale: float = 0.01,
        topology: str | nx.Graph | None = None,
    ):
        super().__init__()
        self.n_latent = n_latent
        self.gaussian = gaussian
        self.in_halves = n_hidden == 0
        n_visible = n_latent // 2 if self.in_halves else n_latent
        n_hidden = n_latent - n_visible if self.in_halves else n_hidden
        self.visible_bias = nn.Parameter(torch.zeros(n_visible))
        self.hidden_bias = nn.Parameter(torch.zeros(n_hidden))
        self.sparse = topology is not None
        if self.sparse:  # one number a coupler, and where it goes
            layout = native_layout(topology, n_visible, n_hidden)
            self.register_buffer("rows", torch.from_numpy(layout.rows))
            self.register_buffer("columns", torch.from_numpy(layout.columns))
        shape = (len(self.rows),) if self.sparse else (n_visible, n_hidden)
        self.coupling = nn.Parameter(init_scale * torch.randn(shape))
        log_z = self.rbm().scaled(0.0).log_z_uncoupled()
        self.register_buffer("log_z", log_z.detach())
        self.register_buffer("log_z_error", torch.zeros(()))
        # <F> over the codes of the last training batch, for the record
        self.register_buffer("positive_energy", torch.zeros(()), persistent=False)
        # Plain tensors, not buffers: DDP would overwrite every rank's draws with rank 0's.
        self.negatives: Tensor | None = None
        self.negative_weights: Tensor | None = None

    def rbm(self, frozen: bool = True) -> RBM:
        """The prior as plain numbers in at least single precision, detached if ``frozen``."""
        tensors = (self.visible_bias, self.hidden_bias, self.coupling)
        if frozen:
            tensors = tuple(t.detach() for t in tensors)
        a, b, W = (t if t.dtype == torch.float64 else t.float() for t in tensors)
        if self.sparse:
            W = W.new_zeros(len(a), len(b)).index_put((self.rows, self.columns), W)
        return RBM(a, b, W, gaussian=self.gaussian)

    @property
    def learns(self) -> bool:
        """Whether the couplings are trained; frozen priors (query mapping) need no negatives."""
        return self.coupling.requires_grad

    def energy(self, z: Tensor, rbm: RBM | None = None) -> Tensor:
        """``F(z)`` with ``p(z) = exp(-F(z)) / Z``; shape of ``z`` without its last axis."""
        rbm = self.rbm() if rbm is None else rbm
        z = z.to(rbm.W.dtype)
        if self.in_halves:
            return rbm.energy(z[..., : rbm.n_visible], z[..., rbm.n_visible :])
        return rbm.free_energy(z)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density of the code under the prior, at the stored ``log Z``."""
        return -self.energy(z) - self.log_z

    def expected_energy(self, qz: Distribution, z: Tensor, rbm: RBM | None = None) -> Tensor:
        """``E_q[F]`` per cell, exact where the layout allows, else at the draw ``z``."""
        if self.in_halves:
            return self.energy(qz.loc, rbm)
        return _mean_over_draws(self.energy(z, rbm), qz)

    def kl(self, qz: Distribution, z: Tensor) -> Tensor:
        """``KL(q || p)`` per cell, with its gradient to the encoder only.

        Parameters
        ----------
        qz
            Factorial posterior of the cells.
        z
            Draw(s) from it, shape ``(n_cells, n_latent)`` or ``(n_draws, n_cells, n_latent)``.
        """
        if not self.gaussian:
            return -qz.entropy().sum(-1) + self.expected_energy(qz, z) + self.log_z
        # Gaussian: KL to N(0, I) in closed form, so only the couplings cost a draw
        rbm = self.rbm()
        qz = Normal(qz.loc.to(rbm.W.dtype), qz.scale.to(rbm.W.dtype))  # from half precision
        standard = Normal(torch.zeros_like(qz.loc), torch.ones_like(qz.scale))
        correction = _mean_over_draws(rbm.interaction(z.to(rbm.W.dtype)), qz)
        log_z = self.log_z - self.n_latent * math.log(2 * math.pi) / 2
        return kl_divergence(qz, standard).sum(-1) + (correction + log_z)

    def contrast(self, qz: Distribution, z: Tensor) -> Tensor:
        """A scalar of value 0 whose gradient is ``<dF>_q - <dF>_p``, to the prior only.

        The loss adds it unweighted: the prior learns at full strength while ``kl_weight`` warms
        up. Without negatives (no callback ran) or with a frozen prior it is a plain 0.
        """
        if self.negatives is None or not self.learns:
            return self.log_z.new_zeros(())
        rbm = self.rbm(frozen=False)
        positive = self.expected_energy(_detached(qz), z.detach(), rbm).mean()
        self.positive_energy.copy_(positive.detach())
        negative = self.negative_energy(rbm)
        if self.negative_weights is None:
            difference = positive - negative.mean()
        else:
            difference = positive - (self.negative_weights * negative).sum()
        return difference - difference.detach()

    def negative_energy(self, rbm: RBM | None = None) -> Tensor:
        """``F(v)`` of the negatives, hidden layer summed out in either layout (less noise)."""
        return (self.rbm() if rbm is None else rbm).free_energy(self.negatives)

    @torch.no_grad()
    def mean_negative_energy(self) -> Tensor:
        """``<F>`` over the negatives, the same quantity as :attr:`positive_energy` over codes."""
        rbm, v = self.rbm(), self.negatives
        if self.in_halves:  # the code holds both layers: given v, the hidden one in expectation
            energy = rbm.energy(v, rbm.hidden_field(v).sigmoid())
        else:
            energy = rbm.free_energy(v)
        weights = self.negative_weights
        return energy.mean() if weights is None else (weights * energy).sum()

    @torch.no_grad()
    def deliver(self, visible: Tensor, weights: Tensor | None = None) -> None:
        """Take draws of the visible layer as negatives (copied), weighted if not equally."""
        like = self.rbm().W
        if self.negatives is None or self.negatives.shape != visible.shape:
            self.negatives = torch.empty(visible.shape, dtype=like.dtype, device=like.device)
        # in place where possible: a compiled module has captured this tensor
        elif self.negatives.device != like.device or self.negatives.dtype != like.dtype:
            self.negatives = self.negatives.to(like)
        self.negatives.copy_(visible)
        self.negative_weights = None if weights is None else weights.to(like) / weights.sum()

    @torch.no_grad()
    def set_log_partition(self, log_z: LogPartition) -> None:
        """Store an estimate of ``log Z`` and its standard error."""
        self.log_z.fill_(log_z.value)
        self.log_z_error.fill_(log_z.error)


def _mean_over_draws(energy: Tensor, qz: Distribution) -> Tensor:
    """Average draws away, if there are several a cell."""
    return energy.mean(0) if energy.dim() > qz.loc.dim() - 1 else energy


def _detached(qz: Distribution) -> Distribution:
    return type(qz)(
        **{name: getattr(qz, name).detach() for name in qz.arg_constraints}, validate_args=False
    )
