"""The quantum annealer on mock chips of real graphs: its draws, its programs, its arguments."""

import itertools
import re

import dimod
import dwave.embedding
import numpy as np
import pytest
import torch
from dwave.samplers import SimulatedAnnealingSampler
from dwave.system.testing import MockDWaveSampler
from helpers import assert_one_sentence, seeded
from qpu_helpers import (
    Listing,
    MockChip,
    annealed,
    as_bqm,
    assert_right_moments,
    make_rbm,
    moments,
    settled,
)

from scqbm.samplers import DimodSampler, ExactSampler, GibbsSampler, QPUSampler
from scqbm.samplers.ocean import _placing
from scqbm.samplers.ocean._problem import IsingProblem, coupled_pairs

pytestmark = pytest.mark.usefixtures("kept_elsewhere")


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


def test_a_fallback_is_an_instance():
    with pytest.raises(TypeError, match=r"^`fallback` must be an instance, GibbsSampler\(\)") as e:
        QPUSampler(MockChip(), fallback=GibbsSampler)
    assert_one_sentence(e.value)
    for wrong in ("gibbs", 3, "", 0, False):
        with pytest.raises(TypeError, match="^`fallback` must be a sampler or 'raise', not ") as e:
            QPUSampler(MockChip(), fallback=wrong)
        assert_one_sentence(e.value)
