"""scVI's training plan, bringing the negative phase along."""

from __future__ import annotations

from lightning.pytorch.callbacks import Callback
from scvi.module.base import BaseModuleClass
from scvi.train import TrainingPlan

from scqbm.negative_phase import NegativePhase
from scqbm.samplers import Sampler


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
        Learning rate of the prior; that of the networks if ``None`` (one optimizer group).
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
        **kwargs,
    ):
        self.negative_phase = NegativePhase(sampler, n_negatives, sample_every)
        self.prior_lr = prior_lr
        super().__init__(module, **kwargs)

    def configure_callbacks(self) -> list[Callback]:
        """The negative phase, unless the user brought one."""
        mine = [c for c in self.trainer.callbacks if isinstance(c, NegativePhase)]
        return [] if mine else [self.negative_phase]

    def get_optimizer_creator(self):
        """SCVI's optimizer; with ``prior_lr``, the prior is a second group of it."""
        create = super().get_optimizer_creator()
        if self.prior_lr is None:
            return create

        def with_prior_group(params):
            own = set(map(id, getattr(self.module, "_orig_mod", self.module).prior.parameters()))
            params = list(params)
            return create(
                [
                    {"params": [p for p in params if id(p) not in own], "name": "vae"},
                    {
                        "params": [p for p in params if id(p) in own],
                        "lr": self.prior_lr,
                        "name": "prior",
                    },
                ]
            )

        return with_prior_group
