"""The quantum annealer: chains of qubits that break."""

import warnings

import dwave.embedding
import numpy as np
import pytest
from helpers import seeded
from qpu_helpers import (
    MockChip,
    annealed,
    as_bqm,
    make_rbm,
    shattered,
)

from scqbm.samplers import QPUSampler
from scqbm.samplers.ocean._problem import IsingProblem, coupled_pairs

pytestmark = pytest.mark.usefixtures("kept_elsewhere")


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
