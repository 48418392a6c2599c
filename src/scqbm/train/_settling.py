"""The end of a training: the prior learns on, at codes that no longer move, from many draws.

In training, draws are few, so that the shares of its modes are noisy. The ELBO hardly
notices, but new cells then hold too many of one type and too few of another.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice
from typing import Any

import lightning.pytorch as pl
import torch
from scvi.module._constants import MODULE_KEYS
from torch import Tensor
from torch.distributions import Distribution
from torch.optim import Adam
from tqdm.auto import tqdm

from scqbm.samplers import GibbsSampler
from scqbm.train._compiled import inner

LR = 3e-4  # of the first step; it falls to 0
N_DRAWS = 2048  # negatives, and codes, of a step
MOST_STEPS, TRAINED_STEPS = 100, 50  # one step for every 50 of the training, but at most 100
MOST_CELLS = 20_000  # whose codes are used


@dataclass
class Codes:
    """Posteriors of cells, and what the prior is told of them."""

    qz: Distribution
    known: dict[str, Tensor]

    def some(self, n: int, generator: torch.Generator | None) -> Codes:
        """Of ``n`` cells, drawn with replacement."""
        like = self.qz.loc
        rows = torch.randint(len(like), (n,), generator=generator, device=like.device)
        parts = {name: getattr(self.qz, name)[rows] for name in self.qz.arg_constraints}
        known = {name: value[rows] for name, value in self.known.items()}
        return Codes(type(self.qz)(**parts, validate_args=False), known)


def patient_sampler() -> GibbsSampler:
    """The default sampler, which begins anew more often and more carefully."""
    return GibbsSampler(n_sweeps=5, renew_every=50, n_anneal=500)


def n_steps(trainer: pl.Trainer) -> int:
    """Steps after this training: none after a very short one."""
    return min(MOST_STEPS, trainer.global_step // TRAINED_STEPS)


@torch.no_grad()
def codes_of(trainer: pl.Trainer, pl_module: pl.LightningModule) -> Codes | None:
    """Codes of training cells without dropout; ``None`` from a module of another kind."""
    module: Any = inner(pl_module.module)
    was_training = module.training
    module.eval()
    found: list[Codes] = []
    n_batches = trainer.num_training_batches  # where this is not known, the loader ends by itself
    last = int(n_batches) if math.isfinite(n_batches) else None
    for batch in islice(trainer.train_dataloader or (), last):
        if not isinstance(batch, dict):  # of two minibatches, the first is of all cells
            batch = batch[0]
        batch = trainer.strategy.batch_to_device(batch)
        out = module.inference(**module._get_inference_input(batch))
        if MODULE_KEYS.QZ_KEY not in out:
            break
        qz = out[MODULE_KEYS.QZ_KEY]
        found.append(Codes(qz, module.known(batch, qz) if hasattr(module, "known") else {}))
        if sum(len(one.qz.loc) for one in found) >= MOST_CELLS:
            break
    module.train(was_training)
    if not found:
        return None
    kind, first = type(found[0].qz), found[0]
    parts = {
        name: torch.cat([getattr(one.qz, name) for one in found]) for name in kind.arg_constraints
    }
    known = {name: torch.cat([one.known[name] for one in found]) for name in first.known}
    return Codes(kind(**parts, validate_args=False), known)


def settle(prior: Any, codes: Codes, phase: Any, steps: int, silent: bool) -> None:
    """Take ``steps`` steps of the prior, with negatives that ``phase`` brings."""
    learning = [p for p in prior.parameters() if p.requires_grad]
    optimizer = Adam(learning, lr=LR)
    generator = phase.generator
    for step in tqdm(range(steps), desc="Settling the prior", disable=silent):
        optimizer.param_groups[0]["lr"] = LR * (1 - step / steps)
        phase.bring(prior, step)
        some = codes.some(N_DRAWS, generator)
        optimizer.zero_grad()
        prior.contrast(some.qz, some.qz.sample(), **some.known).backward()
        optimizer.step()
