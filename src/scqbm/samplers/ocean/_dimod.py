"""Any sampler of D-Wave's Ocean, annealers included, as a sampler of the prior."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import torch

from scqbm._checks import not_negative, positive, whole
from scqbm.ising import RBM, spins_to_bits
from scqbm.samplers._base import Draws, Sampler, State
from scqbm.samplers.ocean._cloud import tokens
from scqbm.samplers.ocean._rings import spins_of

if TYPE_CHECKING:
    import dimod


class DimodSampler(Sampler):
    """Draws from the prior with any :class:`dimod.Sampler` of D-Wave's Ocean.

    The sampler receives the prior as an Ising model and returns reads. Bits become spins. A
    Gaussian layer is first integrated out, which leaves a dense Ising model of the hidden bits,
    and is drawn afterwards given these bits. A hidden unit in a transverse field becomes a ring of
    up to 64 spins, which is a path in imaginary time (Suzuki and Trotter).

    The reads are taken as draws at temperature 1. This is right only if the Ocean sampler draws
    from the Boltzmann distribution. With its default settings, simulated annealing searches for
    the lowest energy instead: use :meth:`simulated_annealing` or :meth:`path_integral_annealing`.
    A quantum annealer has a temperature of its own, which
    :class:`~scqbm.samplers.QPUSampler` learns.

    ``info`` holds ``energy`` (mean) and ``seconds``.

    Parameters
    ----------
    sampler
        The Ocean sampler or composite.
    beta
        Inverse temperature at which ``sampler`` draws from what it is given. The energies are
        divided by it.
    **parameters
        Passed to ``sampler.sample`` at each query, for example ``annealing_time``.
    """

    transverse = True

    def __init__(self, sampler: dimod.Sampler, beta: float = 1.0, **parameters):
        if not callable(getattr(sampler, "sample", None)):
            raise TypeError(
                f"`sampler` must be a dimod sampler, which {type(sampler).__name__} is not."
            )
        positive("beta", beta)
        self.sampler = sampler
        self.beta = beta
        self.parameters = parameters

    @classmethod
    def simulated_annealing(cls, n_sweeps: int = 100) -> DimodSampler:
        """Ocean's simulated annealing at temperature 1 throughout, where it draws from the prior.

        Parameters
        ----------
        n_sweeps
            Sweeps per read.
        """
        from dwave.samplers import SimulatedAnnealingSampler

        whole("n_sweeps", n_sweeps)
        return cls(
            SimulatedAnnealingSampler(),
            beta_schedule_type="custom",
            beta_schedule=[1.0],
            num_sweeps_per_beta=n_sweeps,
        )

    @classmethod
    def path_integral_annealing(cls, n_sweeps: int = 400, gamma: float = 1.0) -> DimodSampler:
        """Ocean's path-integral annealing: a transverse field fades, at temperature 1 throughout.

        This is simulated quantum annealing. Each spin is a path in imaginary time. The transverse
        field bends the paths; when it has faded to 0, classical spins remain. Ocean's default
        schedule raises the couplings as well and searches for the lowest energy.

        The draws follow the prior if there are enough sweeps for the spins to move between the
        prior's modes. If there are too few, the modes get wrong probabilities: on twelve priors of
        6 + 6 units with couplings of standard deviation 3 and biases of standard deviation 1, the
        root mean square error of the first moments over 2,000 reads is 0.074 with 100 sweeps and
        0.022 with 400, and that of independent draws is 0.015
        (``benchmarks/samplers/path_integral.py``). Without biases, 100 sweeps are enough, because
        a flip of all spins changes no energy, so that opposite modes weigh the same. A stronger
        field needs more sweeps.

        Parameters
        ----------
        n_sweeps
            Sweeps per read, while the field falls from ``gamma`` to 0.
        gamma
            Transverse field at the start, in units of the temperature.
        """
        from dwave.samplers import PathIntegralAnnealingSampler

        whole("n_sweeps", n_sweeps)
        not_negative("gamma", gamma)
        return cls(
            PathIntegralAnnealingSampler(),
            beta_schedule_type="custom",
            Hp_field=np.ones(n_sweeps),
            Hd_field=np.linspace(gamma, 0, n_sweeps),
        )

    def secrets(self) -> list[str | None]:
        """The tokens in D-Wave's client, if the Ocean sampler has one."""
        return tokens(self.sampler)

    def sample(
        self,
        rbm: RBM,
        n_draws: int,
        state: State | None = None,
        generator: torch.Generator | None = None,
    ) -> Draws:
        """Query the Ocean sampler once; see :meth:`Sampler.sample`."""
        import dimod

        began = time.perf_counter()
        like = {"dtype": rbm.W.dtype, "device": rbm.W.device}
        spins = spins_of(rbm)
        bqm = dimod.BQM.from_numpy_vectors(
            spins.fields / self.beta,
            (*spins.edges.T, spins.couplings / self.beta),
            0.0,
            "SPIN",
        )
        parameters = {"num_reads": n_draws, **self.parameters}
        if "seed" in self.sampler.parameters and "seed" not in parameters:
            # drawn on the generator's own device, so that the same generator gives the same reads
            seed = torch.randint(2**31, (), generator=generator, device=rbm.W.device)
            parameters["seed"] = int(seed)
        answer = self.sampler.sample(bqm, **parameters)
        order = [answer.variables.index(i) for i in range(len(spins.unit))]
        reads = np.repeat(answer.record.sample[:, order], answer.record.num_occurrences, axis=0)
        bits = spins_to_bits(torch.from_numpy(spins.of_units(reads))).to(**like)
        if rbm.gaussian:
            visible, hidden = rbm.draw_visible(bits, generator), bits
        else:
            visible, hidden = bits.tensor_split([rbm.n_visible], 1)
        info = {
            "energy": rbm.energy(visible, hidden).mean().item(),
            "seconds": time.perf_counter() - began,
        }
        return Draws(visible=visible, hidden=hidden, info=info)
