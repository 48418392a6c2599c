"""scVI's training plan, bringing the negative phase along."""

from __future__ import annotations

from numbers import Real

from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from scvi.module.base import BaseModuleClass
from scvi.train import TrainingPlan
from torch.optim.lr_scheduler import LambdaLR

from scqbm.negative_phase import NegativePhase
from scqbm.samplers import Sampler

DEFAULT_LR = 3e-3
MAX_PRIOR_LR = 1e-3


class QBMTrainingPlan(TrainingPlan):
    """:class:`scvi.train.TrainingPlan` with a negative phase.

    Parameters
    ----------
    module
        A :class:`~scqbm.module.QBVAE`.
    sampler
        Sampler of the prior; persistent block Gibbs chains if ``None``.
    sample_every
        Query the sampler at every so many steps.
    n_negatives
        Draws a query.
    prior_lr
        Learning rate of the prior. By default that of the networks (one optimizer group) up to
        1e-3: faster, clusters of codes that no chain is in can grow unseen.
    lr
        Learning rate of the networks: 3e-3, three times scvi-tools' own, which leaves bits
        half-learnt after as many epochs.
    n_epochs_constant_lr
        From this epoch on, or from three quarters of the training if those come first, all
        learning rates fall in equal steps to nothing: cells that are seen for the hundredth time
        at a constant rate are learnt by heart. ``None`` keeps them constant, as in scvi-tools,
        and so does ``reduce_lr_on_plateau``.
    n_epochs_kl_warmup
        As in scvi-tools, but 20 and not 400, which is what the benchmark ran.
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
        lr: float = DEFAULT_LR,
        n_epochs_constant_lr: int | None = 30,
        n_epochs_kl_warmup: int | None = 20,
        **kwargs,
    ):
        constant = n_epochs_constant_lr
        if constant is not None and not (isinstance(constant, Real) and constant >= 0):
            raise ValueError(f"`n_epochs_constant_lr` must be 0 or more, not {constant!r}.")
        self.negative_phase = NegativePhase(sampler, n_negatives, sample_every)
        super().__init__(module, lr=lr, n_epochs_kl_warmup=n_epochs_kl_warmup, **kwargs)
        self.n_epochs_constant_lr = n_epochs_constant_lr
        if prior_lr is None and self.optimizer_name != "Custom" and self.lr > MAX_PRIOR_LR:
            prior_lr = MAX_PRIOR_LR
        self.prior_lr = prior_lr

    def configure_callbacks(self) -> list[Callback]:
        """The negative phase, unless the user brought one."""
        mine = [c for c in self.trainer.callbacks if isinstance(c, NegativePhase)]
        return [] if mine else [self.negative_phase]

    def get_optimizer_creator(self):
        """SCVI's optimizer; the prior is a second group of it if its learning rate differs."""
        create = super().get_optimizer_creator()
        if self.prior_lr is None:
            return create

        def with_prior_group(params):
            ours = set(getattr(self.module, "_orig_mod", self.module).prior.parameters())
            params = list(params)
            groups = [
                {"params": [p for p in params if p not in ours], "name": "vae"},
                {"params": [p for p in params if p in ours], "name": "prior", "lr": self.prior_lr},
            ]
            return create([group for group in groups if group["params"]])

        return with_prior_group

    def configure_optimizers(self):
        """SCVI's, with rates that fall towards the end of a training of known length."""
        config = super().configure_optimizers()
        epochs = self.trainer.max_epochs or 0
        if self.n_epochs_constant_lr is None or self.reduce_lr_on_plateau or epochs < 1:
            return config
        constant = min(self.n_epochs_constant_lr, 0.75 * epochs)
        falling = LambdaLR(
            config["optimizer"], lambda e: min(1.0, max(0, epochs - e) / (epochs - constant))
        )
        return config | {"lr_scheduler": {"scheduler": falling, "interval": "epoch"}}

    def on_train_epoch_start(self) -> None:
        """The monitor renames the networks' rate if groups are two: keep scvi-tools' name."""
        super().on_train_epoch_start()
        optimizer = self.trainer.optimizers[0]
        monitored = any(isinstance(c, LearningRateMonitor) for c in self.trainer.callbacks)
        if monitored and len(optimizer.param_groups) > 1:
            self.log(f"lr-{type(optimizer).__name__}", optimizer.param_groups[0]["lr"])
