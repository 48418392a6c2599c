"""What Ising machines without a temperature have in common: matrix, gauge and corrections."""

from __future__ import annotations

import time
from abc import abstractmethod
from numbers import Real

import torch
from torch import Tensor

from scqbm._checks import at_least
from scqbm.ising import RBM, effective_beta, spins_to_bits
from scqbm.samplers._adapt import rescaled
from scqbm.samplers._base import Draws, Sampler, State

_PILOT_READS = 128  # fewer give a poor estimate of the temperature


class IsingMachineSampler(Sampler):
    """Base of samplers on Ising machines that take one symmetric matrix and no temperature.

    The machine receives the matrix ``K`` of ``E(s) = -1/2 s' K s``. Biases become couplings to an
    auxiliary spin, the last one. Since ``E(s) = E(-s)``, all spins of a read-out are flipped if
    its auxiliary spin is -1. A Gaussian layer is integrated out first, and drawn afterwards given
    the hidden bits.

    The read-outs of such machines are not Boltzmann draws at temperature 1. Two corrections bring
    them closer:

    1. *Temperature* (``adapt``): the matrix is multiplied by a scale. After each query the scale
       moves towards the value at which the effective inverse temperature of the read-outs
       (measured by maximum pseudolikelihood) is 1.
    2. *Sweeps* (``n_sweeps``): each read-out starts a short block Gibbs chain of the prior itself.
       The sweeps correct the rounding and other local errors. They do not move read-outs between
       distant modes.

    ``info`` holds ``beta`` (effective inverse temperature of the read-outs, before the sweeps),
    ``energy_read`` and ``energy`` (mean over the read-outs and over the draws), ``scale``,
    ``rounding`` (relative error of the matrix after the machine's rounding) and ``seconds``.

    Parameters
    ----------
    n_sweeps
        Block Gibbs sweeps on each read-out; 0 returns the read-outs as they are.
    adapt
        Whether the scale follows the measured temperature.
    bits
        Bits of each coupling, including the sign; ``None`` for no rounding.
    """

    n_pilots = 0  # rounds of read-outs before the first query, to find the scale

    def __init__(self, n_sweeps: int, adapt: bool, bits: int | None):
        at_least("n_sweeps", n_sweeps, 0)
        if bits is not None and not (isinstance(bits, Real) and bits >= 2):
            raise ValueError(f"`bits` must be None or at least 2, not {bits}.")
        self.n_sweeps = n_sweeps
        self.adapt = adapt
        self.bits = bits

    @abstractmethod
    def read(
        self, K: Tensor, n_reads: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """``n_reads`` read-outs, one per row, and ``K`` as the machine could represent it."""

    @abstractmethod
    def scales(self, K: Tensor) -> tuple[float, float, float]:
        """The smallest scale for ``K``, the one to start with (or to stay at), and the largest."""

    @torch.no_grad()
    def sample(
        self,
        rbm: RBM,
        n_draws: int,
        state: State | None = None,
        generator: torch.Generator | None = None,
    ) -> Draws:
        """Query the machine once and correct its read-outs; see :meth:`Sampler.sample`."""
        began = time.perf_counter()
        K = ising_matrix(rbm)
        least, scale, most = self.scales(K)
        n_seen = 0
        if self.adapt and state is not None and "scale" in state:
            scale, n_seen = state["scale"].item(), state["n_seen"]
        elif self.adapt:
            for _ in range(self.n_pilots):
                v, h, _ = self._read(rbm, K * scale, max(n_draws, _PILOT_READS), generator)
                scale, n_seen = rescaled(scale, effective_beta(rbm, v, h), n_seen)
                scale = min(max(scale, least), most)
        scale = min(max(scale, least), most)
        v, h, used = self._read(rbm, K * scale, n_draws, generator)
        beta = effective_beta(rbm, v, h)
        info = {
            "beta": beta,
            "energy_read": rbm.energy(v, h).mean().item(),
            "rounding": _relative_error(used, K * scale),
            "scale": scale,
        }
        if self.adapt:
            scale, n_seen = rescaled(scale, beta, n_seen)
        for _ in range(self.n_sweeps):
            h = rbm.draw_hidden(v, generator)
            v = rbm.draw_visible(h, generator)
        info["energy"] = rbm.energy(v, h).mean().item()
        info["seconds"] = time.perf_counter() - began
        kept = {"scale": torch.tensor(scale, dtype=torch.float64), "n_seen": n_seen}
        return Draws(visible=v, hidden=h, state=kept, info=info)

    def _read(
        self, rbm: RBM, K: Tensor, n_reads: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        spins, used = self.read(K, n_reads, generator)
        # E(s) = E(-s): flip all spins of a read-out whose auxiliary spin is -1
        bits = spins_to_bits(spins[:, :-1] * spins[:, -1:]).to(rbm.W)
        if rbm.gaussian:
            return rbm.draw_visible(bits, generator), bits, used
        return bits[:, : rbm.n_visible], bits[:, rbm.n_visible :], used


def ising_matrix(rbm: RBM) -> Tensor:
    """The matrix ``K`` with ``E(s) = -1/2 s' K s`` up to a constant, auxiliary spin last.

    The matrix is symmetric with a zero diagonal. Visible spins come first; there are none if the
    visible layer is Gaussian and integrated out.
    """
    fields, J, _ = rbm.hidden_ising() if rbm.gaussian else rbm.to_ising()
    n = len(fields)
    upper = J.new_zeros(n + 1, n + 1)
    upper[: J.shape[0], n - J.shape[1] : n] = -J
    upper[:n, n] = -fields
    return upper + upper.T


def max_level(bits: int) -> int:
    """Size of the largest integer coupling: 127 for 8 bits."""
    return 2 ** (bits - 1) - 1


def _relative_error(used: Tensor, wanted: Tensor) -> float:
    norm = wanted.norm().item()
    return (used - wanted).norm().item() / norm if norm > 0 else 0.0
