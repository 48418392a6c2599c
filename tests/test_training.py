"""Training: who asks the sampler when, what Lightning's options do to it, and resuming."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import scvi
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from scvi.data import synthetic_iid

from scqbm import QBMVI
from scqbm.ising import MAX_EXACT_UNITS, exact_log_partition
from scqbm.prior import RBMPrior
from scqbm.samplers import Draws, ExactSampler, GibbsSampler, Sampler

QUIET = {
    "accelerator": "cpu",
    "batch_size": 32,
    "enable_progress_bar": False,
    "train_size": 0.8,
    "validation_size": 0.2,
}
N_STEPS = 5  # an epoch of 160 training cells
FAMILIES = [
    {"latent_distribution": "bernoulli"},
    {"latent_distribution": "bernoulli", "n_prior_hidden": 5},
    {"latent_distribution": "normal", "n_prior_hidden": 5},
]


@pytest.fixture(scope="module")
def adata():
    scvi.settings.seed = 0
    return synthetic_iid(batch_size=100, n_genes=40)


def make(adata, seed=0, **kwargs):
    scvi.settings.seed = seed
    QBMVI.setup_anndata(adata, batch_key="batch")
    return QBMVI(adata, **{"n_latent": 8, "n_hidden": 16, **kwargs})


class Counting(Sampler):
    """Passes queries on, and remembers them."""

    def __init__(self, inner=None):
        self.inner = ExactSampler() if inner is None else inner
        self.couplings, self.states, self.draws = [], [], []

    def sample(self, rbm, n_draws, state=None, generator=None):
        self.couplings.append(rbm.W.clone())
        self.states.append(state)
        self.draws.append(self.inner.sample(rbm, n_draws, state, generator))
        return self.draws[-1]


class Watch(Callback):
    """Calls ``look(pl_module)`` at one hook and keeps the answers."""

    def __init__(self, hook, look):
        self.seen = []
        setattr(self, hook, lambda trainer, plan, *_: self.seen.append(look(plan)))


def coupling(model):
    return model.module.prior.coupling.detach().clone()


def state_of(model):
    return {k: v.clone() for k, v in model.module.state_dict().items()}


def assert_same_state(a, b):
    for key, value in a.items():
        assert torch.equal(value, b[key]), key


# -- negatives ----------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 3])
def test_sampler_is_asked_at_every_kth_step(adata, every):
    model, sampler = make(adata), Counting()
    at_loss = Watch("on_after_backward", lambda plan: plan.module.prior.negatives.clone())
    model.train(2, sampler=sampler, sample_every=every, callbacks=[at_loss], **QUIET)
    assert len(at_loss.seen) == 2 * N_STEPS
    assert len(sampler.draws) == math.ceil(2 * N_STEPS / every)
    for step, negatives in enumerate(at_loss.seen):
        torch.testing.assert_close(negatives, sampler.draws[step // every].visible)
    # each query sees the couplings of its own step, not those of the start
    assert not torch.equal(sampler.couplings[0], sampler.couplings[-1])


def test_chains_persist(adata):
    sampler = Counting(GibbsSampler())
    make(adata).train(2, sampler=sampler, **QUIET)
    assert sampler.states[0] is None
    assert all(s is d.state for s, d in zip(sampler.states[1:], sampler.draws, strict=False))


def test_number_of_negatives(adata):
    sampler = Counting()
    make(adata).train(1, sampler=sampler, plan_kwargs={"n_negatives": 17}, **QUIET)
    assert {tuple(d.visible.shape) for d in sampler.draws} == {(17, 4)}


def test_accumulation_averages_the_gradient_and_still_asks_each_batch(adata):
    def gradients(**kwargs):
        grad = Watch(
            "on_before_optimizer_step", lambda plan: plan.module.prior.coupling.grad.clone()
        )
        model, sampler = make(adata), Counting()
        frozen = {"lr": 0.0, "weight_decay": 0.0}
        model.train(1, sampler=sampler, callbacks=[grad], plan_kwargs=frozen, **kwargs, **QUIET)
        assert len(sampler.draws) == N_STEPS
        return torch.stack(grad.seen)

    single, double = gradients(), gradients(accumulate_grad_batches=2)
    assert len(single) == 5 and len(double) == 3
    assert single.abs().max() > 1e-3
    torch.testing.assert_close(double[:2], (single[:4:2] + single[1:4:2]) / 2)


def test_gradient_clipping_covers_the_prior(adata):
    model = make(adata)
    before = {k: p.detach().clone() for k, p in model.module.named_parameters()}
    model.train(
        1,
        max_steps=1,
        gradient_clip_val=0.1,
        plan_kwargs={
            "optimizer": "Custom",
            "optimizer_creator": lambda params: torch.optim.SGD(params, lr=1.0),
        },
        **QUIET,
    )
    step = {k: p.detach() - before[k] for k, p in model.module.named_parameters()}
    norm = torch.stack([s.norm() for s in step.values()]).norm()
    assert norm.item() == pytest.approx(0.1, rel=1e-3)
    assert 0 < step["prior.coupling"].norm() < 0.1


# -- precision and compilation -------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_energies_keep_their_digits(adata, monkeypatch, precision, family):
    calls, kl = [], RBMPrior.kl

    def watched(self, qz, z):
        out = kl(self, qz, z)
        calls.append(out.dtype)
        exact = {k: getattr(qz, k).detach().double() for k in qz.arg_constraints}
        rbm, log_z = self.rbm, self.log_z
        monkeypatch.setattr(self, "rbm", lambda: rbm().to(torch.float64))
        self._buffers["log_z"] = log_z.double()
        reference = kl(self, type(qz)(**exact, validate_args=False), z.detach().double())
        self._buffers["log_z"] = log_z
        monkeypatch.setattr(self, "rbm", rbm)
        torch.testing.assert_close(out.detach().double(), reference, rtol=1e-4, atol=1e-4)
        return out

    model = make(adata, **family)
    with torch.no_grad():
        for parameter in model.module.prior.parameters():
            parameter.normal_()
    monkeypatch.setattr(RBMPrior, "kl", watched)
    model.train(2, precision=precision, check_val_every_n_epoch=1, **QUIET)
    assert set(calls) == {torch.float64 if precision == "64-true" else torch.float32}
    assert all(p.isfinite().all() for p in model.module.state_dict().values())
    for key in ("train_loss", "elbo_train", "elbo_validation"):
        assert np.isfinite(model.history[key].to_numpy(dtype=float)).all()
    assert model.module.prior.negatives.dtype == calls[0]


# -- optimizer ----------------------------------------------------------------------------------


def test_the_prior_learns_no_faster_than_its_ceiling(adata):
    model = make(adata)
    model.train(1, learning_rate_monitor=True, **QUIET)
    rates = {name: values.iloc[-1, 0] for name, values in model.history.items() if "lr-" in name}
    assert rates == pytest.approx({"lr-Adam": 3e-3, "lr-Adam/vae": 3e-3, "lr-Adam/prior": 1e-3})


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
    model = make(adata)
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


# -- the same run again --------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", [ExactSampler, GibbsSampler])
def test_a_seed_decides_the_weights(adata, sampler):
    runs = []
    for seed in (1, 1, 2):
        model = make(adata, seed)
        model.train(2, sampler=sampler(), **QUIET)
        runs.append(state_of(model))
    assert_same_state(runs[0], runs[1])
    assert not torch.equal(runs[0]["prior.coupling"], runs[2]["prior.coupling"])


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scvi.settings, "logging_dir", str(tmp_path / "log"))
    return tmp_path


def train_with_checkpoints(model, max_epochs, **kwargs):
    """Lightning's checkpoints, at ``epoch=0.ckpt`` and so on of the current directory."""
    checkpoint = ModelCheckpoint(
        ".", filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True
    )
    followed = Watch("on_before_zero_grad", lambda plan: plan.module.prior.log_z.item())
    callbacks = [checkpoint, followed]
    model.train(max_epochs, callbacks=callbacks, enable_checkpointing=True, **kwargs, **QUIET)
    return followed.seen


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "options",
    [
        {"check_val_every_n_epoch": 1},
        {"check_val_every_n_epoch": 100},
        {"check_val_every_n_epoch": 100, "sample_every": 3},
        {"check_val_every_n_epoch": 100, "plan_kwargs": {"n_epochs_constant_lr": 0}},
    ],
    ids=["validated", "plain", "sparse queries", "falling rates"],
)
def test_resume_continues_bit_by_bit(adata, workdir, family, options):
    whole = make(adata, **family)
    log_z = train_with_checkpoints(whole, 4, **options)
    resumed = make(adata, **family)
    resumed_log_z = train_with_checkpoints(resumed, 4, ckpt_path="epoch=1.ckpt", **options)
    assert resumed_log_z == log_z[2 * N_STEPS :]
    assert_same_state(state_of(whole), state_of(resumed))
    assert torch.equal(whole.module.prior.negatives, resumed.module.prior.negatives)


def test_checkpoint_holds_tensors_and_ints(adata, workdir):
    model = make(adata)
    train_with_checkpoints(model, 1)
    callbacks = torch.load("epoch=0.ckpt", weights_only=True)["callbacks"]
    (mine,) = [v for k, v in callbacks.items() if k.startswith("NegativePhase")]
    torch.testing.assert_close(mine["sampler"]["visible"], model.module.prior.negatives)
    assert mine["clock"] == N_STEPS


# -- slow ---------------------------------------------------------------------------------------


class Alternating(Sampler):
    """All zeros, all ones, all zeros, ..."""

    bit = 1

    def sample(self, rbm, n_draws, state=None, generator=None):
        self.bit = 1 - self.bit
        visible = torch.full((n_draws, rbm.n_visible), float(self.bit))
        return Draws(visible, torch.zeros(n_draws, rbm.n_hidden))


@pytest.mark.slow
def test_a_compiled_module_sees_each_steps_negatives(adata):
    model = make(adata)
    prior, before = model.module.prior, coupling(model)
    grad = Watch("on_before_optimizer_step", lambda plan: prior.visible_bias.grad.clone())
    plan_kwargs = {"compile": True}
    model.train(2, sampler=Alternating(), callbacks=[grad], plan_kwargs=plan_kwargs, **QUIET)
    assert len(grad.seen) == 2 * N_STEPS
    grads = torch.stack(grad.seen)  # mean of the negatives less that of the posterior's bits
    step = grads[1::2].mean(0) - grads[::2].mean(0)
    torch.testing.assert_close(step, torch.ones(4), rtol=0, atol=0.3)
    assert not torch.equal(coupling(model), before)


DDP = """
import os, sys
import scvi, torch
from scvi.data import synthetic_iid
from scqbm import QBMVI

if __name__ == "__main__":
    scvi.settings.seed = 0
    adata = synthetic_iid(batch_size=100, n_genes=40)
    QBMVI.setup_anndata(adata, batch_key="batch")
    model = QBMVI(adata, n_latent=8, n_hidden=16)
    before = model.module.prior.coupling.detach().clone()
    model.train(
        2, accelerator="cpu", devices=2, strategy="ddp_find_unused_parameters_true",
        enable_progress_bar=False, batch_size=32,
    )
    prior = model.module.prior
    rank = os.environ.get("LOCAL_RANK", "0")
    torch.save(
        {
            "before": before,
            "negatives": prior.negatives,
            "weights": dict(model.module.named_parameters()) | {"log_z": prior.log_z},
        },
        os.path.join(sys.argv[1], f"rank{rank}.pt"),
    )
"""


@pytest.mark.slow
def test_two_processes_share_weights_but_not_chains(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(DDP)
    env = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "NODE_RANK")}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        cwd=tmp_path,
        env={**env, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (torch.load(tmp_path / f"rank{i}.pt", weights_only=True) for i in (0, 1))
    assert not torch.equal(first["negatives"], second["negatives"])
    assert_same_state(first["weights"], second["weights"])
    assert not torch.equal(first["weights"]["prior.coupling"], first["before"])
