"""Training: who asks the sampler when, and what Lightning's options do to it."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from training_helpers import (
    FAMILIES,
    N_STEPS,
    QUIET,
    Counting,
    Watch,
    assert_same_state,
    coupling,
    make,
)

from scqbm.prior import RBMPrior
from scqbm.samplers import Draws, GibbsSampler, Sampler

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
    assert {tuple(d.visible.shape) for d in sampler.draws} == {(17, 8)}


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


def test_a_trained_model_trains_on_in_training_mode(adata):
    """scvi-tools leaves it in evaluation mode: no dropout, and batch norm does not learn."""
    model, modes = make(adata), []
    model.train(1, **QUIET)
    encoder = model.module.z_encoder
    encoder.register_forward_hook(lambda module, *_: modes.append(module.training))
    model.train(1, **QUIET)
    assert modes[0] and not model.module.training


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
    model = make(adata, n_prior_hidden=0)
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
from scqbm.samplers import GibbsSampler
from scqbm.train import _settling

_settling.TRAINED_STEPS = 1  # this training is short


class Paid(GibbsSampler):
    asked_once, queries, fails_at = True, 0, None

    def sample(self, *args, **kwargs):
        self.queries += 1
        if self.queries == self.fails_at:
            raise ConnectionError("the machine is down")
        return super().sample(*args, **kwargs)


if __name__ == "__main__":
    folder, devices, paid, resume = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4:]
    sampler = GibbsSampler() if paid == "no" else Paid()
    sampler.fails_at = 3 if paid == "fails" else None
    scvi.settings.seed = 0
    scvi.settings.logging_dir = folder
    adata = synthetic_iid(batch_size=100, n_genes=40)
    QBMVI.setup_anndata(adata, batch_key="batch")
    model = QBMVI(adata, n_latent=8, n_hidden=16)
    before = model.module.prior.coupling.detach().clone()
    model.train(
        4 if resume else 2, accelerator="cpu", devices=devices, sampler=sampler,
        strategy="ddp_find_unused_parameters_true" if devices > 1 else "auto",
        enable_progress_bar=False, batch_size=32, check_val_every_n_epoch=1,
        checkpoint_every=3, checkpoint_dir=folder, ckpt_path=resume[0] if resume else None,
    )
    prior = model.module.prior
    rank = os.environ.get("LOCAL_RANK", "0")
    torch.save(
        {
            "before": before,
            "negatives": prior.negatives,
            "queries": getattr(sampler, "queries", None),
            "epochs": model.trainer.current_epoch,
            "weights": dict(model.module.named_parameters())
            | {"log_z": prior.log_z, "log_z_error": prior.log_z_error},
        },
        os.path.join(folder, f"rank{rank}.pt"),
    )
    if torch.distributed.is_initialized():  # the first to end would end the other
        torch.distributed.barrier()
"""


def in_processes(folder, devices, *arguments):
    """Run the script; what each process saved, or what the failed run said."""
    script = folder / "train.py"
    script.write_text(DDP)
    env = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "NODE_RANK")}
    done = subprocess.run(
        [sys.executable, str(script), str(folder), str(devices), *arguments],
        cwd=folder,
        env={**env, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    if done.returncode:
        return done.stderr
    return [torch.load(folder / f"rank{i}.pt", weights_only=True) for i in range(devices)]


@pytest.mark.slow
def test_two_processes_share_weights_and_log_z_but_not_chains(tmp_path):
    first, second = in_processes(tmp_path, 2, "no")
    assert not torch.equal(first["negatives"], second["negatives"])
    assert_same_state(first["weights"], second["weights"])
    assert not torch.equal(first["weights"]["prior.coupling"], first["before"])


@pytest.mark.slow
def test_a_paid_machine_is_asked_by_one_process_for_all(tmp_path):
    first, second = in_processes(tmp_path, 2, "yes")
    assert first["queries"] > 0 and second["queries"] == 0
    assert torch.equal(first["negatives"], second["negatives"])
    assert_same_state(first["weights"], second["weights"])


@pytest.mark.slow
def test_the_failure_of_a_paid_machine_ends_all_processes(tmp_path):
    said = in_processes(tmp_path, 2, "fails")
    assert "`sampler` Paid failed at step 2: " in said and "the machine is down" in said


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_resume_with_another_number_of_processes(tmp_path, before, after):
    in_processes(tmp_path, before, "no")
    ranks = in_processes(tmp_path, after, "no", str(tmp_path / "last.ckpt"))
    assert all(rank["epochs"] == 4 and rank["weights"]["log_z"].isfinite() for rank in ranks)
    assert_same_state(ranks[0]["weights"], ranks[-1]["weights"])
    chains = [rank["negatives"] for rank in ranks]
    assert after == 1 or not torch.equal(*chains)
