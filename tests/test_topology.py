"""Priors on the graph of a chip: the graph, the gradient, and a processor that needs no chains."""

import itertools
import warnings

import dwave.graphs
import numpy as np
import pytest
import torch
from dwave.samplers import SimulatedAnnealingSampler
from dwave.system.testing import MockDWaveSampler
from helpers import seeded
from qpu_helpers import QUIET, tiny_model

from scqbm import QBMVI
from scqbm.ising import all_states, ideal_graph, native_layout
from scqbm.module import BitPosterior
from scqbm.prior import RBMPrior
from scqbm.samplers import GibbsSampler, QPUSampler


@pytest.fixture(autouse=True)
def _kept_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("SCQBM_CACHE", str(tmp_path))


def mock(kind, size, n_sweeps=50, **kwargs):
    chip = MockDWaveSampler(
        topology_type=kind,
        topology_shape=[size, 4] if kind == "zephyr" else [size],
        parameter_warnings=False,
        substitute_sampler=SimulatedAnnealingSampler(),
        substitute_kwargs={
            "beta_schedule_type": "custom",
            "beta_schedule": [2.0],
            "num_sweeps_per_beta": n_sweeps,
        },
        **kwargs,
    )
    chip.parameters["seed"] = []
    return chip


# -- the layout ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["zephyr", "pegasus"])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (4, 4), (30, 17), (100, 100)])
def test_units_sit_on_crossing_qubits(kind, n, m):
    layout = native_layout(kind, n, m)
    direction = dict(layout.graph.nodes(data=f"{kind}_index"))
    assert {direction[q][0] for q in layout.visible} == {0}
    assert {direction[q][0] for q in layout.hidden} == {1}
    assert len(set(layout.visible)) == n and len(set(layout.hidden)) == m
    couplers = {
        (i, j)
        for (i, u), (j, v) in itertools.product(
            enumerate(layout.visible), enumerate(layout.hidden)
        )
        if layout.graph.has_edge(u, v)
    }
    assert couplers == set(zip(layout.rows, layout.columns, strict=True))
    again = native_layout(kind, n, m)
    assert (again.rows == layout.rows).all() and (again.visible == layout.visible).all()


@pytest.mark.parametrize(("kind", "most"), [("zephyr", 16), ("pegasus", 12)])
def test_units_are_close_together(kind, most):
    layout = native_layout(kind, 500, 500)
    assert len(layout.rows) / 500 > 0.9 * most
    assert np.bincount(layout.rows).max() == most
    small = len(layout.graph)
    assert small < len(ideal_graph(kind, layout.graph.graph["rows"] + 1))


def test_the_largest_zephyr_is_filled():
    layout = native_layout("zephyr", 3720, 3720)
    assert len(layout.graph) == 7440 and layout.graph.graph["rows"] == 15
    assert len(layout.rows) == 57_600


def test_missing_qubits_and_couplers_are_left_out():
    graph = dwave.graphs.zephyr_graph(3)
    full = native_layout(graph, 40, 40)
    gone = [int(q) for q in (*full.visible[:2], full.hidden[7])]
    graph.remove_nodes_from(gone)
    cut = (int(full.visible[20]), int(full.hidden[full.columns[full.rows == 20][0]]))
    graph.remove_edge(*cut)
    layout = native_layout(graph, 40, 40)
    assert not set(gone) & {*layout.visible, *layout.hidden}
    for i, j in zip(layout.rows, layout.columns, strict=True):
        assert graph.has_edge(layout.visible[i], layout.hidden[j])


# -- the prior ----------------------------------------------------------------------------------


def random_prior(n_hidden=0):
    torch.manual_seed(0)
    prior = RBMPrior(10 if n_hidden == 0 else 6, n_hidden, topology=small_graph())
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.8)
    return prior.double()


def small_graph():
    """A corner of a chip, on which few of the pairs are coupled."""
    graph = dwave.graphs.zephyr_graph(2)
    keep = list(range(0, 160, 13))
    return dwave.graphs.zephyr_graph(2, node_list=keep, edge_list=graph.subgraph(keep).edges)


@pytest.mark.parametrize("n_hidden", [0, 4])
def test_energy_and_gradient_against_enumeration(n_hidden):
    """The gradient of ``<F>_q + log Z`` with log Z summed over all codes, coupler by coupler."""
    prior = random_prior(n_hidden)
    layout = native_layout(small_graph(), *prior.rbm().W.shape)
    assert 0 < len(layout.rows) < prior.rbm().W.numel()
    a, b = prior.visible_bias, prior.hidden_bias

    def energy(v, h):
        pairs = zip(layout.rows, layout.columns, prior.coupling, strict=True)
        coupled = sum(w * (v[i] - 0.5) * (h[j] - 0.5) for i, j, w in pairs)
        return -(v @ a + h @ b + coupled)

    table = torch.stack(
        [
            torch.stack([energy(v, h) for h in all_states(len(b)).double()])
            for v in all_states(len(a)).double()
        ]
    )
    free = -torch.logsumexp(-table, 1) if n_hidden else table
    codes = all_states(prior.n_latent).double()
    # all_states counts the first bit fastest, so hidden states are the slower index of the table
    listed = free if n_hidden else free.T.reshape(-1)
    torch.testing.assert_close(prior.energy(codes), listed)

    if n_hidden == 0:
        objective = (q_of(codes) @ listed).mean() + torch.logsumexp(-table.flatten(), 0)
        prior.deliver(all_states(len(a)), torch.logsumexp(-table, 1).softmax(0).detach())
        loss = prior.contrast(BitPosterior(probabilities()), codes)
    else:
        objective = (q_of(codes) @ listed).mean()
        loss = (q_of(codes) @ prior.energy(codes, prior.rbm(frozen=False))).mean()
    wanted = torch.autograd.grad(objective, list(prior.parameters()))
    got = torch.autograd.grad(loss, list(prior.parameters()))
    for ours, truth in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, truth)


def probabilities(n_cells=3, n=10):
    return torch.rand(n_cells, n, generator=seeded(1)).double()


def q_of(codes):
    """Probability of each code in each cell's posterior."""
    p = probabilities(n=codes.shape[1])[:, None]
    return torch.where(codes > 0, p, 1 - p).prod(-1)


def test_dense_prior_is_as_before():
    prior = RBMPrior(8, 0)
    assert set(prior.state_dict()) == {
        "visible_bias",
        "hidden_bias",
        "coupling",
        "log_z",
        "log_z_error",
    }
    assert prior.coupling.shape == (4, 4)


def test_save_and_load(tmp_path):
    for i, topology in enumerate(["zephyr", "pegasus", dwave.graphs.zephyr_graph(2)]):
        model = tiny_model(n_latent=30, prior_topology=topology)
        model.train(1, **QUIET)
        model.save(tmp_path / str(i))
        loaded = QBMVI.load(tmp_path / str(i), adata=model.adata)
        assert torch.equal(loaded.module.prior.rbm().W, model.module.prior.rbm().W)
        assert model.module.prior.rbm().W.count_nonzero() < 15 * 15


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"prior_topology": "chimera"}, "`prior_topology` must be one of"),
        ({"prior_topology": dwave.graphs.chimera_graph(2)}, "`prior_topology` must be one of"),
        ({"prior_topology": "zephyr", "latent_distribution": "normal"}, "needs bits"),
        ({"prior_topology": dwave.graphs.zephyr_graph(1), "n_latent": 200}, "`n_latent` asks"),
    ],
)
def test_bad_values(kwargs, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(**kwargs)


# -- on a processor -----------------------------------------------------------------------------


def trained_on(chip, topology="zephyr", working=False, epochs=3, n_latent=60):
    sampler = QPUSampler(chip)
    topology = sampler.graph if working else topology
    model = tiny_model(n_latent=n_latent, prior_topology=topology)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.train(epochs, sampler=sampler, **QUIET)
    return sampler, model, [str(w.message) for w in caught if w.filename.endswith("_qpu.py")]


def in_the_middle(kind, size, n):
    """Qubits that the native prior takes on a chip without faults, at its very centre."""
    return native_layout(ideal_graph(kind, size), n, n).visible[:1].tolist()


@pytest.mark.parametrize(
    ("kind", "size", "working", "broken"),
    [
        ("zephyr", 2, False, False),
        ("zephyr", 5, False, True),  # moved aside
        ("zephyr", 3, True, True),  # made for the chip as it is
        ("pegasus", 6, False, True),
        ("pegasus", 4, True, True),
    ],
)
def test_trains_without_chains(kind, size, working, broken):
    nodes = in_the_middle(kind, size, 30) if broken else []
    chip = mock(kind, size, broken_nodes=nodes)
    sampler, model, said = trained_on(chip, topology=kind, working=working)
    assert not said
    assert set(map(len, sampler.embedding.values())) == {1}
    assert not set(nodes) & {q for chain in sampler.embedding.values() for q in chain}
    assert np.isfinite(model.history["train_loss"].to_numpy(float)).all()
    W = model.module.prior.rbm().W
    for i, j in W.nonzero().tolist():
        assert sampler.graph.has_edge(sampler.embedding[i][0], sampler.embedding[30 + j][0])


def test_falls_back_on_chains_and_says_so():
    sampler, model, said = trained_on(mock("pegasus", 4), topology="zephyr", n_latent=20)
    assert len(said) == 1 and "do not lie on MockDWaveSampler" in said[0]
    assert max(map(len, sampler.embedding.values())) > 1
    assert np.isfinite(model.history["train_loss"].to_numpy(float)).all()


def test_native_draws_against_gibbs():
    """Moments over a native prior's couplers agree with those of long Gibbs chains."""
    torch.manual_seed(0)
    prior = RBMPrior(60, 0, topology="zephyr", init_scale=0.6)
    rbm, state = prior.rbm(), None
    sampler = QPUSampler(mock("zephyr", 3, n_sweeps=30))
    generator = seeded(0)
    for _ in range(6):
        draws = sampler.sample(rbm, 500, state, generator)
        state = draws.state
    draws = sampler.sample(rbm, 4000, state, generator)
    truth = GibbsSampler(n_sweeps=50, n_anneal=100).sample(rbm, 8000, None, generator)
    weights = truth.weights if truth.weights is not None else torch.full((8000,), 1 / 8000)
    ours = draws.visible.T @ draws.hidden / len(draws.visible)
    theirs = (truth.visible * (weights / weights.sum())[:, None]).T @ truth.hidden
    off = (ours - theirs)[prior.rows, prior.columns]
    assert off.square().mean().sqrt() < 1.5 * 0.5 * (1 / 4000 + 1 / 8000) ** 0.5
    assert draws.info["beta"] == pytest.approx(1, abs=0.03)


@pytest.mark.slow
def test_thousands_of_units_take_a_training_step():
    sampler, model, said = trained_on(mock("zephyr", 15, n_sweeps=1), epochs=1, n_latent=7440)
    assert not said
    assert len(model.module.prior.coupling) == 57_600
    assert set(map(len, sampler.embedding.values())) == {1}
    assert np.isfinite(model.history["train_loss"].to_numpy(float)).all()


def test_thousands_of_units_construct():
    prior = RBMPrior(4000, 0, topology="zephyr")
    assert prior.coupling.dim() == 1 and len(prior.coupling) > 15 * 2000
    assert prior.rbm().W.shape == (2000, 2000)
