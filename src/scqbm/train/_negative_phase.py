"""The negative phase: the only place that knows both the model and a sampler."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from scqbm._checks import at_least
from scqbm.prior import Prior
from scqbm.samplers import Draws, GibbsSampler, Sampler, SamplerError, ask, check_sampler
from scqbm.train._compiled import inner
from scqbm.train._log_z import LogZ
from scqbm.train._monitor import Monitor
from scqbm.train._ranks import from_first_rank
from scqbm.train._settling import N_DRAWS, codes_of, n_steps, patient_sampler, settle

_GAP_EVERY = 10  # steps between two comparisons of mean energies, which keeps them cheap
_LEAST_DRAWS = 32  # from each machine, where a prior has several


class NegativePhase(Callback):
    """Asks a sampler for draws from the prior at each training step and delivers them.

    On several devices, each process has chains of its own. A sampler whose draws cost money
    (:attr:`~scqbm.samplers.Sampler.asked_once`) is asked by the first process only, and all
    processes get its draws.

    It also keeps the prior's log Z current, and logs the health of the negatives every epoch:

    * ``prior_memory``: correlation of the negatives with those at the epoch's start, draw by draw;
    * ``prior_ess``: how many independent negatives the epoch's worst query was worth, by its
      weights and by ``roots`` if the sampler reports them;
    * ``prior_beta``: inverse temperature of the last negatives under the prior;
    * ``prior_gap``: mean energy of the data's codes minus that of the negatives, in nats.

    Parameters
    ----------
    sampler
        Any :class:`~scqbm.samplers.Sampler`; by default persistent block Gibbs chains.
    n_draws
        Negatives a query; a prior with several machines divides them, with 32 each at least.
    every
        Query at every ``every``-th step, and reuse the draws in between.
    settle
        Let the prior learn on at the end, from many draws; with the default sampler only.
    """

    def __init__(
        self,
        sampler: Sampler | None = None,
        n_draws: int = 256,
        every: int = 1,
        settle: bool = True,
    ):
        at_least("sample_every", every, 1)
        at_least("n_negatives", n_draws, 1)
        if not isinstance(settle, bool):
            raise ValueError(f"`settle` must be True or False, not {settle!r}.")
        self.sampler = GibbsSampler() if sampler is None else sampler
        check_sampler(self.sampler)
        self.n_draws = n_draws
        self.every = every
        self.settle = settle
        self._log_z = LogZ()
        self._monitor = Monitor(n_draws)
        self._draws: list[Draws] = []  # of the last query, one of each machine of the prior
        self.generator: torch.Generator | None = None
        self._restored: dict | None = None
        self._clock = 0
        self._negative_energy: Tensor | None = None

    # -- Lightning hooks -----------------------------------------------------------------------

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Seed the generator: from torch's global one, and apart on each rank."""
        prior = prior_of(pl_module)
        if not prior.learns:
            return
        device = prior.log_z.device
        self._log_z.begin()
        self.generator = torch.Generator(device=device)
        # drawn even on resume, so that resumed and uninterrupted runs see one global sequence
        self.generator.manual_seed(int(torch.randint(2**62, ())) + trainer.global_rank)
        restored, self._restored = self._restored, None
        if restored is None:
            return
        torch.set_rng_state(restored["torch_rng"])
        if trainer.global_rank == 0:  # the checkpoint holds rank 0's chains only
            # of another kind of device it has another size, and cannot be gone on with
            if len(restored["generator"]) == len(self.generator.get_state()):
                self.generator.set_state(restored["generator"])
            if restored.get("draws"):  # not in those of earlier versions
                self._draws = [Draws(**draws) for draws in restored["draws"]]
                self._deliver(prior)
                self._log_z.load(restored["energy"], restored["shift"], device)
        self._clock = restored["clock"]

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the epoch's record of the negatives' health; weigh several machines anew."""
        self._monitor.start_epoch()
        prior = prior_of(pl_module)
        if prior.learns and len(prior.machines()) > 1:
            # a machine that is followed with an error gets too much weight, and then grows
            self._log_z.refresh(prior, self.generator)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Query the sampler, before the training step."""
        prior = prior_of(pl_module)
        if not prior.learns:
            return
        if self._clock % self.every == 0:
            self.bring(prior, trainer.global_step)
            self._monitor.record(prior, self._draws)
        else:
            self._log_z.follow(prior)
        measured = batch_idx % _GAP_EVERY == 0
        self._negative_energy = prior.mean_negative_energy() if measured else None
        self._clock += 1

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Compare the energies of both phases, at the parameters that the step began with."""
        if self._negative_energy is not None:
            self._monitor.compare(prior_of(pl_module), self._negative_energy)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refresh log Z, so that the validation ELBO is that of the present parameters."""
        prior = prior_of(pl_module)
        if prior.learns and self.generator is not None:
            self._log_z.refresh(prior, self.generator)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop a diverged training; log how well the chains mix."""
        prior = prior_of(pl_module)
        loss = trainer.callback_metrics.get("train_loss", prior.log_z)
        if not bool(torch.isfinite(loss + prior.log_z)):
            raise _diverged(f"in epoch {trainer.current_epoch}")
        if not prior.learns or not self._draws:
            return
        health = self._monitor.end_epoch(prior, self._draws, trainer.current_epoch)
        for name, value in health.items():
            pl_module.log(name, value, on_step=False, on_epoch=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let the prior settle, and leave it with a fresh log Z."""
        prior = prior_of(pl_module)
        if not prior.learns:
            return
        steps = n_steps(trainer) if self.settle else 0
        if steps > 0 and type(self.sampler) is GibbsSampler:
            # one process for all: it is short, and the codes of its cells are like any others
            state = from_first_rank(lambda: self._settled(trainer, pl_module, steps))
            prior.load_state_dict(state)
            LogZ().refresh(prior, self.generator)
        else:
            self._log_z.refresh(prior, self.generator)

    @torch.enable_grad()
    def _settled(self, trainer: pl.Trainer, pl_module: pl.LightningModule, steps: int) -> dict:
        prior, codes = prior_of(pl_module), codes_of(trainer, pl_module)
        if codes is not None:
            phase = NegativePhase(patient_sampler(), N_DRAWS)
            phase.generator = self.generator
            silent = trainer.progress_bar_callback is None
            settle(prior, codes, phase, steps, silent)
        return {name: value.cpu() for name, value in prior.state_dict().items()}

    def state_dict(self) -> dict:
        """Chains, counters and random states: tensors and ints, for an exact resume."""
        if self.generator is None:
            return {}
        names = ("visible", "hidden", "state", "weights")
        return {
            "draws": [{name: getattr(draws, name) for name in names} for draws in self._draws],
            "generator": self.generator.get_state(),
            "torch_rng": torch.get_rng_state(),
            "clock": self._clock,
            **self._log_z.state_dict(),
        }

    def load_state_dict(self, state_dict: dict) -> None:
        """Keep what a checkpoint held until the fit starts."""
        self._restored = state_dict or None

    # -- one query -----------------------------------------------------------------------------

    def bring(self, prior: Prior, step: int) -> None:
        """Bring new negatives to the prior, and follow its log Z up to here."""
        self._log_z.follow(prior)
        self._draws = self._query(prior, step)
        self._deliver(prior)
        self._log_z.restart(prior)

    def _query(self, prior: Prior, step: int) -> list[Draws]:
        # before the sampler is blamed; a sum of finite numbers is finite, and a cheap check
        if not math.isfinite(sum(p.detach().sum() for p in prior.parameters())):
            raise _diverged(f"at step {step}")
        machines = [rbm.to(prior.log_z.device) for rbm in prior.machines()]
        last: list[Draws | None] = [*self._draws] or [None] * len(machines)
        n_each = self.n_draws
        if len(machines) > 1:
            n_each = max(_LEAST_DRAWS, math.ceil(self.n_draws / len(machines)))
        when = f" at step {step}"

        def query() -> list[Draws]:
            return [
                ask(self.sampler, rbm, n_each, each and each.state, self.generator, when)
                for rbm, each in zip(machines, last, strict=True)
            ]

        try:
            if not getattr(self.sampler, "asked_once", False):
                return query()
            shared = from_first_rank(lambda: [draws.cpu() for draws in query()])
            return [draws.to(machines[0].W) for draws in shared]
        except SamplerError as error:
            text = f"{error} The model keeps its training up to that step."
            raise SamplerError(text) from error.__cause__

    def _deliver(self, prior: Prior) -> None:
        counts = [len(draws.visible) for draws in self._draws]
        weights = None
        if any(draws.weights is not None for draws in self._draws):
            weights = torch.cat([_weights(draws) for draws in self._draws])
        prior.deliver(torch.cat([draws.visible for draws in self._draws]), weights, counts)


def _weights(draws: Draws) -> Tensor:
    """Weights of draws, where others are weighted too."""
    if draws.weights is not None:
        return draws.weights
    return draws.visible.new_ones(len(draws.visible))


def prior_of(pl_module: pl.LightningModule) -> Prior:
    """The prior of a training plan's module, compiled or not."""
    return inner(pl_module.module).prior


def _diverged(when: str) -> FloatingPointError:
    return FloatingPointError(
        f"Training diverged {when}: the loss or the prior is no longer finite. Train a new model "
        "with a lower lr in plan_kwargs, or clip gradients with gradient_clip_val."
    )
