"""A training that is killed in the middle of an epoch goes on from its last checkpoint."""

import signal
import subprocess
import sys

import pytest
import torch

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
