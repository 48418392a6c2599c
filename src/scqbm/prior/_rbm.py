"""The restricted Boltzmann machine as a prior over bits or real numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Normal, kl_divergence

from scqbm.ising import RBM, native_layout
from scqbm.prior._base import Prior, mean_over_draws

if TYPE_CHECKING:
    import networkx as nx


class RBMPrior(Prior):
    """An RBM over the latent code.

    Two layouts share this interface. With ``n_hidden = 0`` the two halves of the code are the two
    layers, so a factorial posterior has an exact expected energy. With ``n_hidden > 0`` the code
    is the visible layer and the hidden bits are summed out: ``p(z) = sum_h exp(-E(z, h)) / Z``.

    Parameters
    ----------
    n_latent
        Units of the code.
    n_hidden
        Hidden bits outside the code; 0 makes the code's two halves the RBM's layers.
    gaussian
        Whether the code is continuous (needs ``n_hidden > 0``).
    init_scale
        Standard deviation of the initial couplings. Exactly zero would be a saddle point.
    topology
        Couplings only where an annealer's chip has couplers, see
        :func:`scqbm.ising.native_layout`; ``None`` couples all units of one layer to all of the
        other.
    """

    def __init__(
        self,
        n_latent: int,
        n_hidden: int,
        gaussian: bool = False,
        init_scale: float = 0.01,
        topology: Literal["zephyr", "pegasus"] | nx.Graph | None = None,
    ):
        super().__init__(n_latent)
        self.gaussian = gaussian
        self.in_halves = n_hidden == 0
        if not gaussian and not self.in_halves:
            self.max_lr = 3e-3  # hidden bits learn too slowly at less
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
        self.log_z.fill_(self.rbm().log_z_uncoupled())

    def rbm(self, frozen: bool = True) -> RBM:
        """The prior as plain numbers in at least single precision, detached if ``frozen``."""
        tensors = (self.visible_bias, self.hidden_bias, self.coupling)
        if frozen:
            tensors = tuple(t.detach() for t in tensors)
        a, b, W = (t if t.dtype == torch.float64 else t.float() for t in tensors)
        if self.sparse:
            W = W.new_zeros(len(a), len(b)).index_put((self.rows, self.columns), W)
        return RBM(a, b, W, gaussian=self.gaussian)

    def code(self, visible: Tensor, hidden: Tensor) -> Tensor:
        """The code that a joint state of the machine stands for."""
        return torch.cat([visible, hidden], -1) if self.in_halves else visible

    def layers(self, code: Tensor) -> tuple[Tensor, Tensor | None]:
        """The layers that a code fixes; ``None`` for a hidden layer that it leaves open."""
        if not self.in_halves:
            return code, None
        n_visible = len(self.visible_bias)
        return code[..., :n_visible], code[..., n_visible:]

    def energy(self, z: Tensor, rbm: RBM | None = None) -> Tensor:
        """``F(z)`` with ``p(z) = exp(-F(z)) / Z``; shape of ``z`` without its last axis."""
        return self._machine_energy(z, rbm)

    def _machine_energy(self, z: Tensor, rbm: RBM | None) -> Tensor:
        rbm = self.rbm() if rbm is None else rbm
        visible, hidden = self.layers(z.to(rbm.W.dtype))
        return rbm.free_energy(visible) if hidden is None else rbm.energy(visible, hidden)

    @property
    def expectation_is_exact(self) -> bool:
        """Whether the energy is linear in each bit, so that probabilities give its mean."""
        return self.in_halves

    def expected_energy(
        self, qz: Distribution, z: Tensor, rbm: RBM | None = None, **known: Tensor
    ) -> Tensor:
        """``E_q[F]`` per cell, exact where the layout allows, else at the draw(s) ``z``."""
        if self.in_halves:
            return self._machine_energy(qz.loc, rbm)
        return mean_over_draws(self._machine_energy(z, rbm), qz)

    def kl(self, qz: Distribution, z: Tensor, **known: Tensor) -> Tensor:
        """``KL(q || p)`` per cell; see :meth:`Prior.kl`."""
        if not self.gaussian:
            return super().kl(qz, z, **known)
        # Gaussian: KL to N(0, I) in closed form, so only the couplings cost a draw
        rbm = self.rbm()
        qz = Normal(qz.loc.to(rbm.W.dtype), qz.scale.to(rbm.W.dtype))  # from half precision
        standard = Normal(torch.zeros_like(qz.loc), torch.ones_like(qz.scale))
        correction = mean_over_draws(rbm.interaction(z.to(rbm.W.dtype)), qz)
        log_z = self.log_z - self.n_latent * math.log(2 * math.pi) / 2
        return kl_divergence(qz, standard).sum(-1) + (correction + log_z)
