"""scvi-tools' training plans with a negative phase."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from scvi.model._utils import get_max_epochs_heuristic
from scvi.module.base import BaseModuleClass
from scvi.train import SemiSupervisedTrainingPlan, Trainer, TrainingPlan
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from scqbm._checks import amount, not_negative
from scqbm.samplers import Sampler
from scqbm.train._epoch_means import EpochMeansMixin
from scqbm.train._negative_phase import NegativePhase, prior_of

DEFAULT_LR = 3e-3
CONSTANT_EPOCHS = 30  # before the learning rates fall
KL_WARMUP = 20  # epochs


class BoltzmannPlanMixin(EpochMeansMixin):
    """Brings the negative phase to any training plan of scvi-tools.

    Inherit from it before the plan: ``class MyPlan(BoltzmannPlanMixin, TrainingPlan)``. The plan's
    module must have a :class:`~scqbm.prior.Prior` as ``prior``.

    Parameters
    ----------
    module
        The module to train.
    *args
        Passed to the plan.
    sampler
        Sampler of the prior; persistent block Gibbs chains if ``None``.
    sample_every
        Query the sampler at every so many steps.
    n_negatives
        Draws a query.
    prior_lr
        Learning rate of the prior. By default that of the networks, but at most 3e-3 if it has
        hidden bits besides a code of bits, and at most 1e-3 if not: at a higher rate, clusters of
        codes can grow that no chain visits.
    settle
        Let the prior learn on at the end, at codes that no longer move and from many draws, so
        that its modes get their shares. With the default sampler only, and for one step in 50 of
        the training, but at most 100 steps.
    n_epochs_constant_lr
        From this epoch on, or from three quarters of the training if those come first, all
        learning rates fall in equal steps to 0. ``None`` keeps them constant, as in scvi-tools,
        and so does ``reduce_lr_on_plateau``.
    **kwargs
        Passed to the plan.
    """

    def __init__(
        self,
        module: BaseModuleClass,
        *args,
        sampler: Sampler | None = None,
        sample_every: int = 1,
        n_negatives: int = 256,
        prior_lr: float | None = None,
        settle: bool = True,
        n_epochs_constant_lr: int | None = None,
        **kwargs,
    ):
        if n_epochs_constant_lr is not None:
            amount("n_epochs_constant_lr", n_epochs_constant_lr)
        if prior_lr is not None:
            amount("prior_lr", prior_lr)
        self.negative_phase = NegativePhase(sampler, n_negatives, sample_every, settle)
        super().__init__(module, *args, **kwargs)
        self.n_epochs_constant_lr = n_epochs_constant_lr
        most = prior_of(self).max_lr
        if prior_lr is None and self.optimizer_name != "Custom" and self.lr > most:
            prior_lr = most
        self.prior_lr = prior_lr

    def configure_callbacks(self) -> list[Callback]:
        """The plan's, and the negative phase unless the user brought one."""
        mine = [c for c in self.trainer.callbacks if isinstance(c, NegativePhase)]
        return [*super().configure_callbacks(), *([] if mine else [self.negative_phase])]

    def get_optimizer_creator(self):
        """The plan's optimizer; the prior is a second group of it if its learning rate differs."""
        create = _fused(super().get_optimizer_creator())
        if self.prior_lr is None:
            return create

        def with_prior_group(params):
            ours = set(prior_of(self).parameters())
            params = list(params)
            groups: list[dict[str, Any]] = [
                {"params": [p for p in params if p not in ours], "name": "vae"},
                {"params": [p for p in params if p in ours], "name": "prior", "lr": self.prior_lr},
            ]
            return create([group for group in groups if group["params"]])

        return with_prior_group

    def configure_optimizers(self):
        """The plan's, with rates that fall towards the end of a training of known length."""
        config: dict[str, Any] = super().configure_optimizers()
        epochs = self.trainer.max_epochs or 0
        if self.n_epochs_constant_lr is None or self.reduce_lr_on_plateau or epochs < 1:
            return config
        # a partial has nothing to store: a resumed training falls by its own number of epochs
        falling = partial(Falling(epochs, self.n_epochs_constant_lr))
        scheduler = LambdaLR(config["optimizer"], falling)
        return config | {"lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}

    def on_train_start(self) -> None:
        """Begin a resumed training with its own learning rates, not the checkpoint's."""
        super().on_train_start()
        schedulers = self.lr_schedulers()
        if self.trainer.current_epoch > 0 and isinstance(schedulers, LambdaLR):
            of_group = zip(schedulers.base_lrs, schedulers.lr_lambdas, strict=True)
            rates = [base * factor(schedulers.last_epoch) for base, factor in of_group]
            for group, rate in zip(schedulers.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate

    def on_fit_start(self) -> None:
        """Train in training mode, also a model that was trained before.

        scvi-tools leaves a trained model in evaluation mode, and Lightning keeps the mode it finds
        (since 2.2). A query model stays as scvi-tools has it.
        """
        super().on_fit_start()
        if prior_of(self).learns:
            self.module.train()

    def on_train_epoch_start(self) -> None:
        """The monitor renames the networks' rate if groups are two: keep scvi-tools' name."""
        super().on_train_epoch_start()
        optimizer = self.trainer.optimizers[0]
        monitored = any(isinstance(c, LearningRateMonitor) for c in self.trainer.callbacks)
        if monitored and len(optimizer.param_groups) > 1:
            self.log(f"lr-{type(optimizer).__name__}", optimizer.param_groups[0]["lr"])


def _fused(create: Callable[[Any], Optimizer]) -> Callable[[Any], Optimizer]:
    """The same optimizer; Adam then updates all parameters in one pass over memory."""

    def creator(params):
        optimizer = create(params)
        if type(optimizer) in (Adam, AdamW):
            for group in optimizer.param_groups:
                devices = {p.device.type for p in group["params"]}
                chosen = group["fused"] is not None or group["foreach"] or group["differentiable"]
                # set here, not in Adam's arguments, with which Lightning refuses to clip gradients
                if not chosen and devices <= {"cpu", "cuda"}:
                    group["fused"] = True
        return optimizer

    return creator


class Falling:
    """Factor on a learning rate: 1 for a while, then in equal steps to 0 (a class: it pickles)."""

    def __init__(self, epochs: int, constant: int = CONSTANT_EPOCHS):
        self.constant = min(constant, 0.75 * epochs)
        self.epochs = epochs

    def __call__(self, epoch: int) -> float:
        return min(1.0, max(0, self.epochs - epoch) / (self.epochs - self.constant))


class QBMTrainingPlan(BoltzmannPlanMixin, TrainingPlan):
    """:class:`scvi.train.TrainingPlan` with a negative phase and the defaults of QBMVI.

    Parameters
    ----------
    module
        A :class:`~scqbm.module.QBVAE`.
    sampler, sample_every, n_negatives, prior_lr, settle
        As in :class:`BoltzmannPlanMixin`.
    lr
        Learning rate of the networks: 3e-3, three times scvi-tools' own. At scvi-tools' rate, bits
        need more epochs.
    n_epochs_constant_lr
        As in :class:`BoltzmannPlanMixin`, 30 by default: at a constant rate, small data overfit.
    n_epochs_kl_warmup
        Epochs in which the weight of the KL term rises from 0 to 1: 20, where scvi-tools has 400.
    **kwargs
        Those of :class:`scvi.train.TrainingPlan`.
    """

    def __init__(
        self,
        module: BaseModuleClass,
        *,
        sampler: Sampler | None = None,
        sample_every: int = 1,
        n_negatives: int = 256,
        prior_lr: float | None = None,
        settle: bool = True,
        lr: float = DEFAULT_LR,
        n_epochs_constant_lr: int | None = CONSTANT_EPOCHS,
        n_epochs_kl_warmup: int | None = KL_WARMUP,
        **kwargs,
    ):
        super().__init__(
            module,
            sampler=sampler,
            sample_every=sample_every,
            n_negatives=n_negatives,
            prior_lr=prior_lr,
            settle=settle,
            lr=lr,
            n_epochs_constant_lr=n_epochs_constant_lr,
            n_epochs_kl_warmup=n_epochs_kl_warmup,
            **kwargs,
        )


class QBMANVITrainingPlan(BoltzmannPlanMixin, SemiSupervisedTrainingPlan):
    """:class:`scvi.train.SemiSupervisedTrainingPlan` with the defaults of QBMANVI.

    Parameters
    ----------
    module
        The module to train.
    n_classes
        Labels.
    sampler, sample_every, n_negatives, prior_lr, settle
        As in :class:`BoltzmannPlanMixin`.
    classification_ratio
        Weight of the cross entropy of the known labels; 50 in scvi-tools.
    lr
        Learning rate of the networks.
    n_epochs_constant_lr, n_epochs_kl_warmup
        As in :class:`QBMTrainingPlan`.
    **kwargs
        Those of :class:`scvi.train.SemiSupervisedTrainingPlan`.
    """

    def __init__(
        self,
        module: BaseModuleClass,
        n_classes: int,
        *,
        sampler: Sampler | None = None,
        sample_every: int = 1,
        n_negatives: int = 256,
        prior_lr: float | None = None,
        settle: bool = True,
        classification_ratio: float = 20,
        lr: float = DEFAULT_LR,
        n_epochs_constant_lr: int | None = CONSTANT_EPOCHS,
        n_epochs_kl_warmup: int | None = KL_WARMUP,
        **kwargs,
    ):
        not_negative("classification_ratio", classification_ratio)
        super().__init__(
            module,
            n_classes,
            sampler=sampler,
            sample_every=sample_every,
            n_negatives=n_negatives,
            prior_lr=prior_lr,
            settle=settle,
            classification_ratio=classification_ratio,
            lr=lr,
            n_epochs_constant_lr=n_epochs_constant_lr,
            n_epochs_kl_warmup=n_epochs_kl_warmup,
            **kwargs,
        )


def default_epochs(n_cells: int) -> int:
    """Epochs that bring the held-out ELBO to its best, as measured; never more than SCVI takes.

    A million cells are seen, which is about 7,800 steps, in 25 to 200 epochs: with more, small
    data overfit.
    """
    enough = min(200, max(25, round(1_000_000 / n_cells)))
    return min(enough, get_max_epochs_heuristic(n_cells))


def plan_arguments() -> set[str]:
    """Names of arguments that belong to the training plan and not to the trainer."""
    plan = _names(QBMANVITrainingPlan, QBMTrainingPlan, BoltzmannPlanMixin, TrainingPlan)
    return plan - trainer_arguments() - {"module", "n_classes", "args", "loss_kwargs"}


def trainer_arguments() -> set[str]:
    """Names of arguments that belong to the trainer."""
    return _names(Trainer, pl.Trainer)


def _names(*classes: type) -> set[str]:
    return {name for cls in classes for name in signature(cls).parameters}
