"""Training: the plan, and the negative phase that brings a sampler's draws to the prior."""

from scqbm.train._checkpoints import Checkpoints, check_checkpoint
from scqbm.train._negative_phase import NegativePhase
from scqbm.train._plan import (
    DEFAULT_LR,
    KL_WARMUP,
    BoltzmannPlanMixin,
    Falling,
    QBMANVITrainingPlan,
    QBMTrainingPlan,
    default_epochs,
    plan_arguments,
    trainer_arguments,
)

__all__ = [
    "DEFAULT_LR",
    "KL_WARMUP",
    "BoltzmannPlanMixin",
    "Checkpoints",
    "Falling",
    "NegativePhase",
    "QBMANVITrainingPlan",
    "QBMTrainingPlan",
    "check_checkpoint",
    "default_epochs",
    "plan_arguments",
    "trainer_arguments",
]
