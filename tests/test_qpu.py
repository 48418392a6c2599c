"""The quantum annealer: on mock chips of real graphs, and on a real one if there is a token."""

import copy
import functools
import itertools
import os
import pickle
import re
import time
import warnings
from concurrent.futures import Future

import dimod
import dwave.cloud.exceptions as cloud
import dwave.embedding
import numpy as np
import pytest
import requests
import scvi
import torch
from dwave.samplers import SimulatedAnnealingSampler
from dwave.system.testing import MockDWaveSampler
from scvi.data import synthetic_iid

from scqbm import QBMVI
from scqbm.ising import RBM, all_states
from scqbm.samplers import (
    DimodSampler,
    ExactSampler,
    QPUSampler,
)
from scqbm.samplers.ocean import _chip, _placing
from scqbm.samplers.ocean._problem import IsingProblem, coupled_pairs

TOKEN = "DEV-0123456789abcdef0123456789abcdef01234567"
ACCESS = 8550.28e-6  # seconds of processor time that a mock answer reports


@pytest.fixture(autouse=True)
def _kept_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("SCQBM_CACHE", str(tmp_path))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


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


def seeded(seed):
    return torch.Generator().manual_seed(seed)


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


# -- draws are right ----------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [1.5, 6.0])
def test_moments_without_chains(beta):
    sampler = QPUSampler(MockChip(child=Listing(beta)), n_gauges=3)
    assert_right_moments(sampler, make_rbm(4, 5))
    assert set(map(len, sampler.embedding.values())) == {1}
    state = settled(sampler, make_rbm(4, 5))
    assert state["scale"].item() == pytest.approx(1 / beta, rel=0.05)


def test_moments_on_any_structured_sampler():
    square = [(4 * i + j, 4 * i + j + 1) for i in range(4) for j in range(3)]
    square += [(4 * i + j, 4 * i + j + 4) for i in range(3) for j in range(4)]
    child = dimod.StructureComposite(Listing(2.0), range(16), square)
    sampler = QPUSampler(child)
    assert_right_moments(sampler, make_rbm(2, 3))
    assert max(map(len, sampler.embedding.values())) > 1


def test_moments_of_a_gaussian_prior():
    sampler = QPUSampler(MockChip(child=Listing(2.0)), chain_strength=5.0)
    rbm = make_rbm(2, 5, gaussian=True)
    assert_right_moments(sampler, rbm)
    assert any(len(chain) > 1 for chain in sampler.embedding.values())


@pytest.mark.parametrize("chain_breaks", ["vote", "discard", "minimize"])
def test_moments_when_chains_break(chain_breaks):
    sampler = QPUSampler(
        MockChip(child=Listing(2.0)), chain_strength=1.5, chain_breaks=chain_breaks
    )
    rbm = make_rbm(2, 5, scale=0.7, gaussian=True)
    draws = sampler.sample(rbm, 20_000, settled(sampler, rbm), seeded(1))
    truth = ExactSampler().sample(rbm, 400_000, None, seeded(2))
    assert 0.005 < draws.info["chain_break_fraction"] < 0.2
    off = moments(draws.hidden, draws.hidden) - moments(truth.hidden, truth.hidden)
    assert off.abs().max() < 0.1  # breaking distorts, more than noise, and is reported


@pytest.mark.parametrize(
    ("kind", "size", "n"),
    [
        ("zephyr", 3, 20),
        ("pegasus", 4, 20),
        pytest.param("zephyr", 15, 64, marks=pytest.mark.slow),
        pytest.param("pegasus", 16, 64, marks=pytest.mark.slow),
    ],
)
def test_temperature_and_energy_on_real_graphs_with_missing_qubits(kind, size, n):
    missing = [37, 52, 118]
    chip = MockChip(kind, size, broken_nodes=missing, **annealed())
    sampler, rbm = QPUSampler(chip), make_rbm(n, n, scale=0.3)
    draws = sampler.sample(rbm, 1000, settled(sampler, rbm, 10, 200), seeded(1))
    assert draws.info["beta"] == pytest.approx(1, abs=0.08)
    assert draws.info["chain_break_fraction"] < 0.1
    chains = DimodSampler.simulated_annealing(200).sample(rbm, 1000, None, seeded(1))
    spread = rbm.energy(chains.visible, chains.hidden).std() * (2 / 1000) ** 0.5
    gap = draws.info["energy"] - chains.info["energy"]
    assert abs(gap) < 5 * spread + 0.1 * n**0.5
    assert not set(missing) & set(itertools.chain(*sampler.embedding.values()))


def test_same_generator_same_draws():
    def draw(seed):
        sampler = QPUSampler(MockChip(), n_gauges=2)
        return sampler.sample(make_rbm(3, 4), 50, None, seeded(seed))

    assert torch.equal(draw(1).visible, draw(1).visible)
    assert not torch.equal(draw(1).visible, draw(2).visible)


# -- what is programmed -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "size", "sizes", "gaussian"),
    [
        ("zephyr", 3, (20, 20), False),
        ("pegasus", 4, (8, 11), False),
        ("zephyr", 3, (3, 12), True),
        ("chimera", 4, (5, 6), False),
    ],
)
def test_whole_chains_have_the_energy_of_their_units(kind, size, sizes, gaussian):
    chip = MockChip("zephyr" if kind == "chimera" else kind, size)
    if kind == "chimera":
        chip = MockDWaveSampler(parameter_warnings=False)
    sampler = QPUSampler(chip, adapt=False, chain_strength=20.0)
    rbm = make_rbm(*sizes, gaussian=gaussian)
    sampler.sample(rbm, 3, None, seeded(0))
    chip, embedding = sampler._chip, sampler._placed[2]
    problem = IsingProblem(rbm, coupled_pairs(rbm))
    source = [tuple(edge) for edge in problem.edges.tolist()]
    dwave.embedding.verify_embedding(sampler.embedding, source, list(chip.graph.edges))
    spins = np.random.default_rng(0).choice([-1, 1], (7, problem.n))
    on_chip = np.repeat(spins, embedding.lengths, axis=1)
    biases, couplers = embedding.program(problem.fields, problem.couplings, 3.0)
    energy = on_chip @ biases
    energy += (on_chip[:, embedding.rows] * on_chip[:, embedding.columns]) @ couplers
    bits = torch.from_numpy((spins + 1) / 2).float()
    wanted = rbm.hidden_free_energy(bits) if gaussian else rbm.energy(*bits.split(sizes, 1))
    np.testing.assert_allclose(energy - energy[0], wanted - wanted[0], atol=1e-4)


def test_within_ranges_and_as_they_are():
    chip = MockChip("zephyr", 3, **annealed())
    rbm = make_rbm(20, 20, scale=6.0)
    sampler = QPUSampler(chip, adapt=False, beta=0.1, annealing_time=7.0)
    with pytest.warns(UserWarning, match="exceed the range") as caught:
        for _ in range(2):
            sampler.sample(rbm, 10, None, seeded(0))
    assert len(caught) == 1
    for bqm, given in chip.asked:
        assert given["auto_scale"] is False and given["answer_mode"] == "raw"
        assert given["annealing_time"] == 7.0
        biases, couplers = bqm.linear.values(), list(bqm.quadratic.values())
        assert max(map(abs, biases)) <= 4 + 1e-9
        assert -2 - 1e-9 <= min(couplers) and max(couplers) <= 1 + 1e-9
        largest = max(max(map(abs, biases)) / 4, max(c for c in couplers))
        assert largest > 0.5  # the range is used
        for qubit in bqm.variables:
            total = sum(bqm.adj[qubit].values())
            assert -18 - 1e-9 <= total <= 15 + 1e-9


def test_strength_of_chains():
    rbm = make_rbm(20, 20, scale=0.1)
    for strength, expected in ((None, 1.5), (2.5, 2.5)):
        chip = MockChip("zephyr", 3)
        QPUSampler(chip, adapt=False, beta=4.0, chain_strength=strength).sample(
            rbm, 5, None, seeded(0)
        )
        assert -min(chip.asked[0][0].quadratic.values()) == pytest.approx(expected / 4)
    strong = make_rbm(20, 20, scale=4.0)
    problem = IsingProblem(strong, coupled_pairs(strong))
    bqm = as_bqm(problem)
    ocean = dwave.embedding.chain_strength.uniform_torque_compensation(bqm, prefactor=1)
    assert problem.torque() == pytest.approx(ocean)


def test_gauges_change_what_is_programmed_and_not_what_is_drawn():
    chip = MockChip()
    QPUSampler(chip, adapt=False, n_gauges=3).sample(make_rbm(4, 4), 10, None, seeded(0))
    assert [given["num_reads"] for _, given in chip.asked] == [4, 3, 3]
    signs = {tuple(np.sign(list(bqm.linear.values()))) for bqm, _ in chip.asked}
    sizes = {tuple(np.abs(list(bqm.linear.values()))) for bqm, _ in chip.asked}
    assert len(signs) == 3 and len(sizes) == 1
    chip = MockChip()
    QPUSampler(chip, adapt=False, n_gauges=0).sample(make_rbm(4, 4), 10, None, seeded(0))
    assert len(chip.asked) == 1


def test_reads_come_in_batches_no_larger_than_the_chip_allows():
    chip = MockChip(properties={"num_reads_range": [1, 50]})
    draws = QPUSampler(chip, adapt=False).sample(make_rbm(3, 3), 120, None, seeded(0))
    assert [given["num_reads"] for _, given in chip.asked] == [50, 50, 20]
    assert len(draws.visible) == 120
    seeds = [given["seed"] for _, given in chip.asked]
    assert len(set(seeds)) == 3


# -- broken chains ------------------------------------------------------------------------------


def broken_reads(seed=0, n_reads=200):
    sampler = QPUSampler(MockChip("zephyr", 3), adapt=False)
    rbm = make_rbm(20, 20)
    sampler.sample(rbm, 3, None, seeded(0))
    embedding = sampler._placed[2]
    rng = np.random.default_rng(seed)
    reads = rng.choice(np.array([-1, 1], dtype=np.int8), (n_reads, len(embedding.qubits)))
    return rbm, sampler, embedding, reads


def columns(embedding):
    return np.split(np.arange(len(embedding.qubits)), np.cumsum(embedding.lengths)[:-1])


def test_vote_and_breaks_against_ocean():
    _, _, embedding, reads = broken_reads()
    spins, broken = embedding.vote(reads, np.random.default_rng(0))
    chains = columns(embedding)
    assert (broken == dwave.embedding.broken_chains(reads, chains)).all()
    theirs, _ = dwave.embedding.majority_vote(reads, chains)
    tied = np.stack([reads[:, chain].sum(1) == 0 for chain in chains], 1)
    assert tied.any() and (spins == theirs)[~tied].all()
    assert abs(spins[tied].mean()) < 5 / tied.sum() ** 0.5  # Ocean's is always +1


def test_minimize_against_ocean():
    rbm, sampler, embedding, reads = broken_reads()
    problem = IsingProblem(rbm, coupled_pairs(rbm))
    bqm = as_bqm(problem)
    chains = {i: tuple(chain.tolist()) for i, chain in enumerate(columns(embedding))}
    ocean = dwave.embedding.MinimizeEnergy(bqm, chains)
    reads[:, ::3] = reads[:, :1]  # some chains whole
    theirs, _ = ocean(reads, list(chains.values()))
    spins, broken = embedding.vote(reads, np.random.default_rng(0))
    problem.minimize(spins, broken)
    assert (spins == theirs).all()


def shattered(answer):
    """Every chain broken in every read, as far as its length allows."""
    rng = np.random.default_rng(0)
    answer.record.sample[:] = rng.choice([-1, 1], answer.record.sample.shape)
    return answer


@pytest.mark.parametrize(
    ("chain_breaks", "message"),
    [
        ("vote", "of the chains"),
        ("discard", "had all chains whole"),
        ("minimize", "of the chains"),
    ],
)
def test_when_every_chain_breaks(chain_breaks, message):
    chip = MockChip("zephyr", 3, faults=[shattered] * 100)
    sampler = QPUSampler(chip, adapt=False, chain_breaks=chain_breaks)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            draws = sampler.sample(make_rbm(20, 20), 30, None, seeded(0))
    texts = [str(w.message) for w in caught]
    assert sum(message in text for text in texts) == 1
    assert len(texts) <= 2 and all(text.count("chain") for text in texts)
    assert draws.visible.shape == (30, 20) and draws.info["chain_break_fraction"] > 0.5


def test_discard_keeps_whole_reads_only():
    chip = MockChip("zephyr", 3, faults=[half_torn], **annealed())
    sampler = QPUSampler(chip, adapt=False, chain_breaks="discard", chain_strength=4.0)
    sampler.sample(make_rbm(20, 20, 0.2), 40, None, seeded(0))
    assert [given["num_reads"] for _, given in chip.asked][:2] == [40, 20]


def half_torn(answer):
    shattered(answer)
    answer.record.sample[::2] = 1
    return answer


# -- faults -------------------------------------------------------------------------------------


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


PASSING = {
    "order": shuffled,
    "partial": partial,
    "histogram": histogram,
    "timeout": requests.exceptions.ReadTimeout("read timed out"),
    "polling": later(cloud.PollingTimeout()),
    "late": late,
    "500": later(cloud.SolverError("internal error", error_code=500)),
    "503": requests.exceptions.HTTPError("503 Service Unavailable"),
    "429": cloud.SolverError("too many requests", error_code=429),
    "failure": later(cloud.SolverFailureError("the processor failed")),
    "connection": ConnectionResetError("connection reset by peer"),
    "lacking": lacking,
    "unreadable": unreadable,
    "empty": empty,
}


@pytest.mark.parametrize("fault", PASSING)
def test_a_passing_fault_changes_nothing(fault):
    """Retried, topped up or put in order: no warning and right draws."""
    chip = MockChip(child=Listing(2.0))
    sampler = QPUSampler(chip, timeout=0.01)
    rbm = make_rbm(4, 5)
    state = settled(sampler, rbm)
    chip.faults = [PASSING[fault]] * 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draws = sampler.sample(rbm, 10_000, state, seeded(1))
    assert draws.info["on_qpu"] == 1 and len(chip.faults) < 2
    assert draws.visible.shape == (10_000, 4)
    truth = ExactSampler().sample(rbm, 400_000, None, seeded(2))
    off = moments(draws.visible, draws.hidden) - moments(truth.visible, truth.hidden)
    assert off.abs().max() < 0.04


def test_pauses_grow_between_retries(monkeypatch):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    chip = MockChip(faults=[TimeoutError()] * 3)
    QPUSampler(chip, backoff=0.5, retries=3, adapt=False).sample(
        make_rbm(2, 2), 5, None, seeded(0)
    )
    assert pauses == [0.5, 1.0, 2.0]


def test_always_short_answers_say_so_once():
    chip = MockChip(faults=[lambda answer: answer.slice(2, sorted_by=None)] * 100)
    sampler = QPUSampler(chip, adapt=False)
    with pytest.warns(UserWarning, match="fewer reads than asked") as caught:
        for _ in range(2):
            draws = sampler.sample(make_rbm(3, 3), 50, None, seeded(0))
    assert len(caught) == 1 and draws.visible.shape == (50, 3)


def test_after_an_outage_the_fallback_draws_and_the_chip_is_tried_again():
    chip, rbm = MockChip(), make_rbm(3, 3)
    sampler = QPUSampler(chip, retries=1, retry_every=3)
    first = sampler.sample(rbm, 64, None, seeded(0))
    chip.faults = [ConnectionError("unreachable")] * 2
    state, where = first.state, []
    with pytest.warns(UserWarning, match=r"does not answer \(unreachable\).*GibbsSampler") as said:
        for i in range(6):
            draws = sampler.sample(rbm, 64, state, seeded(i))
            state = pickle.loads(pickle.dumps(draws.state))
            where.append(draws.info["on_qpu"])
            assert all(isinstance(v, torch.Tensor | int) for v in state.values())
    assert len(said) == 1
    assert where == [0, 0, 0, 1, 1, 1]
    # what was learnt about the chip is still known
    assert state["n_seen"] == first.state["n_seen"] + 3


def test_the_fallbacks_chains_persist():
    sampler = QPUSampler(MockChip(faults=[TimeoutError()] * 99), retries=0, retry_every=5)
    rbm = make_rbm(3, 3)
    with pytest.warns(UserWarning):
        one = sampler.sample(rbm, 64, None, seeded(0))
    two = sampler.sample(rbm, 64, one.state, seeded(1))
    assert two.state["fallback.age"] == 1


def test_a_refusal_is_not_asked_twice():
    for error in (
        cloud.SolverAuthenticationError(error_code=401),
        cloud.SolverError(error_code=400),
    ):
        chip = MockChip(faults=[error])
        with pytest.warns(UserWarning, match="does not answer"):
            QPUSampler(chip).sample(make_rbm(2, 2), 5, None, seeded(0))
        assert len(chip.asked) == 1


def test_errors_of_ones_own_are_raised():
    chip = MockChip(faults=[ValueError("annealing_time must be a number")])
    with pytest.raises(ValueError, match="annealing_time"):
        QPUSampler(chip).sample(make_rbm(2, 2), 5, None, seeded(0))
    sampler = QPUSampler(MockChip(faults=[TimeoutError("gone")] * 9), fallback="raise", retries=0)
    with pytest.raises(_chip.Outage, match="gone"):
        sampler.sample(make_rbm(2, 2), 5, None, seeded(0))


def test_the_budget_is_kept_and_survives_a_resume():
    rbm, cap = make_rbm(2, 2), 5.5 * ACCESS
    chip = MockChip()
    sampler = QPUSampler(chip, max_qpu_time=cap, adapt=False)
    state, where = None, []
    with pytest.warns(UserWarning, match="max_qpu_time.*GibbsSampler draws from now on") as said:
        for i in range(60):
            draws = sampler.sample(rbm, 16, state, seeded(i))
            state = draws.state
            where.append(draws.info["on_qpu"])
    assert len(said) == 1
    assert where == [1] * 5 + [0] * 55 and len(chip.asked) == 5
    assert sampler.qpu_seconds == pytest.approx(5 * ACCESS)
    assert state["qpu_seconds"].item() == sampler.qpu_seconds
    resumed = QPUSampler(MockChip(), max_qpu_time=cap, adapt=False)
    with pytest.warns(UserWarning, match="max_qpu_time"):
        resumed.sample(rbm, 16, {**state, "rest": 0, "qpu_seconds": torch.tensor(cap)}, seeded(0))
    assert not resumed._chip.child.asked


# -- tokens -------------------------------------------------------------------------------------


class Client:
    def __init__(self, token):
        self.token = token


def cloud_sampler(monkeypatch, **kwargs):
    def connect(token=None, **config):
        chip = MockChip(**kwargs)
        chip.client = Client(token)
        return chip

    monkeypatch.setattr("dwave.system.DWaveSampler", connect)
    return QPUSampler.from_cloud(solver="Advantage2", token=TOKEN, retries=0)


def test_tokens_are_nowhere(monkeypatch, tmp_path):
    error = ConnectionError(f"403 for header X-Auth-Token: {TOKEN}")
    sampler = cloud_sampler(monkeypatch, faults=[None, None, None, error] + [error] * 99)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = tiny_model()
        model.train(
            2, sampler=sampler, enable_checkpointing=True, default_root_dir=tmp_path, **QUIET
        )
    said = [str(w.message) for w in caught]
    assert any("[token]" in text for text in said)
    places = [repr(sampler), str(vars(sampler)), *said, str(model), str(model.init_params_)]
    secret = TOKEN.split("-")[1]
    assert not any(secret in place for place in places)
    for copied in (copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))):
        assert secret.encode() not in pickle.dumps(copied)
        with pytest.raises(RuntimeError, match="must not carry access tokens"):
            copied.sample(make_rbm(2, 2), 5)
    model.save(tmp_path / "model")
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) > 1
    assert not any(secret.encode() in file.read_bytes() for file in files)


def test_a_failed_connection_does_not_show_the_token(monkeypatch):
    def refuse(**config):
        raise cloud.SolverAuthenticationError(f"invalid token {config['token']}")

    monkeypatch.setattr("dwave.system.DWaveSampler", refuse)
    with pytest.raises(ConnectionError, match=r"invalid token \[token\]") as caught:
        QPUSampler.from_cloud(token="secret")
    assert "secret" not in str(caught.value) and caught.value.__cause__ is None
    assert caught.value.__suppress_context__


# -- embeddings are kept ------------------------------------------------------------------------


def test_found_once_for_each_chip_and_size(monkeypatch, tmp_path):
    searches = []
    dense = _placing.dense_chains
    monkeypatch.setattr(
        _placing, "dense_chains", lambda *args: searches.append(args[:2]) or dense(*args)
    )

    def ask(sampler, n):
        return sampler.sample(make_rbm(n, n), 5, None, seeded(0))

    sampler = QPUSampler(MockChip("zephyr", 3), adapt=False)
    for _ in range(3):
        ask(sampler, 8)
    ask(QPUSampler(MockChip("zephyr", 3), adapt=False), 8)  # from disk
    assert searches == [(8, 8)]
    ask(sampler, 9)
    ask(QPUSampler(MockChip("zephyr", 3, broken_nodes=[5]), adapt=False), 8)
    assert searches == [(8, 8), (9, 9), (8, 8)]
    for file in tmp_path.rglob("*.json"):
        file.write_text("spoilt")
    ask(QPUSampler(MockChip("zephyr", 3), adapt=False), 8)
    assert len(searches) == 4


def test_couplings_may_change_between_queries():
    sampler = QPUSampler(MockChip(child=Listing(2.0)))
    settled(sampler, make_rbm(4, 5))
    assert_right_moments(sampler, make_rbm(4, 5, seed=5))


def test_too_large_for_the_chip():
    sampler = QPUSampler(MockChip())
    with pytest.raises(ValueError, match=r"200 \+ 200 units does not fit.*n_latent"):
        sampler.sample(make_rbm(200, 200), 5, None, seeded(0))


# -- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"chain_breaks": "pray"}, "`chain_breaks`"),
        ({"n_gauges": -1}, "`n_gauges`"),
        ({"retries": -1}, "`retries`"),
        ({"backoff": -1.0}, "`backoff`"),
        ({"retry_every": 0}, "`retry_every`"),
        ({"max_qpu_time": -1}, "`max_qpu_time`"),
        ({"beta": 0}, "`beta`"),
        ({"chain_strength": 0}, "`chain_strength`"),
        ({"timeout": 0}, "`timeout`"),
        ({"num_reads": 5}, "`num_reads`"),
        ({"auto_scale": True}, "`auto_scale`"),
    ],
)
def test_bad_values(kwargs, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        QPUSampler(MockChip(), **kwargs)


def test_bad_types():
    with pytest.raises(TypeError, match="DimodSampler"):
        QPUSampler(SimulatedAnnealingSampler())
    with pytest.raises(TypeError, match="`fallback`"):
        QPUSampler(MockChip(), fallback="gibbs")


# -- training -----------------------------------------------------------------------------------

QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "batch_size": 40}


BITS = {"n_latent": 8}
NORMAL = {"latent_distribution": "normal", "n_latent": 4, "n_prior_hidden": 10}  # needs chains


def tiny_model(family=BITS):
    scvi.settings.seed = 0
    adata = synthetic_iid(batch_size=40, n_genes=20)
    QBMVI.setup_anndata(adata, batch_key="batch")
    return QBMVI(adata, n_hidden=8, **family)


@functools.cache
def losses(family, fault=None):
    """Loss and reconstruction loss by epoch, what the sampler said, and how often it asked."""
    faults, kwargs = FAULTS.get(fault, ([], {}))
    chip = MockChip(faults=faults, **(annealed() if family == "NORMAL" else {}))
    sampler, model = QPUSampler(chip, retry_every=3, **kwargs), tiny_model(globals()[family])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.train(6, sampler=sampler, **QUIET)
    said = [str(w.message) for w in caught if w.filename.endswith("_qpu.py")]
    curves = [model.history[name].to_numpy(float)[:, 0] for name in CURVES]
    return curves, said, len(chip.asked)


CURVES = ("train_loss", "reconstruction_loss_train")


def from_the_seventh(fault):
    return [None] * 6 + [fault] * 1000


FAULTS = {
    "timeout": (from_the_seventh(TimeoutError()), {}),
    "5xx": (from_the_seventh(later(cloud.SolverError("busy", error_code=503))), {}),
    "partial": (from_the_seventh(partial), {"retries": 1}),
    "order": (from_the_seventh(shuffled), {}),
    "chains": (from_the_seventh(shattered), {}),
    "cap": ([], {"max_qpu_time": 8.5 * ACCESS}),
    "passing": ([None] * 6 + [TimeoutError()] * 2, {}),
}


@pytest.mark.parametrize(
    ("fault", "family", "message"),
    [
        ("timeout", "BITS", "does not answer"),
        ("5xx", "BITS", "does not answer"),
        ("partial", "BITS", "fewer reads than asked"),
        ("order", "BITS", None),
        ("chains", "NORMAL", "of the chains"),
        ("cap", "BITS", "max_qpu_time"),
        ("passing", "BITS", None),
    ],
)
def test_training_survives(fault, family, message):
    (loss, reconstruction), said, n_asked = losses(family, fault)
    assert len(said) == (message is not None) and all(message in text for text in said)
    assert n_asked > 6
    # the curve goes on as if nothing had happened
    (clean, _), nothing, _ = losses(family)
    assert not nothing and len(loss) == len(clean) == 6
    np.testing.assert_allclose(loss, clean, rtol=0.01)
    assert reconstruction[-1] < reconstruction[0]


# -- the same on a real processor ---------------------------------------------------------------


@pytest.fixture(
    scope="module", params=["mock", pytest.param("hardware", marks=pytest.mark.hardware)]
)
def processor(request):
    if request.param == "mock":
        return MockChip("zephyr", 6, **annealed())
    if not os.environ.get("DWAVE_API_TOKEN"):
        pytest.skip("no DWAVE_API_TOKEN")
    from dwave.system import DWaveSampler

    return DWaveSampler()


def test_processor_draws_near_temperature_one(processor):
    sampler = QPUSampler(processor, max_qpu_time=5.0)
    for rbm in (make_rbm(4, 4), make_rbm(16, 16, 0.3), make_rbm(3, 8, gaussian=True)):
        state = None
        for i in range(5):
            draws = sampler.sample(rbm, 200, state, seeded(i))
            state = draws.state
            assert draws.info["on_qpu"] == 1
        assert draws.info["beta"] == pytest.approx(1, abs=0.25)
        assert draws.info["chain_break_fraction"] < 0.1
        layers = (draws.visible, draws.hidden)
        assert all(((x == 0) | (x == 1)).all() for x in layers[rbm.gaussian :])


def test_processor_trains(processor):
    sampler, model = QPUSampler(processor, max_qpu_time=5.0), tiny_model()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*does not answer.*")
        model.train(2, sampler=sampler, **QUIET)
    assert sampler.qpu_seconds > 0
    assert np.isfinite(model.get_elbo())
