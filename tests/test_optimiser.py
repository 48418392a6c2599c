"""Learning rates, KL warm-up, early stopping, and the terms of the loss in the history."""

import pytest
import scvi
import torch
from lightning.pytorch import LightningModule
from pandas.testing import assert_frame_equal
from training_helpers import FAMILIES, QUIET, Watch, coupling, make, state_of

from scqbm import QBMVI
from scqbm.train import default_epochs

# -- optimizer ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "lr", "ceiling"),
    [({"n_prior_hidden": 0}, 3e-3, 1e-3), ({}, 1e-2, 3e-3), (FAMILIES[2], 3e-3, 1e-3)],
    ids=["halves", "hidden", "normal"],
)
def test_the_prior_learns_no_faster_than_its_ceiling(adata, family, lr, ceiling):
    model = make(adata, **family)
    model.train(1, learning_rate_monitor=True, plan_kwargs={"lr": lr}, **QUIET)
    rates = {name: values.iloc[-1, 0] for name, values in model.history.items() if "lr-" in name}
    assert rates == pytest.approx({"lr-Adam": lr, "lr-Adam/vae": lr, "lr-Adam/prior": ceiling})


def test_one_unnamed_group_below_the_ceiling(adata):
    model = make(adata)
    model.train(1, learning_rate_monitor=True, plan_kwargs={"lr": 5e-4}, **QUIET)
    rates = {name: values.iloc[-1, 0] for name, values in model.history.items() if "lr-" in name}
    assert rates == pytest.approx({"lr-Adam": 5e-4})


FALLING = [1, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ({"n_epochs_constant_lr": 2}, FALLING),
        ({"n_epochs_constant_lr": 2, "lr": 5e-4}, FALLING),
        ({}, [1] * 7 + [1 / 2]),  # three quarters of eight epochs
        ({"n_epochs_constant_lr": None}, [1] * 8),
        ({"n_epochs_constant_lr": 2, "reduce_lr_on_plateau": True}, [1] * 8),
    ],
)
def test_rates_fall_towards_the_end(adata, plan, expected):
    model = make(adata, n_prior_hidden=0)
    model.train(8, learning_rate_monitor=True, plan_kwargs=plan, **QUIET)
    lr = plan.get("lr", 3e-3)
    assert model.history["lr-Adam"].iloc[:, 0].tolist() == pytest.approx(
        [lr * x for x in expected]
    )
    if lr > 1e-3:
        prior = model.history["lr-Adam/prior"].iloc[:, 0].unique()  # logged once or twice an epoch
        assert prior.tolist() == pytest.approx([1e-3 * x for x in dict.fromkeys(expected)])


@pytest.mark.parametrize("wrong", [-1, float("nan"), "ten"])
def test_bad_constant_epochs(adata, wrong):
    with pytest.raises(ValueError, match="`n_epochs_constant_lr` must be 0 or more, not"):
        make(adata).train(1, plan_kwargs={"n_epochs_constant_lr": wrong}, **QUIET)


def test_kl_warms_up_for_twenty_epochs(adata):
    model = make(adata)
    model.train(2, **QUIET)
    assert model.history["kl_weight"].iloc[-1, 0] == pytest.approx(1 / 20)


@pytest.mark.parametrize("warmup", ["n_epochs_kl_warmup", "n_steps_kl_warmup"])
def test_the_kl_weight_is_logged_where_it_changes(adata, monkeypatch, warmup):
    """As SCVI's history has it, but Lightning hears of it once an epoch where that is enough."""
    histories, heard = [], []
    log = LightningModule.log

    def listen(self, name, *args, **kwargs):
        heard.append(name)
        return log(self, name, *args, **kwargs)

    kwargs = {"n_epochs_kl_warmup": None} | {warmup: 4}
    for cls in (scvi.model.SCVI, QBMVI):
        cls.setup_anndata(adata, batch_key="batch")
        model = cls(adata)
        heard.clear()
        with monkeypatch.context() as context:
            context.setattr(LightningModule, "log", listen)
            model.train(3, plan_kwargs=kwargs, **QUIET)
        histories.append(model.history["kl_weight"].astype(float))
    assert_frame_equal(*histories)
    # five steps an epoch, the first with 0 0.25 0.5 0.75 1
    assert heard.count("kl_weight") == {"n_epochs_kl_warmup": 3, "n_steps_kl_warmup": 7}[warmup]


def test_prior_lr_makes_a_second_group(adata):
    model, still = make(adata), make(adata)
    before = coupling(model)
    model.train(1, learning_rate_monitor=True, plan_kwargs={"prior_lr": 0.05}, **QUIET)
    assert {"lr-Adam/vae", "lr-Adam/prior"} <= set(model.history)
    assert model.history["lr-Adam/vae"].iloc[0, 0] == pytest.approx(3e-3)
    assert model.history["lr-Adam/prior"].iloc[0, 0] == pytest.approx(0.05)
    assert not torch.equal(coupling(model), before)
    start = state_of(still)
    still.train(1, plan_kwargs={"prior_lr": 0.0, "weight_decay": 0.0}, **QUIET)
    after = state_of(still)
    assert torch.equal(after["prior.coupling"], start["prior.coupling"])
    assert not torch.equal(
        after["z_encoder.mean_encoder.weight"], start["z_encoder.mean_encoder.weight"]
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_priors_gradient_ignores_kl_weight(adata, family):
    model = make(adata, **family)
    model.train(1, **QUIET)
    module, prior = model.module, model.module.prior
    assert prior.negatives is not None
    tensors = next(iter(model._make_data_loader(adata)))
    grads = []
    for kl_weight in (0.0, 1.0):
        module.zero_grad()
        torch.manual_seed(0)
        module(tensors, loss_kwargs={"kl_weight": kl_weight})[2].loss.backward()
        grads.append(torch.cat([p.grad.flatten() for p in prior.parameters()]))
    assert grads[0].abs().max() > 1e-4
    torch.testing.assert_close(*grads, rtol=0, atol=0)


def test_the_prior_learns_with_kl_weight_zero(adata):
    model = make(adata)
    before = coupling(model)
    model.train(2, plan_kwargs={"max_kl_weight": 0.0, "weight_decay": 0.0}, **QUIET)
    assert (coupling(model) - before).abs().max() > 1e-4


# -- early stopping and log Z --------------------------------------------------------------------


def test_the_encoder_learns_when_training_goes_on(adata):
    model = make(adata)
    model.train(1, **QUIET)
    assert not model.module.training  # and scvi-tools leaves it so in the training below
    before = state_of(model)
    weight = "z_encoder.mean_encoder.weight"
    # nothing but the reconstruction, through the bits
    model.train(1, plan_kwargs={"max_kl_weight": 0.0, "weight_decay": 0.0}, **QUIET)
    after = state_of(model)
    assert not torch.equal(before[weight], after[weight])


@pytest.mark.parametrize("family", FAMILIES)
def test_each_term_of_the_loss_has_a_name(adata, family):
    """The training loss is the negative ELBO plus what stands beside it in the history."""
    bits = family["latent_distribution"] == "bernoulli"
    given = {"batch_mixing": 30.0} | ({"entropy_bonus": 0.3} if bits else {})
    model = make(adata, **family, **given)
    plan = {"n_epochs_kl_warmup": None, "n_steps_kl_warmup": None, "max_kl_weight": 1.0}
    model.train(2, plan_kwargs=plan, check_val_every_n_epoch=1, **QUIET)
    last = {name: column.iloc[-1, 0] for name, column in model.history.items()}
    for split, loss in (("train", "train_loss"), ("validation", "validation_loss")):
        terms = last[f"elbo_{split}"] + last[f"batch_mixing_{split}"]
        terms -= last.get(f"entropy_bonus_{split}", 0.0)
        assert last[loss] == pytest.approx(terms, rel=1e-4)
    assert ("entropy_bonus_train" in last) == bits


def test_early_stopping(adata):
    model = make(adata)
    model.train(
        40, early_stopping=True, early_stopping_patience=2, plan_kwargs={"lr": 0.0}, **QUIET
    )
    assert 3 <= len(model.history["elbo_validation"]) < 40


@pytest.mark.parametrize(
    ("n_cells", "epochs"), [(500, 200), (5000, 200), (14_000, 71), (30_000, 33), (1_000_000, 8)]
)
def test_epochs_by_the_number_of_cells(n_cells, epochs):
    assert default_epochs(n_cells) == epochs


def test_a_training_takes_them(adata):
    model = make(adata)
    model.train(max_steps=1, **QUIET)
    assert model.trainer.max_epochs == 200


def test_adam_is_fused_unless_the_user_chose(adata):
    def of(**plan):
        seen = Watch("on_train_start", lambda p: [g["fused"] for g in p.optimizers().param_groups])
        make(adata, n_prior_hidden=0).train(1, callbacks=[seen], plan_kwargs=plan, **QUIET)
        return seen.seen[0]

    def creator(params):
        return torch.optim.Adam(params, lr=1e-3, foreach=True)

    assert of() == [True, True]
    assert of(optimizer="Custom", optimizer_creator=creator) == [None]
