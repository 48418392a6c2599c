"""Log Z while training moves the prior."""

import numpy as np
import pytest
from training_helpers import FAMILIES, N_STEPS, QUIET, Watch, make

from scqbm.ising import MAX_EXACT_UNITS, exact_log_partition
from scqbm.samplers import ExactSampler


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("every", [1, 4])
def test_log_z_is_followed_from_step_to_step(adata, family, every):
    model = make(adata, **family)
    prior, errors, moved = model.module.prior, [], []
    start = exact_log_partition(prior.rbm())

    def look(plan):
        exact = exact_log_partition(prior.rbm())
        errors.append((prior.log_z - exact).item())
        moved.append((exact - start).item())

    model.train(
        8,
        sampler=ExactSampler(),
        sample_every=every,
        plan_kwargs={"prior_lr": 0.05, "eps": 1e-8, "n_negatives": 4096},
        callbacks=[Watch("on_before_zero_grad", look)],
        **QUIET,
    )
    assert len(errors) == 8 * N_STEPS
    assert np.abs(moved).max() > 0.3  # a log Z that stays at its start would fail below
    assert np.abs(errors).max() < 0.1


def test_log_z_is_fresh_at_validation_and_after_training(adata):
    model = make(adata)
    prior = model.module.prior
    fresh = Watch(
        "on_validation_batch_start",
        lambda plan: (prior.log_z - exact_log_partition(prior.rbm())).item(),
    )
    model.train(
        3,
        check_val_every_n_epoch=1,
        callbacks=[fresh],
        plan_kwargs={"prior_lr": 0.1, "n_negatives": 4},
        **QUIET,
    )
    assert len(fresh.seen) >= 3
    assert np.abs(fresh.seen).max() < 1e-5
    value, error = model.get_log_partition()
    assert error == 0
    assert prior.log_z.item() == pytest.approx(value, abs=1e-5)


def test_log_z_after_training_agrees_where_it_is_annealed(adata):
    model = make(adata, n_latent=30, n_prior_hidden=MAX_EXACT_UNITS + 1)
    model.train(2, plan_kwargs={"prior_lr": 0.1}, **QUIET)
    prior = model.module.prior
    assert 0 < prior.log_z_error < 0.1
    exact = exact_log_partition(prior.rbm())
    assert abs(prior.log_z - exact) < 5 * prior.log_z_error
    value, error = model.get_log_partition()
    assert 0 < error < 0.05
    assert abs(value - exact) < 5 * error


def test_training_ends_with_the_log_z_of_its_last_validation(adata):
    model = make(adata, n_latent=30, n_prior_hidden=MAX_EXACT_UNITS + 1)
    saved = Watch("on_validation_end", lambda plan: plan.module.prior.log_z.item())
    model.train(1, check_val_every_n_epoch=1, callbacks=[saved], **QUIET)
    assert model.module.prior.log_z_error > 0  # another estimate would differ
    assert model.module.prior.log_z.item() == saved.seen[-1]
