"""Checkpoints that outlive a killed process and a full disk, and a look at one before a resume."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from scqbm._checks import at_least
from scqbm.train._compiled import plain_names

NAME = "last.ckpt"


class Checkpoints(Callback):
    """Writes ``last.ckpt`` every so many steps, and at the end.

    A new checkpoint replaces the last one only once it is complete. If it cannot be written, for
    example because the disk is full, a warning says so, the last one stays, and training goes on.

    Parameters
    ----------
    folder
        Where to write; made if it does not exist.
    every
        Steps between two checkpoints: as many are lost at most.
    """

    def __init__(self, folder: str | os.PathLike, every: int):
        at_least("checkpoint_every", every, 1)
        self.folder = Path(folder)
        self.every = every
        self._saved = -1  # the step of the last attempt
        self._due = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Save, if it is time; after the last step of an epoch, once the epoch has ended."""
        self._due = trainer.global_step % self.every == 0
        if self._due and not trainer.is_last_batch:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, if it was time at the epoch's last step."""
        if self._due:
            self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the end."""
        self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        if trainer.global_step == self._saved:
            return
        self._saved = trainer.global_step
        new = self.folder / f"{NAME}.new"
        try:
            trainer.save_checkpoint(new)  # by all processes; the first one writes
            if trainer.is_global_zero:
                os.replace(new, self.folder / NAME)
        except OSError as error:
            trainer.strategy.barrier("Trainer.save_checkpoint")  # where other processes wait
            new.unlink(missing_ok=True)
            warnings.warn(
                f"The checkpoint of step {trainer.global_step} could not be written to "
                f"{self.folder} ({error.strerror or error}); the last one stays.",
                UserWarning,
                stacklevel=2,
            )


def check_checkpoint(path: str | os.PathLike, module: nn.Module | None) -> None:
    """Raise a ValueError in one sentence unless the checkpoint is whole and of this model."""
    path = Path(path)
    if not path.exists():
        raise ValueError(f"`ckpt_path` {str(path)!r} does not exist.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=False)["state_dict"]
    except Exception as error:
        raise ValueError(
            f"`ckpt_path` {str(path)!r} cannot be read: it is truncated, or no checkpoint of a "
            f"training ({type(error).__name__})."
        ) from error
    if module is None:  # it is made from a datamodule that is not set up yet
        return
    saved = plain_names(state)
    own = {f"module.{name}": value for name, value in module.state_dict().items()}
    for name in sorted(own.keys() | saved.keys()):
        shapes = [tuple(x[name].shape) if name in x else "none" for x in (saved, own)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"`ckpt_path` {str(path)!r} is of another model: its {name} has shape "
                f"{shapes[0]}, this model's {shapes[1]}."
            )
