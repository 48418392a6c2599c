"""Any Ocean sampler, annealers included, as a sampler of the prior."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from scqbm._checks import positive
from scqbm.ising import RBM, spins_to_bits
from scqbm.samplers._base import Draws, Sampler
from scqbm.samplers.ocean._problem import IsingProblem, coupled_pairs

if TYPE_CHECKING:
    import dimod


class DimodSampler(Sampler):
    """Asks a :class:`dimod.Sampler` for reads of the prior as an Ising model.

    Bits go as they are. A Gaussian layer is integrated out first, which leaves a dense Ising model
    over the hidden bits, and is drawn given them afterwards.

    The reads count as draws at temperature 1, which holds only if the sampler samples there: the
    defaults of simulated annealing optimise instead (see :meth:`simulated_annealing` and
    :meth:`path_integral_annealing`), and a quantum annealer has a temperature of its own: for one,
    :class:`~scqbm.samplers.QPUSampler` learns it.

    ``info`` holds ``energy`` (mean) and ``seconds``.

    Parameters
    ----------
    sampler
        The Ocean sampler or composite.
    beta
        Inverse temperature at which ``sampler`` draws from what it is given; the energies are
        divided by it.
    **parameters
        Passed to ``sampler.sample`` at each query, for example ``annealing_time``.
    """

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
        """Ocean's simulated annealing held at temperature 1, where it samples."""
        from dwave.samplers import SimulatedAnnealingSampler

        return cls(
            SimulatedAnnealingSampler(),
            beta_schedule_type="custom",
            beta_schedule=[1.0],
            num_sweeps_per_beta=n_sweeps,
        )

    @classmethod
    def path_integral_annealing(cls, n_sweeps: int = 100, gamma: float = 1.0) -> DimodSampler:
        """Ocean's path-integral annealing of the transverse field, at temperature 1 throughout.

        Simulated quantum annealing: each spin is a path in imaginary time, which a transverse
        field of ``gamma`` bends and whose fading to nothing leaves the classical spins. Ocean's
        default schedule raises the couplings as well and ends an optimiser.

        What bias is left comes from fading too fast. On 6 + 6 units against enumeration, the root
        mean square error of second moments of spins over 10,000 reads is that of independent
        draws (.008) at couplings of standard deviation 3 with the default 100 sweeps, .015 with
        50; a stronger field costs time and needs more sweeps (.065 with ``gamma=3`` and 50). Each
        sweep takes about twenty times as long as one of :meth:`simulated_annealing`.

        Parameters
        ----------
        n_sweeps
            Sweeps from ``gamma`` to 0.
        gamma
            Transverse field at the start, in units of the temperature.
        """
        from dwave.samplers import PathIntegralAnnealingSampler

        return cls(
            PathIntegralAnnealingSampler(),
            beta_schedule_type="custom",
            Hp_field=np.ones(n_sweeps),
            Hd_field=np.linspace(gamma, 0, n_sweeps),
        )

    def sample(
        self,
        rbm: RBM,
        n_draws: int,
        state: dict[str, Tensor | int] | None = None,
        generator: torch.Generator | None = None,
    ) -> Draws:
        """Query the Ocean sampler once; see :meth:`Sampler.sample`."""
        import dimod

        began = time.perf_counter()
        like = {"dtype": rbm.W.dtype, "device": rbm.W.device}
        problem = IsingProblem(rbm, coupled_pairs(rbm))
        bqm = dimod.BQM.from_numpy_vectors(
            problem.fields / self.beta,
            (*problem.edges.T, problem.couplings / self.beta),
            0.0,
            "SPIN",
        )
        parameters = {"num_reads": n_draws, **self.parameters}
        if "seed" in self.sampler.parameters and "seed" not in parameters:
            # drawn on the generator's own device: the same generator gives the same reads
            seed = torch.randint(2**31, (), generator=generator, device=rbm.W.device)
            parameters["seed"] = int(seed)
        answer = self.sampler.sample(bqm, **parameters)
        order = [answer.variables.index(i) for i in range(problem.n)]
        reads = np.repeat(answer.record.sample[:, order], answer.record.num_occurrences, axis=0)
        bits = spins_to_bits(torch.from_numpy(reads.astype(np.float64))).to(**like)
        if rbm.gaussian:
            visible, hidden = rbm.draw_visible(bits, generator), bits
        else:
            visible, hidden = bits.tensor_split([rbm.n_visible], 1)
        info = {
            "energy": rbm.energy(visible, hidden).mean().item(),
            "seconds": time.perf_counter() - began,
        }
        return Draws(visible=visible, hidden=hidden, info=info)
