"""The same run again: from a seed, from a checkpoint, and after a kill in mid-epoch."""

import signal
import subprocess
import sys

import pytest
import scvi
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from training_helpers import (
    FAMILIES,
    N_STEPS,
    QUIET,
    Watch,
    assert_same_state,
    make,
    state_of,
)

from scqbm.samplers import ExactSampler, GibbsSampler

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
    torch.testing.assert_close(mine["draws"][0]["state"]["visible"], model.module.prior.negatives)
    assert mine["clock"] == N_STEPS
