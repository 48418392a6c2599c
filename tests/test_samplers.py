"""What single samplers promise: Gibbs chains that find modes, Ocean's beta, tempering."""

import numpy as np
import pytest
import torch
from helpers import assert_one_sentence, exact_moments, glass, seeded, tiny_rbm

from scqbm.ising import RBM, all_states
from scqbm.samplers import (
    CIMSampler,
    DimodSampler,
    ExactSampler,
    GibbsSampler,
    KaiwuSampler,
    TemperingSampler,
    assess,
    moments,
)


def test_gibbs_sweep_leaves_the_distribution_alone():
    """pi P = pi with P written out: one sweep from exact draws stays exact, state by state."""
    rbm = tiny_rbm("bits")
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

    rbm = tiny_rbm("bits")
    draws = DimodSampler(Weighed(), beta=2.0).sample(rbm, 100_000)
    v, h, vh = exact_moments(rbm)
    assert torch.allclose(draws.visible.mean(0), v, atol=1e-3)
    assert torch.allclose(draws.hidden.mean(0), h, atol=1e-3)
    assert torch.allclose(draws.visible.T @ draws.hidden / len(draws.visible), vh, atol=1e-3)


@pytest.mark.parametrize("seed", [9, 10])
@pytest.mark.parametrize("bias", [0.0, 1.0])
def test_path_integral_annealing_gives_the_modes_their_probabilities(bias, seed):
    """The two hardest of twelve priors. Without biases a flip of all spins hides bad mixing."""
    g, n = seeded(seed), 1000
    a, b, W = (torch.randn(s, generator=g, dtype=torch.float64) for s in (6, 6, (6, 6)))
    rbm = RBM(bias * a, bias * b, 3 * W)
    draws = DimodSampler.path_integral_annealing().sample(rbm, n, None, seeded(seed))
    truth, v, h = moments(rbm), 2 * draws.visible - 1, 2 * draws.hidden - 1
    first = torch.cat([v.mean(0) - truth.visible, h.mean(0) - truth.hidden])
    second = v.T @ h / n - truth.product
    for off, variance in zip((first, second), truth.variances(), strict=True):
        # the units of a mode err together, so that independent draws can reach twice the mean
        assert off.square().mean().sqrt() < 3 * (variance.mean() / n).sqrt()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DimodSampler.simulated_annealing(0), "`n_sweeps` must be an integer of at least"),
        (lambda: DimodSampler.path_integral_annealing(1.5), "`n_sweeps` must be an integer"),
        (lambda: DimodSampler.path_integral_annealing(gamma=-1), "`gamma` must not be negative"),
        (lambda: CIMSampler(bits="8"), "`bits` must be None or at least 2, not 8"),
        (lambda: CIMSampler(pump=None), "`pump` must be above 0 and at most 10, not None"),
        (lambda: KaiwuSampler("python", bits=float("nan")), "`bits` must be None or at least 2"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        make()
    assert_one_sentence(caught.value)


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


@pytest.mark.parametrize("n_sweeps", [1, 3])
def test_all_replicas_swap_if_a_query_has_an_odd_number_of_sweeps(n_sweeps):
    rbm = glass(12, 3.0)
    sampler, state, generator = (
        TemperingSampler(n_sweeps, n_replicas=8, n_start=0),
        None,
        seeded(0),
    )
    for _ in range(300 // n_sweeps):
        draws = sampler.sample(rbm, 100, state, generator)
        state = draws.state
    assert draws.info["swap_rate"] > 0.1
    assert (state["scales"].diff() > 0.01).all()  # no two replicas at one factor


def test_tempering_begins_anew_after_another_sampler():
    rbm = tiny_rbm("bits")
    other = GibbsSampler().sample(rbm, 5, None, seeded(0)).state
    state = {"x": other["visible"]}  # as of a sampler that keeps something else
    for foreign in (other, state):
        draws = TemperingSampler(n_start=0).sample(rbm, 5, foreign, seeded(1))
        assert draws.visible.shape == (5, 3)
