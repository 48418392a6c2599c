"""A simulated coherent Ising machine as a sampler of the prior."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scqbm._checks import at_least, is_number, not_negative
from scqbm.samplers.cim._machine import IsingMachineSampler, max_level

_DT = 0.1  # time step, in cavity lifetimes
_MAX_AMPLITUDE = 3.0  # the mode saturates; beyond, an explicit step could flip its sign
_GAIN = 0.4  # feedback at which read-outs with noise 1 and pump 2 are near temperature 1


class CIMSampler(IsingMachineSampler):
    """A simulated coherent Ising machine: optical amplitudes whose signs are the spins.

    The amplitudes ``x`` and error variables ``e`` follow the mean-field equations with amplitude
    control of Leleu et al. (2019), driven by noise as in Böhm et al. (2022)::

        dx_i = [(p - x_i^2) x_i + g e_i sum_j K_ij x_j] dt + noise dB_i
        de_i = -control (x_i^2 - 1) e_i dt

    They start from ``x`` near 0 and ``e = 1``. The net gain ``p`` (pump minus loss) rises from 0
    to ``pump``. The amplitudes therefore start with a Gaussian distribution and end in two wells,
    where the signs are read. ``K`` is the matrix with ``E(s) = -1/2 s' K s`` for the prior's
    spins, rounded to ``bits``. The feedback strength ``g`` is analogue, so the temperature
    correction changes ``g``.

    With little noise, a coherent Ising machine is an optimiser. With enough noise and without
    control, the amplitudes at a fixed pump follow a Boltzmann distribution of soft spins, which is
    close to that of the Ising model but not equal to it. Control makes the feedback asymmetric.
    That helps an optimiser. For a sampler, small amounts made no measurable difference and large
    amounts made the draws worse.

    The draws are further from the prior when its couplings are strong. On 12 + 12 bits with
    couplings of standard deviation 0.1, 0.3 and 0.6 (of spins), the second moments of 1,000
    read-outs have errors of 0.03, 0.05 and 0.14 to 0.24, and after the sweeps 0.03, 0.03 and 0.08
    to 0.19. Independent draws would have errors of 0.03, 0.03 and 0.02. The remaining error is in
    the probabilities of the modes, and ``beta`` does not show it.

    ``info`` holds ``beta`` (effective inverse temperature of the read-outs, before the sweeps),
    ``energy_read`` and ``energy`` (mean over the read-outs and over the draws), ``scale`` (``g``),
    ``rounding`` (relative error of the rounded matrix) and ``seconds``.

    Parameters
    ----------
    n_steps
        Time steps of a run, 0.1 cavity lifetimes each.
    pump
        Net gain at the end of the run.
    noise
        Strength of the noise.
    control
        Rate of the amplitude control; 0 turns it off.
    bits
        Bits of each coupling, including the sign; ``None`` for no rounding.
    n_sweeps
        Block Gibbs sweeps on each read-out; 0 returns the read-outs as they are.
    adapt
        Whether the feedback strength follows the measured temperature.

    References
    ----------
    T. Leleu, Y. Yamamoto, P. L. McMahon, K. Aihara, Destabilization of local minima in analog spin
    systems by correction of amplitude heterogeneity, Phys. Rev. Lett. 122, 040607 (2019).
    F. Böhm, D. Alonso-Urquijo, G. Verschaffelt, G. Van der Sande, Noise-injected analog Ising
    machines enable ultrafast statistical sampling and machine learning, Nat. Commun. 13, 5847
    (2022).
    """

    n_pilots = 4

    def __init__(
        self,
        n_steps: int = 200,
        pump: float = 2.0,
        noise: float = 1.0,
        control: float = 0.02,
        bits: int | None = 8,
        n_sweeps: int = 10,
        adapt: bool = True,
    ):
        super().__init__(n_sweeps, adapt, bits)
        at_least("n_steps", n_steps, 1)
        if not (is_number(pump) and 0 < pump <= 1 / _DT):
            raise ValueError(f"`pump` must be above 0 and at most {1 / _DT:g}, not {pump}.")
        not_negative("noise", noise)
        not_negative("control", control)
        self.n_steps = n_steps
        self.pump = pump
        self.noise = noise
        self.control = control

    def scales(self, K: Tensor) -> tuple[float, float, float]:
        """Feedback strengths: analogue, so the bounds only stop extreme values."""
        return _GAIN / 100, _GAIN, _GAIN * 100

    def read(
        self, K: Tensor, n_reads: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Run ``n_reads`` machines side by side and read the signs of their amplitudes."""
        if self.bits is not None and K.any():
            step = K.abs().max() / max_level(self.bits)  # the largest coupling at full range
            K = (K / step).round() * step
        x = 0.1 * torch.randn(n_reads, len(K), generator=generator, dtype=K.dtype, device=K.device)
        e = torch.ones_like(x)
        feedback, loss, kick = torch.empty_like(x), torch.empty_like(x), torch.empty_like(x)
        for t in range(1, self.n_steps + 1):
            torch.mm(x, K, out=feedback)
            torch.square(x, out=loss)
            if self.control > 0:
                feedback.mul_(e)
                # the exact solution for this step's amplitudes, which stays positive
                e.mul_(loss.sub(1).mul_(-self.control * _DT).exp_())
            gain = 1 + _DT * self.pump * t / self.n_steps
            x.mul_(loss.mul_(-_DT).add_(gain)).add_(feedback, alpha=_DT)
            kick.normal_(generator=generator)
            x.add_(kick, alpha=self.noise * math.sqrt(_DT)).clamp_(-_MAX_AMPLITUDE, _MAX_AMPLITUDE)
        # an amplitude of exactly 0 counts as +1
        return torch.where(x >= 0, 1.0, -1.0).to(K), K
