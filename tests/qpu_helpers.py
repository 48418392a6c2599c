"""Mock processors for the tests of QPUSampler: they draw, remember and fail on command."""

from concurrent.futures import Future

import dimod
import numpy as np
import pytest
import scvi
import torch
from dwave.samplers import SimulatedAnnealingSampler
from dwave.system.testing import MockDWaveSampler
from helpers import seeded
from scvi.data import synthetic_iid

from scqbm import QBMVI
from scqbm.ising import RBM, all_states
from scqbm.samplers import ExactSampler

ACCESS = 8550.28e-6  # seconds of processor time that a mock answer reports
QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "batch_size": 40}


class Listing(dimod.Sampler):
    """Draws at inverse temperature ``beta`` by listing all states."""

    parameters = {"num_reads": [], "seed": []}
    properties = {}

    def __init__(self, beta=2.0):
        self.beta = beta

    def sample(self, bqm, num_reads=1, seed=None, **ignored):
        states = all_states(bqm.num_variables).numpy().astype(np.int8) * 2 - 1
        energies = bqm.energies((states, bqm.variables))
        p = np.exp(-self.beta * (energies - energies.min()))
        drawn = np.random.default_rng(seed).choice(len(p), num_reads, p=p / p.sum())
        return dimod.SampleSet.from_samples_bqm((states[drawn], bqm.variables), bqm)


class MockChip(MockDWaveSampler):
    """A mock that takes a seed, remembers what it was asked and fails on command.

    ``faults`` are used up one a question: an exception is raised, a function is applied to the
    answer, ``None`` lets it pass.
    """

    def __init__(self, kind="zephyr", size=2, child=None, faults=(), **kwargs):
        shape = [size, 4] if kind == "zephyr" else [size]
        if child is None:  # held at inverse temperature 2
            child = SimulatedAnnealingSampler()
            kwargs["substitute_kwargs"] = {
                "beta_schedule_type": "custom",
                "beta_schedule": [2.0],
                "num_sweeps_per_beta": 50,
            }
        super().__init__(
            topology_type=kind,
            topology_shape=shape,
            substitute_sampler=child,
            parameter_warnings=False,
            **kwargs,
        )
        self.parameters["seed"] = []
        self.faults = list(faults)
        self.asked = []

    def sample(self, bqm, **kwargs):
        self.asked.append((bqm, kwargs))
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, Exception):
            raise fault
        answer = super().sample(bqm, **kwargs)
        return answer if fault is None else fault(answer)


def annealed(beta=3.0, n_sweeps=200):
    """For chains, which a fixed temperature would freeze."""
    return {
        "child": SimulatedAnnealingSampler(),
        "substitute_kwargs": {"beta_range": (0.05, beta), "num_sweeps": n_sweeps},
    }


def make_rbm(n_visible, n_hidden, scale=1.0, gaussian=False, seed=0):
    a, b, W = (
        torch.randn(shape, generator=seeded(seed))
        for shape in (n_visible, n_hidden, (n_visible, n_hidden))
    )
    return RBM(0.3 * a, -0.3 * b, scale * W, gaussian)


def settled(sampler, rbm, n_queries=8, n_draws=500, seed=0):
    """The state after some queries, in which the temperature is found."""
    state, generator = None, seeded(seed)
    for _ in range(n_queries):
        state = sampler.sample(rbm, n_draws, state, generator).state
    return state


def as_bqm(problem):
    ends = problem.edges.T
    return dimod.BQM.from_numpy_vectors(problem.fields, (*ends, problem.couplings), 0.0, "SPIN")


def moments(visible, hidden):
    x = torch.cat([visible, hidden], 1)
    return x.T @ x / len(x)


def assert_right_moments(sampler, rbm, n_draws=20_000, bias=0.01):
    draws = sampler.sample(rbm, n_draws, settled(sampler, rbm), seeded(1))
    truth = ExactSampler().sample(rbm, 400_000, None, seeded(2))
    off = moments(draws.visible, draws.hidden) - moments(truth.visible, truth.hidden)
    noise = 1 if rbm.gaussian else 0.5
    assert off.abs().max() < 5 * noise / n_draws**0.5 + bias
    assert draws.info["beta"] == pytest.approx(1, abs=0.05)


def tiny_model(**kwargs):
    scvi.settings.seed = 0
    adata = synthetic_iid(batch_size=40, n_genes=20)
    QBMVI.setup_anndata(adata, batch_key="batch")
    return QBMVI(adata, n_hidden=8, **{"n_latent": 8, "n_prior_hidden": 0, **kwargs})


# -- answers that went wrong --------------------------------------------------------------------


def shattered(answer):
    """Every chain broken in every read, as far as its length allows."""
    rng = np.random.default_rng(0)
    answer.record.sample[:] = rng.choice([-1, 1], answer.record.sample.shape)
    return answer


def shuffled(answer):
    """The same answer with its variables in another order."""
    order = np.random.default_rng(0).permutation(len(answer.variables))
    labels = [answer.variables[i] for i in order]
    return dimod.SampleSet.from_samples(
        (answer.record.sample[:, order], labels), "SPIN", answer.record.energy, info=answer.info
    )


def partial(answer):
    kept = answer.slice(max(1, len(answer) // 3), sorted_by=None)
    kept.info.update(answer.info)
    return kept


def histogram(answer):
    return answer.aggregate()


def lacking(answer):
    return dimod.SampleSet.from_samples(
        (answer.record.sample[:, 1:], list(answer.variables)[1:]), "SPIN", energy=0
    )


def unreadable(answer):
    answer.record.sample[0, 0] = 3
    return answer


def empty(answer):
    return answer.slice(0)


def late(answer):
    """An answer that never comes."""
    return dimod.SampleSet.from_future(Future(), lambda future: future.result())


def later(error):
    """An answer whose error shows when it is read, as over the cloud."""

    def fail(answer):
        future = Future()
        future.set_exception(error)
        return dimod.SampleSet.from_future(future, lambda future: future.result())

    return fail
