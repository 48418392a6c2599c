"""Checkpoints: of killed processes, on a full disk, truncated, and of another model."""

import os
import subprocess
import sys

import pytest
import scvi
import torch
from helpers import assert_one_sentence
from lightning.pytorch.callbacks import Callback
from training_helpers import FAMILIES, N_STEPS, QUIET, assert_same_state, make, state_of


class Stop(Callback):
    """Ends the training after two epochs."""

    def on_train_epoch_end(self, trainer, plan):
        trainer.should_stop = trainer.current_epoch == 1


SCRIPT = """
import os, resource, signal, sys
import scvi
from lightning.pytorch.callbacks import Callback
from scvi.data import synthetic_iid
from scqbm import QBMVI

at, event = int(sys.argv[1]), sys.argv[2]


class Event(Callback):
    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step != at:
            return
        if event == "disk full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        else:
            os.kill(os.getpid(), getattr(signal, event))


scvi.settings.seed = 0
adata = synthetic_iid(batch_size=100, n_genes=40)
QBMVI.setup_anndata(adata, batch_key="batch")
model = QBMVI(adata, n_latent=8, n_hidden=16)
model.train(
    4, accelerator="cpu", batch_size=32, enable_progress_bar=False, train_size=0.8,
    callbacks=[Event()], checkpoint_every=3, checkpoint_dir=".",
)
print("ENDED")
"""


def step_of(path):
    return torch.load(path, weights_only=False)["global_step"]


def after(folder, at, event):
    """The process in which something happens at a step; a checkpoint is due every 3 of 20."""
    (folder / "train.py").write_text(SCRIPT)
    command = [sys.executable, "train.py", str(at), event]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scvi.settings, "logging_dir", str(tmp_path / "log"))
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("event", ["SIGKILL", "SIGTERM"])
def test_a_killed_training_loses_no_more_than_asked(adata, workdir, event):
    done = after(workdir, 8, event)
    assert "ENDED" not in done.stdout
    assert 6 <= step_of("last.ckpt") <= 8
    model = make(adata)
    model.train(4, ckpt_path="last.ckpt", **QUIET)
    assert all(p.isfinite().all() for p in model.module.parameters())


@pytest.mark.slow
def test_a_full_disk_keeps_the_last_checkpoint_and_the_training(adata, workdir):
    done = after(workdir, 7, "disk full")
    assert "ENDED" in done.stdout, done.stderr[-2000:]
    assert "The checkpoint of step 9 could not be written" in done.stderr
    assert step_of("last.ckpt") == 6
    assert [p.name for p in workdir.glob("*.ckpt*")] == ["last.ckpt"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_checkpoint_goes_on_where_it_was(adata, workdir, family):
    whole = make(adata, **family)
    whole.train(4, **QUIET)
    make(adata, **family).train(
        4, checkpoint_every=2 * N_STEPS, checkpoint_dir="run", callbacks=[Stop()], **QUIET
    )
    resumed = make(adata, **family)
    resumed.train(4, ckpt_path="run/last.ckpt", **QUIET)
    assert_same_state(state_of(whole), state_of(resumed))


def test_checkpoints_that_cannot_be_resumed(adata, workdir):
    model = make(adata)
    model.train(1, checkpoint_every=2, checkpoint_dir="run", **QUIET)
    with open("run/last.ckpt", "rb") as file:
        whole = file.read()
    for name, content in (("truncated", whole[: len(whole) // 2]), ("text", b"no checkpoint")):
        with open(f"{name}.ckpt", "wb") as file:
            file.write(content)
        with pytest.raises(ValueError, match="cannot be read") as error:
            make(adata).train(1, ckpt_path=f"{name}.ckpt", **QUIET)
        assert_one_sentence(error.value)
    with pytest.raises(ValueError, match="is of another model") as error:
        make(adata, n_latent=10).train(1, ckpt_path="run/last.ckpt", **QUIET)
    assert_one_sentence(error.value)
    with pytest.raises(ValueError, match="does not exist") as error:
        make(adata).train(1, ckpt_path="nowhere.ckpt", **QUIET)
    assert_one_sentence(error.value)
    assert os.path.getsize("run/last.ckpt") == len(whole)


def test_bad_arguments(adata, workdir):
    with pytest.raises(ValueError, match="`checkpoint_every`"):
        make(adata).train(1, checkpoint_every=0, **QUIET)


def test_a_resumed_training_falls_by_its_own_number_of_epochs(adata, workdir):
    plan = {"plan_kwargs": {"lr": 1e-3, "n_epochs_constant_lr": 2}}
    make(adata).train(4, checkpoint_every=2, checkpoint_dir="run", **plan, **QUIET)

    class Rates(Callback):
        def __init__(self):
            self.seen = []

        def on_train_epoch_start(self, trainer, plan):
            self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    straight, resumed = Rates(), Rates()
    make(adata).train(8, callbacks=[straight], **plan, **QUIET)
    make(adata).train(8, callbacks=[resumed], ckpt_path="run/last.ckpt", **plan, **QUIET)
    assert resumed.seen == pytest.approx(straight.seen[-len(resumed.seen) :])
    assert min(resumed.seen) > 0 and 4 <= len(resumed.seen) <= 5


def test_chains_begin_anew_if_the_device_is_of_another_kind(adata, workdir):
    make(adata).train(2, checkpoint_every=2, checkpoint_dir="run", **QUIET)
    checkpoint = torch.load("run/last.ckpt", weights_only=True)
    (name,) = [name for name in checkpoint["callbacks"] if "NegativePhase" in name]
    checkpoint["callbacks"][name]["generator"] = torch.zeros(16, dtype=torch.uint8)  # as CUDA's
    torch.save(checkpoint, "other.ckpt")
    model = make(adata)
    model.train(3, ckpt_path="other.ckpt", **QUIET)
    assert all(p.isfinite().all() for p in model.module.parameters())


def test_callbacks_of_the_trainer_config_stay_beside_the_checkpoints(adata, workdir):
    class Count(Callback):
        epochs = 0

        def on_train_epoch_end(self, trainer, plan):
            self.epochs += 1

    count = Count()
    config = {"callbacks": [count]}
    make(adata).train(3, checkpoint_every=2, checkpoint_dir="run", trainer_config=config, **QUIET)
    assert count.epochs == 3 and step_of("run/last.ckpt") > 0


def test_apples_gpus_are_refused_in_one_sentence(adata):
    with pytest.raises(ValueError, match="not 'mps': Apple's GPUs have no double precision"):
        make(adata).train(1, accelerator="mps")
