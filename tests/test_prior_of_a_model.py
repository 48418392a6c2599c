"""What a model says about its prior: draws, energies, log Z."""

import numpy as np
import pytest
import torch
from helpers import assert_one_sentence
from small_models import (
    BITS,
    NORMAL,
    each_family,
    trained,
)

from scqbm.ising import LogPartition, all_states
from scqbm.model import decode
from scqbm.samplers import Draws, ExactSampler, GibbsSampler, Sampler, SamplerError


@each_family
def test_sample_prior(family):
    model = trained(family)
    z = model.sample_prior(4000)
    assert z.shape == (4000, family["n_latent"])
    assert (set(np.unique(z)) == {0, 1}) == (family is not NORMAL)
    np.testing.assert_array_equal(z, model.sample_prior(4000))
    assert not np.array_equal(z, model.sample_prior(4000, seed=1))
    other = model.sample_prior(4000, sampler=GibbsSampler(n_sweeps=300))
    np.testing.assert_allclose(z.mean(0), other.mean(0), atol=6 * z.std() / np.sqrt(2000))


def test_sample_prior_beyond_enumeration(monkeypatch):
    """The default for large priors is block Gibbs: here one that the test still enumerates."""
    monkeypatch.setattr("scqbm.ising._exact.MAX_EXACT_UNITS", 17)
    model = trained({"n_latent": 36, "n_prior_hidden": 0}, epochs=1)
    prior, generator = model.module.prior, torch.Generator().manual_seed(0)
    for parameter in prior.parameters():
        parameter.data = 0.7 * torch.randn(parameter.shape, generator=generator)
    z = torch.from_numpy(model.sample_prior(4000))
    rbm = prior.rbm()
    h = all_states(rbm.n_hidden)
    p = torch.softmax(-rbm.hidden_free_energy(h).double(), 0).float()
    v_given_h = rbm.visible_field(h).sigmoid()
    exact_v, exact_h = p @ v_given_h, p @ h
    exact_vh = (v_given_h * p[:, None]).T @ h
    v, h = z[:, :18], z[:, 18:]
    # at most 1/2 over sqrt(4000) each: five of those
    assert torch.allclose(v.mean(0), exact_v, atol=0.04)
    assert torch.allclose(h.mean(0), exact_h, atol=0.04)
    assert torch.allclose(v.T @ h / len(z), exact_vh, atol=0.04)


@pytest.mark.parametrize("method", ["sample_prior", "sample_cells"])
def test_sampling_nothing(method):
    with pytest.raises(ValueError, match="`n_samples` must be an integer of at least 1, not 0"):
        getattr(trained(), method)(0)


class Cheat(Sampler):
    """Answers whatever it is told to."""

    def __init__(self, answer):
        self.answer = answer

    def sample(self, rbm, n_draws, state=None, generator=None):
        return self.answer(ExactSampler().sample(rbm, n_draws, None, generator))


@pytest.mark.parametrize("method", ["sample_prior", "sample_cells"])
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda d: Draws(2 * d.visible - 1, d.hidden), "values other than 0 and 1"),
        (lambda d: Draws(d.visible, None), "hidden draws of type NoneType"),
        (lambda d: None, "NoneType instead of scqbm.samplers.Draws"),
        (lambda d: Draws(d.visible, d.hidden / 0), "NaN or infinite"),
    ],
)
def test_draws_of_any_sampler_are_checked(method, answer, message):
    model = trained(epochs=1)
    with pytest.raises(SamplerError, match=f"^`sampler` Cheat returned .*{message}") as caught:
        getattr(model, method)(10, sampler=Cheat(answer))
    assert_one_sentence(caught.value)


@pytest.mark.parametrize("method", ["sample_prior", "sample_cells"])
def test_a_class_is_not_a_sampler(method):
    with pytest.raises(TypeError, match="must be an instance, GibbsSampler"):
        getattr(trained(epochs=1), method)(10, sampler=GibbsSampler)


def test_samplers_that_return_fewer_draws_give_as_many_codes():
    few = Cheat(lambda d: Draws(d.visible[:7], d.hidden[:7]))
    codes = trained(epochs=1).sample_prior(50, sampler=few)
    assert codes.shape == (50, 5) and set(np.unique(codes)) <= {0, 1}


# -- energies -------------------------------------------------------------------------------------


@each_family
def test_prior_energy_is_an_expectation(family):
    """Against all codes (bits), or many draws by hand (Gaussian)."""
    model = trained(family)
    prior = model.module.prior
    for parameter in prior.parameters():
        parameter.data = 0.8 * torch.randn(parameter.shape)
    some = [5, 1, 7]
    energy, error = model.get_prior_energy(indices=some, n_samples=4000, return_error=True)
    mean, var = model.get_latent_representation(indices=some, return_dist=True)
    if family is NORMAL:
        g = np.random.default_rng(0)
        z = mean + np.sqrt(var) * g.standard_normal((200_000, *mean.shape))
        truth = prior.energy(torch.as_tensor(z, dtype=torch.float32)).mean(0).numpy()
    else:
        codes = all_states(family["n_latent"])
        p = torch.as_tensor(mean)[:, None]
        q = torch.where(codes > 0, p, 1 - p).prod(-1)
        truth = (q @ prior.energy(codes)).detach().numpy()
    if family is BITS:
        assert (error == 0).all()
        np.testing.assert_allclose(energy, truth, rtol=1e-5)
    else:
        assert (error > 0).all() and (error < 0.1).all()
        np.testing.assert_array_less(abs(energy - truth), 5 * error + 0.01)


@each_family
def test_prior_energy_is_the_same_twice(family):
    model = trained(family)
    state = torch.get_rng_state()
    first = model.get_prior_energy()
    assert torch.equal(torch.get_rng_state(), state)  # the user's random numbers are left alone
    np.testing.assert_array_equal(first, model.get_prior_energy())
    assert (family is BITS) == np.array_equal(first, model.get_prior_energy(seed=1))
    two = [model.get_prior_energy(n_samples=2000, seed=seed) for seed in (0, 1)]
    assert np.corrcoef(two)[0, 1] > 0.95  # 0.38 when it was a single draw


@each_family
def test_the_error_of_an_energy_is_what_seeds_differ_by(family):
    model = trained(family)
    runs = [model.get_prior_energy(n_samples=30, seed=s, return_error=True) for s in range(40)]
    spread = np.std([energy for energy, _ in runs], axis=0)
    stated = np.mean([error for _, error in runs], axis=0)
    np.testing.assert_allclose(spread.mean(), stated.mean(), rtol=0.15, atol=1e-6)


def test_cells_by_mask_by_position_and_from_the_end():
    model = trained()
    everyone = model.get_prior_energy()
    mask = np.zeros(80, bool)
    mask[[1, 79]] = True
    for cells in (mask, [1, 79], [1, -1], np.array([-79, -1])):
        energy = model.get_prior_energy(indices=cells)
        np.testing.assert_allclose(energy, everyone[mask], rtol=1e-4)
        codes = model.get_latent_representation(indices=cells)
        np.testing.assert_allclose(codes, model.get_latent_representation()[mask], rtol=1e-4)


@pytest.mark.parametrize("method", ["get_prior_energy", "get_latent_representation"])
@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (np.ones(79, bool), r"`indices` is a mask of shape \(79,\), but there are 80 cells"),
        ([3, 80], "`indices` holds 80, but there are only 80 cells"),
        ([-81], "`indices` holds -81"),
        (["a"], "`indices` must be a Boolean mask or a list of integers"),
        ([0.5], "`indices` must be a Boolean mask or a list of integers"),
    ],
)
def test_cells_that_are_not_there(method, cells, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        getattr(trained(epochs=1), method)(indices=cells)


def test_decoding_needs_a_cell_for_each_code():
    model = trained(epochs=1)
    codes = model.sample_prior(3)
    assert decode(model, codes, [0, -1, 5]).shape == (3, 30)
    for like, message in (
        ([0, 1], "must name one cell for each of the 3 codes, not 2"),
        (None, "must be a Boolean mask or a list of integers"),
    ):
        with pytest.raises(ValueError, match=f"^`sources` {message}") as caught:
            decode(model, codes, like)
        assert_one_sentence(caught.value)


# -- log Z ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n_steps": 0}, "`n_steps` must be an integer of at least 1, not 0"),
        ({"n_chains": 1}, "`n_chains` must be an integer of at least 2, not 1"),
        ({"n_chains": 2.5}, "`n_chains` must be an integer"),
    ],
    ids=str,
)
@pytest.mark.parametrize("n_latent", [6, 60])
def test_log_partition_of_nothing(kwargs, message, n_latent):
    with pytest.raises(ValueError, match=message) as caught:
        trained({"n_latent": n_latent}, epochs=1).get_log_partition(**kwargs)
    assert_one_sentence(caught.value)


@pytest.mark.parametrize("kwargs", [{"n_samples": 0}, {"n_samples": 1, "return_error": True}])
def test_an_energy_of_no_draws(kwargs):
    with pytest.raises(ValueError, match="`n_samples` must be an integer of at least"):
        trained(NORMAL, epochs=1).get_prior_energy(**kwargs)


@each_family
def test_relative_energies_are_log_probabilities(family):
    """Of bits: they sum to 1 over all codes; of real numbers: as the stored log Z says."""
    model = trained(family)
    energy = model.get_prior_energy(seed=3)
    relative = model.get_prior_energy(relative=True, seed=3)
    log_z = model.get_log_partition().value
    np.testing.assert_allclose(relative, -energy - log_z, rtol=1e-5)
    if family is NORMAL:
        return
    codes = all_states(family["n_latent"])
    with torch.no_grad():
        total = torch.logsumexp(-model.module.prior.energy(codes).double(), 0).item()
    assert log_z == pytest.approx(total, abs=1e-4)


def test_the_error_of_relative_energies_holds_that_of_log_z(monkeypatch):
    model = trained(BITS)
    _, exact = model.get_prior_energy(relative=True, return_error=True)
    assert (exact == 0).all()
    monkeypatch.setattr(model, "get_log_partition", lambda seed: LogPartition(3.0, 0.25))
    relative, error = model.get_prior_energy(relative=True, return_error=True)
    np.testing.assert_allclose(error, 0.25)
    np.testing.assert_allclose(relative, -model.get_prior_energy() - 3.0, rtol=1e-5)


@each_family
def test_the_potential_is_the_energy_of_the_most_probable_code(family):
    model = trained(family)
    code = torch.from_numpy(model.get_latent_representation())
    if family is not NORMAL:
        code = (code > 0.5).float()
    with torch.no_grad():
        expected = model.module.prior.energy(code).numpy()
    np.testing.assert_allclose(model.get_prior_energy(kind="csp"), expected, rtol=1e-5)
    with pytest.raises(ValueError, match="`kind` must be one of"):
        model.get_prior_energy(kind="potential")
