"""What all Ising machines without a temperature of their own share: matrix, gauge, correction."""

from __future__ import annotations

import time
from abc import abstractmethod

import torch
from torch import Tensor

from scqbm._checks import at_least
from scqbm.ising import RBM, effective_beta, spins_to_bits
from scqbm.samplers._adapt import rescaled
from scqbm.samplers._base import Draws, Sampler

_PILOT_READS = 128  # few draws would tell little of the temperature


class IsingMachineSampler(Sampler):
    """Reads spins off a machine that takes one symmetric matrix and knows no temperature.

    A machine gets the matrix ``K`` of ``E(s) = -1/2 s' K s``. Biases become couplings to one
    auxiliary spin, the last; since ``E(s) = E(-s)``, every read-out is turned until that spin
    points up. A Gaussian layer is integrated out first and drawn given the hidden bits afterwards.

    Read-outs of such machines are not Boltzmann draws at temperature 1. Two corrections:

    1. *Temperature* (``adapt``): the matrix is multiplied by a scale, which after each query moves
       towards the one at which the read-outs' effective inverse temperature (maximum
       pseudolikelihood) is 1.
    2. *Sweeps* (``n_sweeps``): each read-out starts a short block Gibbs chain of the prior itself,
       which mends, within reach of the read-out, the rounding and what no scale can mend. It does
       not move read-outs between distant clusters.

    ``info`` holds ``beta`` (effective inverse temperature of the read-outs, uncorrected by
    sweeps), ``energy_read`` and ``energy`` (mean over the read-outs and over the draws),
    ``scale``, ``rounding`` (relative error of the matrix as the machine sees it) and ``seconds``.

    Parameters
    ----------
    n_sweeps
        Block Gibbs sweeps on each read-out; 0 returns the read-outs as they are.
    adapt
        Whether the scale follows the measured temperature.
    bits
        Bits of a coupling, one of them the sign; ``None`` for no rounding.
    """

    n_pilots = 0  # extra read-outs before the first, to find the scale

    def __init__(self, n_sweeps: int, adapt: bool, bits: int | None):
        at_least("n_sweeps", n_sweeps, 0)
        if bits is not None and bits < 2:
            raise ValueError(f"`bits` must be None or at least 2, not {bits}.")
        self.n_sweeps = n_sweeps
        self.adapt = adapt
        self.bits = bits

    @abstractmethod
    def read(
        self, K: Tensor, n_reads: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """``n_reads`` read-outs (spins in columns) and ``K`` as the machine could represent it."""

    @abstractmethod
    def scales(self, K: Tensor) -> tuple[float, float, float]:
        """The least scale for ``K``, the one to begin with (or stay at), and the greatest."""

    @torch.no_grad()
    def sample(
        self,
        rbm: RBM,
        n_draws: int,
        state: dict[str, Tensor | int] | None = None,
        generator: torch.Generator | None = None,
    ) -> Draws:
        """Query the machine once and correct what it answers; see :meth:`Sampler.sample`."""
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
        # E(s) = E(-s): turn each read-out until the auxiliary spin points up
        bits = spins_to_bits(spins[:, :-1] * spins[:, -1:]).to(rbm.W)
        if rbm.gaussian:
            return rbm.draw_visible(bits, generator), bits, used
        return bits[:, : rbm.n_visible], bits[:, rbm.n_visible :], used


def ising_matrix(rbm: RBM) -> Tensor:
    """The matrix ``K`` with ``E(s) = -1/2 s' K s`` up to a constant, auxiliary spin last.

    Symmetric with a zero diagonal; visible spins first, or only the hidden ones where a Gaussian
    layer is integrated out.
    """
    fields, J, _ = rbm.hidden_ising() if rbm.gaussian else rbm.to_ising()
    n = len(fields)
    upper = J.new_zeros(n + 1, n + 1)
    upper[: J.shape[0], n - J.shape[1] : n] = -J
    upper[:n, n] = -fields
    return upper + upper.T


def max_level(bits: int) -> int:
    """Largest integer of a coupling: 127 for 8 bits, of either sign."""
    return 2 ** (bits - 1) - 1


def _relative_error(used: Tensor, wanted: Tensor) -> float:
    norm = wanted.norm().item()
    return (used - wanted).norm().item() / norm if norm > 0 else 0.0
