"""The negative phase: the only place that knows both the model and a sampler."""

from __future__ import annotations

import math
import warnings

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from scqbm.partition import log_partition
from scqbm.prior import RBMPrior
from scqbm.samplers import Draws, GibbsSampler, Sampler, effective_beta, effective_number

STUCK = 0.5  # chains that keep more than this correlation with themselves over an epoch
FEW = 0.05  # draws worth less than this share of their number
_MIN_QUERIES = 20  # below, an epoch says little about mixing
_GAP_EVERY = 10  # steps between two comparisons of mean energies, which keeps them free


class SamplerError(RuntimeError):
    """A sampler failed or returned something that is not a draw from the prior."""


class NegativePhase(Callback):
    """Asks a sampler for draws from the prior at each training step and hands them over.

    It also keeps the prior's log Z current: importance weights of the negatives follow the
    parameters from step to step, and a fresh estimate is made before each validation and at the
    end. And it logs the negatives' health every epoch:

    * ``prior_memory``: correlation of the negatives with those at the epoch's start, draw by draw;
    * ``prior_ess``: how many independent negatives the epoch's worst query was worth, by its
      weights and by ``roots`` if the sampler reports them;
    * ``prior_beta``: inverse temperature of the last negatives under the prior;
    * ``prior_gap``: mean energy of the data's codes less that of the negatives, in nats.

    Parameters
    ----------
    sampler
        Any :class:`~scqbm.samplers.Sampler`; by default persistent block Gibbs chains.
    n_draws
        Negatives a query.
    every
        Query at every ``every``-th step, reusing the draws in between.
    """

    def __init__(self, sampler: Sampler | None = None, n_draws: int = 256, every: int = 1):
        if every < 1:
            raise ValueError(f"`sample_every` must be at least 1, not {every}.")
        if n_draws < 1:
            raise ValueError(f"`n_negatives` must be at least 1, not {n_draws}.")
        if isinstance(sampler, type):
            name = sampler.__name__
            raise TypeError(f"`sampler` must be an instance, {name}(), not the class {name}.")
        self.sampler = GibbsSampler() if sampler is None else sampler
        if not callable(getattr(self.sampler, "sample", None)):
            raise TypeError(
                f"`sampler` must have a method sample(rbm, n_draws, state, generator), as "
                f"scqbm.samplers.Sampler has; {type(sampler).__name__} has none."
            )
        self.n_draws = n_draws
        self.every = every
        self._state: dict[str, Tensor | int] | None = None
        self._generator: torch.Generator | None = None
        self._restored: dict | None = None
        self._clock = 0
        self._energy: Tensor | None = None  # of the negatives, at the parameters that drew them
        self._shift = torch.zeros(())  # log Z since then, as far as followed
        self._fresh: list[Tensor] = []  # the parameters at which log Z was last estimated
        self._snapshot: Tensor | None = None
        self._queries_in_epoch = 0
        self._ess = math.inf
        self._negative_energy: Tensor | None = None
        self._gaps: list[Tensor] = []
        self._warned: set[str] = set()

    # -- Lightning hooks -----------------------------------------------------------------------

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Seed the generator: from torch's global one, and apart on each rank."""
        prior = _prior_of(pl_module)
        if not prior.learns:
            return
        self._fresh = []
        self._generator = torch.Generator(device=prior.log_z.device)
        # drawn even on resume, so that resumed and uninterrupted runs see one global sequence
        self._generator.manual_seed(int(torch.randint(2**62, ())) + trainer.global_rank)
        restored, self._restored = self._restored, None
        if restored is None:
            return
        torch.set_rng_state(restored["torch_rng"])
        if trainer.global_rank == 0:  # the checkpoint holds rank 0's chains only
            self._state = restored["sampler"]
            self._generator.set_state(restored["generator"])
            if restored["negatives"] is not None:
                prior.deliver(restored["negatives"], restored["weights"])
                self._hidden = restored["hidden"]
                # checkpoints are read onto the CPU
                self._energy = restored["energy"].to(prior.log_z.device)
                self._shift = restored["shift"].to(prior.log_z.device)
        self._clock = restored["clock"]

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the epoch's record of the negatives' health."""
        self._snapshot, self._queries_in_epoch, self._ess, self._gaps = None, 0, math.inf, []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: dict, batch_idx: int
    ) -> None:
        """Query the sampler, before the training step."""
        prior = _prior_of(pl_module)
        if not prior.learns:
            return
        self._follow_log_z(prior)
        if self._clock % self.every == 0:
            draws = self._query(prior, trainer.global_step)
            prior.deliver(draws.visible, draws.weights)
            self._energy, self._shift = prior.negative_energy(), torch.zeros_like(prior.log_z)
            self._queries_in_epoch += 1
            if self._snapshot is None:
                self._snapshot = prior.negatives.clone()
            ess = effective_number(draws.weights, len(draws.visible))
            self._ess = min(self._ess, ess, draws.info.get("roots", math.inf))
        measured = batch_idx % _GAP_EVERY == 0
        self._negative_energy = prior.mean_negative_energy() if measured else None
        self._clock += 1

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args
    ) -> None:
        """Compare the energies of both phases, at the parameters that the step began with."""
        if self._negative_energy is not None:
            prior = _prior_of(pl_module)
            self._gaps.append(prior.positive_energy - self._negative_energy)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refresh log Z, so that the validation ELBO means what it says."""
        prior = _prior_of(pl_module)
        if prior.learns and self._generator is not None:
            self._refresh_log_z(prior)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop a diverged training; say how well the chains mix."""
        prior = _prior_of(pl_module)
        loss = trainer.callback_metrics.get("train_loss", prior.log_z)
        if not bool(torch.isfinite(loss + prior.log_z)):
            raise _diverged(f"in epoch {trainer.current_epoch}")
        if not prior.learns or self._snapshot is None:
            return
        health = {"prior_memory": autocorrelation(self._snapshot, prior.negatives)}
        health["prior_ess"] = self._ess
        health["prior_beta"] = effective_beta(
            prior.rbm(), prior.negatives, self._hidden.to(prior.negatives), prior.negative_weights
        )
        if self._gaps:
            health["prior_gap"] = torch.stack(self._gaps).mean()
        for name, value in health.items():
            pl_module.log(name, value, on_step=False, on_epoch=True)
        if self._queries_in_epoch >= _MIN_QUERIES:
            self._warn(health, trainer.current_epoch)

    def _warn(self, health: dict, epoch: int) -> None:
        """Each kind of trouble once."""
        memory, ess = health["prior_memory"], health["prior_ess"]
        troubles = {}
        if memory > STUCK:
            troubles["stuck"] = (
                f"The prior's chains have stopped mixing: over epoch {epoch} they kept a "
                f"correlation of {memory:.2f} with where they began"
            )
        if ess < FEW * self.n_draws:
            troubles["few"] = (
                f"The prior has become too rugged for its sampler: in epoch {epoch} the "
                f"{self.n_draws} negatives of a query were worth {ess:.0f} independent ones"
            )
        for kind in troubles.keys() - self._warned:
            self._warned.add(kind)
            warnings.warn(
                f"{troubles[kind]}, so the prior's gradient and energies may be biased. Try "
                "sampler=scqbm.samplers.TemperingSampler() or a lower prior_lr in plan_kwargs.",
                UserWarning,
                stacklevel=3,
            )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the prior with a fresh log Z."""
        prior = _prior_of(pl_module)
        if prior.learns:
            self._refresh_log_z(prior)

    def state_dict(self) -> dict:
        """Chains, counters and random states: tensors and ints, for an exact resume."""
        if self._generator is None:
            return {}
        return {
            "sampler": self._state or {},
            "generator": self._generator.get_state(),
            "torch_rng": torch.get_rng_state(),
            "clock": self._clock,
            "negatives": self._negatives,
            "hidden": self._hidden,
            "weights": self._weights,
            "energy": self._energy,
            "shift": self._shift,
        }

    def load_state_dict(self, state_dict: dict) -> None:
        """Keep what a checkpoint held until the fit starts."""
        self._restored = state_dict or None

    # -- helpers -------------------------------------------------------------------------------

    _negatives: Tensor | None = None
    _hidden: Tensor | None = None
    _weights: Tensor | None = None

    @torch.no_grad()
    def _query(self, prior: RBMPrior, step: int) -> Draws:
        rbm = prior.rbm().to(prior.log_z.device, copy=True)  # theirs to scribble on
        # before the sampler is blamed
        if not all(bool(x.isfinite().all()) for x in (rbm.a, rbm.b, rbm.W)):
            raise _diverged(f"at step {step}")
        name = type(self.sampler).__name__
        kept = "The model keeps its training up to that step."
        try:
            draws = self.sampler.sample(rbm, self.n_draws, self._state, self._generator)
        except Exception as error:
            reason = str(error).rstrip(".")
            raise SamplerError(
                f"`sampler` {name} failed at step {step}: {reason}. {kept}"
            ) from error
        problem = _problem_with(draws, rbm.n_visible, rbm.gaussian)
        if problem:
            raise SamplerError(f"`sampler` {name} {problem} at step {step}. {kept}")
        self._state = draws.state
        self._negatives, self._hidden = draws.visible, draws.hidden
        self._weights = draws.weights
        return draws

    @torch.no_grad()
    def _follow_log_z(self, prior: RBMPrior) -> None:
        """``log Z' - log Z = log <exp(F - F')>`` over draws from the parameters of ``F``."""
        if self._energy is None:
            return
        change = self._energy - prior.negative_energy()
        if prior.negative_weights is None:
            shift = change.logsumexp(0) - torch.tensor(float(len(change))).log()
        else:
            shift = (change + prior.negative_weights.log()).logsumexp(0)
        prior.log_z += shift - self._shift
        self._shift = shift

    def _refresh_log_z(self, prior: RBMPrior) -> None:
        rbm = prior.rbm()
        parameters = [rbm.a, rbm.b, rbm.W]
        if self._fresh and all(map(torch.equal, self._fresh, parameters)):
            return  # the end of training, right after a validation whose state may be on disk
        self._fresh = [p.clone() for p in parameters]
        self._follow_log_z(prior)  # so that following goes on from here
        prior.set_log_partition(log_partition(rbm, generator=self._generator))


def _diverged(when: str) -> FloatingPointError:
    return FloatingPointError(
        f"Training diverged {when}: the loss or the prior is no longer finite. Train a new model "
        "with a lower lr in plan_kwargs, or clip gradients with gradient_clip_val."
    )


def autocorrelation(before: Tensor, after: Tensor) -> float:
    """Correlation over chains between two times, pooled over units by their variance."""
    if len(before) < 2 or before.shape != after.shape:
        return 0.0
    if torch.equal(before, after):
        return 1.0  # constant draws have no variance to correlate
    x, y = before - before.mean(0), after - after.mean(0)
    scale = (x.square().sum() * y.square().sum()).sqrt()
    return ((x * y).sum() / scale).item() if scale > 0 else 0.0


def _problem_with(draws: object, n_visible: int, gaussian: bool) -> str | None:
    """What is wrong with a sampler's answer, as the rest of a sentence."""
    if not isinstance(draws, Draws):
        return f"returned {type(draws).__name__} instead of scqbm.samplers.Draws"
    visible, weights = draws.visible, draws.weights
    if not isinstance(visible, Tensor):
        return f"returned visible draws of type {type(visible).__name__} instead of torch.Tensor"
    if visible.dim() != 2 or len(visible) == 0 or visible.shape[1] != n_visible:
        return (
            f"returned visible draws of shape {tuple(visible.shape)} instead of "
            f"(n_draws, {n_visible})"
        )
    if weights is not None and weights.shape != visible.shape[:1]:
        return f"returned weights of shape {tuple(weights.shape)} for {len(visible)} draws"
    if weights is not None and not (weights.min() >= 0 and 0 < weights.sum() < math.inf):
        return "returned weights that are negative, not finite or all zero"
    legal = visible.isfinite() if gaussian else visible * (visible - 1) == 0
    if not bool(legal.all()):
        if not bool(visible.isfinite().all()):
            return "returned NaN or infinite values"
        return "returned values other than 0 and 1 (convert with scqbm.ising.spins_to_bits)"
    return None


def _prior_of(pl_module: pl.LightningModule) -> RBMPrior:
    module = pl_module.module
    return getattr(module, "_orig_mod", module).prior  # the second under torch.compile
