"""What every sampler owes: protocol, seeds, moments, resuming. And what some promise besides."""

import copy
import itertools
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import scvi
import torch
from dwave.samplers import SimulatedAnnealingSampler
from dwave.system.testing import MockDWaveSampler
from scvi.data import synthetic_iid

from scqbm import QBMVI
from scqbm.ising import RBM, all_states
from scqbm.samplers import (
    CIMSampler,
    DimodSampler,
    Draws,
    ExactSampler,
    GibbsSampler,
    KaiwuSampler,
    QPUSampler,
    Sampler,
    TemperingSampler,
    assess,
    effective_beta,
    effective_number,
    moments,
)


@dataclass
class Case:
    """A sampler under test.

    ``bias`` is what a moment may be off besides Monte-Carlo error, for samplers that document one.
    """

    make: Callable[[], Sampler]
    bias: float = 0.0
    n_draws: int = 40_000


def kaiwu():
    """The adapter, asking a stand-in at temperature 40 in units of one level of its couplings."""
    stand_in = Path(__file__).with_name("kaiwu_stand_in.py")
    return KaiwuSampler([sys.executable, stand_in, "well", "40"], n_sweeps=20)


def processor():
    """A mock D-Wave processor with chains, whose temperature the adapter has to find."""
    schedule = [*np.geomspace(0.05, 2, 60), *[2.0] * 20]
    chip = MockDWaveSampler(
        topology_type="zephyr",
        topology_shape=[2, 4],
        parameter_warnings=False,
        substitute_sampler=SimulatedAnnealingSampler(),
        substitute_kwargs={"beta_schedule_type": "custom", "beta_schedule": schedule},
    )
    chip.parameters["seed"] = []  # which the mock hands on
    return QPUSampler(chip)


SAMPLERS = {
    "exact": Case(ExactSampler),
    "gibbs": Case(lambda: GibbsSampler(n_sweeps=50)),
    "tempering": Case(lambda: TemperingSampler(n_sweeps=10, n_replicas=4, n_start=60)),
    "annealing": Case(DimodSampler.simulated_annealing),
    "path integral": Case(lambda: DimodSampler.path_integral_annealing(30), n_draws=5000),
    "processor": Case(processor, n_draws=5000),
    "cim": Case(CIMSampler, n_draws=5000),
    "kaiwu": Case(kaiwu, n_draws=5000),
}
MACHINES = {
    "bits": ([0.5, -1.0, 0.2], [0.3, -0.4], False),
    "wide": ([0.5], [0.3, -0.4, 1.0], False),
    "gaussian": ([0.5, -1.0], [0.3, -0.4, 0.1], True),
}
all_samplers = pytest.mark.parametrize("name", SAMPLERS)
all_machines = pytest.mark.parametrize("machine", MACHINES)
devices = pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
        ),
    ],
)


def make_rbm(machine, dtype=torch.float32, device="cpu"):
    a, b, gaussian = MACHINES[machine]
    W = 1.2 * torch.randn(len(a), len(b), generator=seeded(3))
    return RBM(torch.tensor(a), torch.tensor(b), W, gaussian).to(dtype=dtype, device=device)


def seeded(seed, device="cpu"):
    return torch.Generator(device=device).manual_seed(seed)


def glass(n, J, seed=0):
    """Fields N(0, .05) and couplings N(0, J) of spins."""
    g = seeded(seed)
    fields, couplings = 0.05 * torch.randn(2 * n, generator=g), J * torch.randn(n, n, generator=g)
    return RBM(-2 * fields[:n], -2 * fields[n:], -4 * couplings)


def exact_moments(rbm):
    """<v>, <h>, <v h'> by listing every state; Gaussian means come from their conditional."""
    h = all_states(rbm.n_hidden).to(rbm.W)
    if rbm.gaussian:
        p = torch.softmax(-rbm.hidden_free_energy(h), 0)
        v_given_h = rbm.visible_field(h)
        return p @ v_given_h, p @ h, (v_given_h * p[:, None]).T @ h
    v = all_states(rbm.n_visible).to(rbm.W)
    table = torch.stack([rbm.energy(x.expand(len(h), -1), h) for x in v])
    p = torch.softmax(-table.flatten(), 0).reshape(table.shape)
    return p.sum(1) @ v, p.sum(0) @ h, v.T @ p @ h


def assert_same(one, two):
    assert torch.equal(one.visible, two.visible)
    assert torch.equal(one.hidden, two.hidden)


# -- every sampler ------------------------------------------------------------------------------


@all_samplers
@all_machines
@devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_protocol(name, machine, device, dtype):
    sampler, rbm = SAMPLERS[name].make(), make_rbm(machine, dtype, device)
    before = copy.deepcopy(rbm)
    draws = sampler.sample(rbm, 40, None, seeded(0, device))
    kept = copy.deepcopy(draws)
    again = sampler.sample(rbm, 40, draws.state, seeded(1, device))
    assert_same(draws, kept)  # draws never alias the state
    for part in ("a", "b", "W"):
        assert torch.equal(getattr(rbm, part), getattr(before, part))
    for answer in (draws, again):
        v, h = answer.visible, answer.hidden
        assert v.shape == (40, rbm.n_visible) and h.shape == (40, rbm.n_hidden)
        assert v.dtype == h.dtype == dtype and v.device == h.device == rbm.W.device
        assert set(h.unique().tolist()) <= {0.0, 1.0}
        assert v.isfinite().all() if rbm.gaussian else set(v.unique().tolist()) <= {0.0, 1.0}
        assert all(isinstance(x, torch.Tensor | int) for x in answer.state.values())
        assert all(isinstance(x, float) for x in answer.info.values())
        assert answer.weights is None or answer.weights.shape == (40,)


@all_samplers
@all_machines
def test_seeds(name, machine):
    sampler, rbm = SAMPLERS[name].make(), make_rbm(machine)
    one, same, other = (sampler.sample(rbm, 64, None, seeded(seed)) for seed in (0, 0, 1))
    assert_same(one, same)
    assert not torch.equal(one.visible, other.visible)
    other = sampler.sample(rbm, 64, one.state, seeded(2))
    assert not torch.equal(one.visible, other.visible)


@all_samplers
@all_machines
def test_moments(name, machine):
    """Against enumeration, within 5 standard errors."""
    case, rbm = SAMPLERS[name], make_rbm(machine)
    draws = case.make().sample(rbm, case.n_draws, None, seeded(0))
    products = (draws.visible.unsqueeze(2) * draws.hidden.unsqueeze(1)).flatten(1)
    sampled = torch.cat([draws.visible, draws.hidden, products], 1)
    weights = torch.ones(len(sampled)) if draws.weights is None else draws.weights
    weights = weights / weights.sum()
    exact = torch.cat([m.flatten() for m in exact_moments(rbm)])
    error = sampled.std(0) / effective_number(weights, len(sampled)) ** 0.5
    assert ((weights @ sampled - exact).abs() < 5 * error + case.bias + 1e-6).all()


@all_samplers
@all_machines
def test_halting_and_resuming_changes_nothing(name, machine, tmp_path):
    """The state goes through a file to a sampler made anew; draws and random numbers agree."""
    rbm, generator = make_rbm(machine), seeded(0)
    sampler, state = SAMPLERS[name].make(), None
    for _ in range(3):
        state = sampler.sample(rbm, 16, state, generator).state
    torch.save({"state": state, "generator": generator.get_state()}, tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed, resumed_state, resumed_generator = SAMPLERS[name].make(), loaded["state"], seeded(9)
    resumed_generator.set_state(loaded["generator"])
    for _ in range(2):
        whole = sampler.sample(rbm, 16, state, generator)
        part = resumed.sample(rbm, 16, resumed_state, resumed_generator)
        assert_same(whole, part)
        state, resumed_state = whole.state, part.state


@pytest.mark.parametrize("names", itertools.permutations(("exact", "gibbs", "tempering"), 2))
def test_another_samplers_state_is_no_obstacle(names):
    rbm = make_rbm("bits")
    state = SAMPLERS[names[0]].make().sample(rbm, 16, None, seeded(0)).state
    SAMPLERS[names[1]].make().sample(rbm, 16, state, seeded(0))


# -- exact, Gibbs and Ocean ----------------------------------------------------------------------


def test_gibbs_sweep_leaves_the_distribution_alone():
    """pi P = pi with P written out: one sweep from exact draws stays exact, state by state."""
    rbm = make_rbm("bits")
    n = 200_000
    generator = seeded(0)
    start = ExactSampler().sample(rbm, n, None, generator)
    moved = GibbsSampler(n_sweeps=1).sample(rbm, n, {"visible": start.visible}, generator)
    p = torch.softmax(-rbm.free_energy(all_states(3)), 0)
    index = (moved.visible @ torch.tensor([1.0, 2.0, 4.0])).long()
    frequency = torch.bincount(index, minlength=8) / n
    assert ((frequency - p).abs() < 5 * (p * (1 - p) / n).sqrt()).all()


def test_dimod_sampler_divides_by_beta():
    """An exact solver of Ocean's, weighed by hand, sees the energies at the asked temperature."""
    import dimod

    class Weighed(dimod.ExactSolver):
        parameters = {"num_reads": []}

        def sample(self, bqm, num_reads):
            states = super().sample(bqm)
            p = np.exp(-2.0 * (states.record.energy - states.record.energy.min()))  # its own beta
            counts = np.round(num_reads * p / p.sum()).astype(int)
            return dimod.SampleSet.from_samples(
                (states.record.sample, states.variables),
                energy=states.record.energy,
                vartype="SPIN",
                num_occurrences=counts,
            )

    rbm = make_rbm("bits")
    draws = DimodSampler(Weighed(), beta=2.0).sample(rbm, 100_000)
    v, h, vh = exact_moments(rbm)
    assert torch.allclose(draws.visible.mean(0), v, atol=1e-3)
    assert torch.allclose(draws.hidden.mean(0), h, atol=1e-3)
    assert torch.allclose(draws.visible.T @ draws.hidden / len(draws.visible), vh, atol=1e-3)


def two_clusters(tilt):
    """Two far clusters of codes; sweeps cannot leave either. The upper one weighs more."""
    n = 12
    field = torch.full((n,), tilt / n)
    return RBM(field, field, torch.full((n, n), 2.0))


def upper_share(draws):
    """Mass of the draws in the upper cluster."""
    upper = (draws.visible.mean(1) > 0.5).float()
    return (upper.mean() if draws.weights is None else draws.weights @ upper).item()


def exact_upper_share(rbm):
    states = all_states(rbm.n_visible)
    mass = torch.softmax(-rbm.free_energy(states).double(), 0)
    return mass[states.mean(1) > 0.5].sum().item()


def test_gibbs_renewal_fills_clusters_that_sweeps_cannot_reach():
    """Chains that all begin in the lighter cluster must leave it."""
    rbm = two_clusters(1.0)
    v = torch.zeros(2000, rbm.n_visible)
    wrong = {
        "visible": v,
        "energy": rbm.free_energy(v),
        "log_weight": torch.zeros(2000),
        "age": 0,
    }
    found = {}
    for every in (0, 2):
        state, generator = wrong, seeded(1)
        sampler = GibbsSampler(renew_every=every, n_anneal=500)
        for _ in range(3):
            draws = sampler.sample(rbm, 2000, state, generator)
            state = draws.state
        found[every] = upper_share(draws)
    assert found[0] < 0.05 < exact_upper_share(rbm)
    assert abs(found[2] - exact_upper_share(rbm)) < 0.1


@pytest.mark.parametrize("tilts", [(0.0, 0.3, 0.5, 0.8), (-2.0, 0.0, 2.0, 2.5)])
def test_gibbs_population_follows_a_prior_that_moves(tilts):
    """Training moves the masses of clusters between which no chain can walk."""
    n, generator, resampled = 4000, seeded(0), False
    start = two_clusters(tilts[0])
    v = ExactSampler().sample(start, n, None, generator).visible
    state = {
        "visible": v,
        "energy": start.free_energy(v),
        "log_weight": torch.zeros(n),
        "age": 0,
    }
    for tilt in tilts[1:]:
        rbm = two_clusters(tilt)
        draws = GibbsSampler(renew_every=0).sample(rbm, n, state, generator)
        state = draws.state
        assert upper_share(draws) == pytest.approx(exact_upper_share(rbm), abs=0.05)
        resampled |= state["log_weight"].eq(0).all().item()
    assert exact_upper_share(rbm) - exact_upper_share(start) > 0.15  # plain chains stay behind
    assert resampled == (tilts[0] < 0)  # few chains carried the weight


def test_exact_sampler_refuses_large_machines():
    rbm = RBM(torch.zeros(21), torch.zeros(21), torch.zeros(21, 21))
    with pytest.raises(ValueError, match="at most 20"):
        ExactSampler().sample(rbm, 4)


# -- tempering ----------------------------------------------------------------------------------


def test_tempering_crosses_where_plain_chains_do_not():
    rbm = glass(14, 2.0)
    truth = moments(rbm)
    plain = GibbsSampler(n_sweeps=100, renew_every=0, n_anneal=1)
    tempered = TemperingSampler(n_sweeps=20, n_replicas=12, n_start=400)
    off = assess(plain, rbm, 256, 5, truth, seeded(1)).iloc[0]
    on = assess(tempered, rbm, 256, 5, truth, seeded(1)).iloc[0]
    assert off["error_2"] > 4 * off["floor_2"]
    assert on["error_2"] < 1.3 * on["floor_2"]


def test_the_ladder_evens_out_the_swaps():
    rbm = glass(32, 0.5)
    draws = TemperingSampler(n_sweeps=200, n_replicas=8, n_start=400).sample(
        rbm, 64, None, seeded(0)
    )
    assert draws.info["swap_rate"] > 0.8 * draws.info["swap_rate_mean"] > 0.1
    scales = draws.state["scales"]
    assert scales[0] == 0 and scales[-1] == 1 and (scales.diff() > 0).all()


@pytest.mark.slow
def test_tempering_reaches_the_floor_on_a_glass():
    """128+128 units at J = .3, where 100 plain sweeps are off by .6; ladders of another length."""
    rbm = glass(128, 0.3)
    reference = TemperingSampler(n_sweeps=100, n_replicas=24, n_start=3000)
    truth = moments(rbm, reference, 128, 12, seeded(1))
    plain = GibbsSampler(n_sweeps=100, renew_every=0, n_anneal=1)
    off = assess(plain, rbm, 256, 2, truth, seeded(2)).iloc[0]
    on = assess(TemperingSampler(n_start=2000), rbm, 256, 4, truth, seeded(2)).iloc[0]
    assert off["error_2"] > 0.5
    assert on["error_2"] < 1.15 * on["floor_2"]
    assert on["floor_2"] < 0.07


# -- health -------------------------------------------------------------------------------------


class Constant(Sampler):
    """The same states at every query."""

    def sample(self, rbm, n_draws, state=None, generator=None):
        zeros = torch.zeros(n_draws, rbm.n_visible), torch.zeros(n_draws, rbm.n_hidden)
        return Draws(*(x.to(rbm.W) for x in zeros))


class Hot(Sampler):
    """Exact draws at half the inverse temperature."""

    def sample(self, rbm, n_draws, state=None, generator=None):
        hot = RBM(rbm.a / 2, rbm.b / 2, rbm.W / 2)
        return ExactSampler().sample(hot, n_draws, state, generator)


def train_on(rbm, sampler, prior_lr=0.0, **kwargs):
    """An epoch of 20 queries with the prior held at ``rbm``; the warnings and the model."""
    scvi.settings.seed = 0
    adata = synthetic_iid(batch_size=100, n_genes=20)
    QBMVI.setup_anndata(adata, batch_key="batch")
    model = QBMVI(adata, n_latent=rbm.n_visible + rbm.n_hidden, n_hidden=8)
    prior = model.module.prior
    with torch.no_grad():
        prior.visible_bias.copy_(rbm.a)
        prior.hidden_bias.copy_(rbm.b)
        prior.coupling.copy_(rbm.W)
    plan_kwargs = {"prior_lr": prior_lr, "weight_decay": 0.0, **kwargs}
    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "batch_size": 8}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.train(1, sampler=sampler, train_size=0.8, plan_kwargs=plan_kwargs, **quiet)
    return [str(w.message) for w in caught if "sampler=" in str(w.message)], model


@pytest.mark.parametrize("renew_every", [0, 100])
@pytest.mark.parametrize(("J", "warned"), [(0.075, False), (0.3, True)])
def test_the_monitor_warns_in_the_glass_only(J, warned, renew_every):
    caught, model = train_on(glass(128, J), GibbsSampler(renew_every=renew_every))
    assert bool(caught) == warned
    assert (model.history["prior_ess"].iloc[0, 0] < 0.05 * 256) == warned


def test_constant_draws_are_noticed():
    caught, model = train_on(glass(8, 0.1), Constant())
    assert len(caught) == 1 and "stopped mixing" in caught[0]
    assert model.history["prior_memory"].iloc[0, 0] == 1


def test_health_of_good_draws():
    """The gap is that of enumeration; exact draws are all worth themselves, at temperature 1."""
    rbm = glass(6, 0.5)
    caught, model = train_on(rbm, ExactSampler(), n_negatives=20_000)
    assert not caught
    health = {name: model.history[name].iloc[0, 0] for name in ("prior_ess", "prior_beta")}
    assert health["prior_ess"] == 20_000
    assert health["prior_beta"] == pytest.approx(1, abs=0.03)
    v, h = all_states(6), all_states(6)
    table = torch.stack([rbm.energy(x.expand(len(h), -1), h) for x in v])
    mean = (torch.softmax(-table.flatten(), 0) * table.flatten()).sum().item()
    codes = torch.as_tensor(model.get_latent_representation(representation="mean"))
    data = rbm.energy(codes[:, :6], codes[:, 6:]).mean().item()
    assert model.history["prior_gap"].iloc[0, 0] == pytest.approx(data - mean, abs=0.4)


def test_effective_beta_is_the_temperature_of_the_draws():
    rbm = glass(10, 0.4)
    for sampler, beta in ((ExactSampler(), 1.0), (Hot(), 0.5)):
        draws = sampler.sample(rbm, 5000, None, seeded(0))
        assert effective_beta(rbm, draws.visible, draws.hidden) == pytest.approx(beta, abs=0.03)
    gaussian = RBM(torch.zeros(4), torch.zeros(6), torch.randn(4, 6, generator=seeded(0)), True)
    draws = ExactSampler().sample(gaussian, 5000, None, seeded(0))
    assert effective_beta(gaussian, draws.visible, draws.hidden) == pytest.approx(1, abs=0.1)


# -- assess -------------------------------------------------------------------------------------


@all_machines
def test_enumerated_moments(machine):
    rbm = make_rbm(machine, torch.float64)
    v, h, vh = exact_moments(rbm)
    found = moments(rbm)
    product = 2 * vh - v[:, None] if rbm.gaussian else 4 * vh - 2 * v[:, None] - 2 * h + 1
    torch.testing.assert_close(found.visible, v if rbm.gaussian else 2 * v - 1)
    torch.testing.assert_close(found.hidden, 2 * h - 1)
    torch.testing.assert_close(found.product, product)


@pytest.mark.parametrize("gaussian", [False, True])
def test_assess_finds_exact_draws_at_the_floor(gaussian):
    g = seeded(0)
    rbm = RBM(
        torch.randn(9, generator=g),
        torch.randn(8, generator=g),
        torch.randn(9, 8, generator=g),
        gaussian,
    )
    row = assess(ExactSampler(), rbm, 500, 40, generator=g).iloc[0]
    for moment in (1, 2):
        assert row[f"error_{moment}"] == pytest.approx(row[f"floor_{moment}"], rel=0.15)
    assert row["gradient_bias"] == pytest.approx(row["gradient_floor"], rel=0.5)
    assert row["ess"] == pytest.approx(500, rel=0.25)
    assert row["beta"] == pytest.approx(1, abs=0.05)


def test_assess_finds_what_is_wrong():
    rbm = glass(10, 0.4)
    constant = assess(Constant(), rbm, 100, 10).iloc[0]
    assert constant["ess"] <= 10 and constant["error_2"] > 5 * constant["floor_2"]
    hot = assess(Hot(), rbm, 500, 10, generator=seeded(0)).iloc[0]
    assert hot["beta"] == pytest.approx(0.5, abs=0.05)
    assert hot["gradient_bias"] > 5 * hot["gradient_floor"]


def test_a_plot_of_the_table():
    import matplotlib

    matplotlib.use("agg")
    from scqbm.samplers import plot_assessment

    ax = plot_assessment(assess(ExactSampler(), make_rbm("bits"), 50, 3))
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["ExactSampler"]


# -- killed in the middle of an epoch ------------------------------------------------------------

KILLED = """
import os, signal
import scvi, torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from scvi.data import synthetic_iid
from scqbm import QBMVI
from scqbm.samplers import GibbsSampler


class Record(Callback):
    negatives, kill_at = [], None

    def on_before_zero_grad(self, trainer, plan, optimizer):
        self.negatives.append(plan.module.prior.negatives.clone())
        if len(self.negatives) == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def train(ckpt_path=None, kill_at=None):
    scvi.settings.seed = 0
    QBMVI.setup_anndata(adata, batch_key="batch")
    model, record = QBMVI(adata, n_latent=8, n_hidden=16), Record()
    record.negatives, record.kill_at = [], kill_at
    saver = ModelCheckpoint(".", filename="{step}", save_top_k=-1, every_n_train_steps=3)
    model.train(
        4, callbacks=[saver, record], enable_checkpointing=True, ckpt_path=ckpt_path,
        accelerator="cpu", batch_size=32, enable_progress_bar=False, train_size=0.8,
    )
    return model, record.negatives


scvi.settings.seed = 0
adata = synthetic_iid(batch_size=100, n_genes=40)
scvi.settings.logging_dir = "log"
if __name__ == "__main__":
    train(kill_at=8)
"""


@pytest.mark.slow
def test_resuming_after_a_kill_in_the_middle_of_an_epoch(tmp_path, monkeypatch):
    """SIGKILL at step 8 of 20, five an epoch; the last checkpoint is of step 6.

    The chains go on bit by bit. Lightning shuffles the rest of the broken epoch anew, so from the
    next step on the run is another one.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(KILLED)
    killed = subprocess.run([sys.executable, "train.py"], capture_output=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL
    assert {p.name for p in tmp_path.glob("*.ckpt")} == {"step=3.ckpt", "step=6.ckpt"}
    exec(KILLED, names := {"__name__": "train"})
    model, resumed = names["train"](ckpt_path="step=6.ckpt")
    _, whole = names["train"]()
    assert len(whole) == 20 and len(resumed) == 14
    assert torch.equal(resumed[0], whole[6])
    assert all(p.isfinite().all() for p in model.module.parameters())


# -- the documentation's own sampler ------------------------------------------------------------


def test_the_sampler_of_the_documentation():
    text = (Path(__file__).parents[1] / "docs" / "samplers.md").read_text()
    (code,) = (c for c in re.findall(r"```python\n(.*?)```", text, re.S) if "class " in c)
    assert len(code.splitlines()) < 30
    exec(compile(code, "docs/samplers.md", "exec"), names := {})
    row = assess(names["MetropolisSampler"](), make_rbm("bits"), 2000, 4, generator=seeded(0))
    assert row["error_2"].item() < 1.5 * row["floor_2"].item()
