"""Any Ocean sampler, annealers included, as a sampler of the prior."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from scqbm.ising import RBM, spins_to_bits
from scqbm.samplers._base import Draws, Sampler

if TYPE_CHECKING:
    import dimod


class DimodSampler(Sampler):
    """Asks a :class:`dimod.Sampler` for reads of the prior as an Ising model.

    Bits go as they are. A Gaussian layer is integrated out first, which leaves a dense Ising model
    over the hidden bits, and is drawn given them afterwards.

    The reads count as draws at temperature 1, which holds only if the sampler samples there: the
    defaults of simulated annealing optimise instead (see :meth:`simulated_annealing`), and a
    quantum annealer has a temperature of its own (``beta``).

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
        if beta <= 0:
            raise ValueError(f"`beta` must be positive, not {beta}.")
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

    def sample(
        self,
        rbm: RBM,
        n_draws: int,
        state: dict[str, Tensor | int] | None = None,
        generator: torch.Generator | None = None,
    ) -> Draws:
        """Query the Ocean sampler once; see :meth:`Sampler.sample`."""
        import dimod

        like = {"dtype": rbm.W.dtype, "device": rbm.W.device}
        fields, couplings = _dense(rbm) if rbm.gaussian else _bipartite(rbm)
        rows, columns = np.nonzero(couplings)
        bqm = dimod.BQM.from_numpy_vectors(
            fields / self.beta,
            (rows, columns, couplings[rows, columns] / self.beta),
            0.0,
            "SPIN",
        )
        parameters = {"num_reads": n_draws, **self.parameters}
        if "seed" in self.sampler.parameters and "seed" not in parameters:
            # drawn on the generator's own device: the same generator gives the same reads
            seed = torch.randint(2**31, (), generator=generator, device=rbm.W.device)
            parameters["seed"] = int(seed)
        answer = self.sampler.sample(bqm, **parameters)
        order = [answer.variables.index(i) for i in range(len(fields))]
        reads = np.repeat(answer.record.sample[:, order], answer.record.num_occurrences, axis=0)
        bits = spins_to_bits(torch.from_numpy(reads.astype(np.float64))).to(**like)
        if rbm.gaussian:
            means = rbm.visible_field(bits)
            noise = torch.randn(means.shape, generator=generator, **like)
            return Draws(visible=means + noise, hidden=bits)
        return Draws(visible=bits[:, : rbm.n_visible], hidden=bits[:, rbm.n_visible :])


def _dense(rbm: RBM) -> tuple[np.ndarray, np.ndarray]:
    """Fields and couplings of the hidden spins, a Gaussian layer integrated out."""
    fields, couplings, _ = rbm.hidden_ising()
    return fields.double().cpu().numpy(), couplings.double().cpu().numpy()


def _bipartite(rbm: RBM) -> tuple[np.ndarray, np.ndarray]:
    """Fields of all spins, visible ones first, and the couplings as one upper triangle."""
    fields, J, _ = rbm.to_ising()
    couplings = np.zeros((len(fields), len(fields)))
    couplings[: rbm.n_visible, rbm.n_visible :] = J.double().cpu().numpy()
    return fields.double().cpu().numpy(), couplings
