"""Watches whether a sampler's draws can be trusted."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from scqbm.ising import autocorrelation, effective_beta, effective_number
from scqbm.prior import Prior
from scqbm.samplers import Draws

STUCK = 0.5  # chains that keep more than this correlation with themselves over an epoch
FEW = 0.05  # draws worth less than this share of their number
_MIN_QUERIES = 20  # fewer queries say little about mixing; small data take several epochs for them
_SAME = 50  # as many equal answers in a row are no draws


class Monitor:
    """Health of the negatives: figures for every epoch, and a warning for each kind of trouble.

    The warnings are judged over as many epochs as it takes to see 20 queries. Answers that never
    change are named after 50 queries, in the middle of an epoch if need be.

    Parameters
    ----------
    n_draws
        Negatives that a query asks for.
    """

    def __init__(self, n_draws: int):
        self.n_draws = n_draws
        self._warned: set[str] = set()
        self._last: Tensor | None = None
        self._n_same = 0
        self._epoch, self._window = _Record(), _Record()

    def start_epoch(self) -> None:
        """Begin the record of an epoch."""
        self._epoch = _Record()

    def record(self, prior: Prior, draws: list[Draws]) -> None:
        """Take note of a query of each machine of the prior, after the draws were delivered."""
        negatives = prior.negatives
        assert negatives is not None  # they were delivered just before
        ess = 0.0
        for each in draws:
            worth = effective_number(each.weights, len(each.visible))
            ess += min(worth, each.info.get("roots", math.inf))
        for record in (self._epoch, self._window):
            record.add(negatives, ess)
        same = self._last is not None and torch.equal(self._last, negatives)
        self._n_same = self._n_same + 1 if same else 0
        self._last = negatives.clone()
        if self._n_same >= _SAME:
            self._warn("stuck", f"over {_SAME} queries they did not change at all")

    def compare(self, prior: Prior, negative_energy: Tensor) -> None:
        """Note the gap between the energies of both phases, at the parameters of one step."""
        self._epoch.gaps.append(prior.positive_energy - negative_energy)

    def end_epoch(self, prior: Prior, draws: list[Draws], epoch: int) -> dict[str, float | Tensor]:
        """Figures of this epoch, for the history; warns of trouble."""
        if self._epoch.n_queries == 0:
            return {}
        health = {
            "prior_memory": autocorrelation(self._epoch.first, prior.negatives),
            "prior_ess": self._epoch.ess,
            "prior_beta": _mean_beta(prior, draws),
        }
        if self._epoch.gaps:
            health["prior_gap"] = torch.stack(self._epoch.gaps).mean()
        if self._window.n_queries >= _MIN_QUERIES:
            self._judge(prior, epoch)
            self._window = _Record()
        return health

    def _judge(self, prior: Prior, epoch: int) -> None:
        memory, ess = autocorrelation(self._window.first, prior.negatives), self._window.ess
        if memory > STUCK:
            self._warn(
                "stuck",
                f"up to epoch {epoch} they kept a correlation of {memory:.2f} with where they "
                f"were {self._window.n_queries} queries before",
            )
        if ess < FEW * self.n_draws:
            self._warn(
                "few",
                f"up to epoch {epoch} the {self.n_draws} negatives of a query were worth "
                f"{ess:.0f} independent ones",
            )

    def _warn(self, kind: str, evidence: str) -> None:
        """Each kind of trouble once."""
        if kind in self._warned:
            return
        self._warned.add(kind)
        trouble = {
            "stuck": "The prior's chains have stopped mixing",
            "few": "The prior has separated modes that its sampler cannot cross",
        }
        warnings.warn(
            f"{trouble[kind]}: {evidence}, so the prior's gradient and energies may be biased. "
            "Try sampler=scqbm.samplers.TemperingSampler() or a lower prior_lr in plan_kwargs.",
            UserWarning,
            stacklevel=4,
        )


def _mean_beta(prior: Prior, draws: list[Draws]) -> float:
    """Inverse temperature of the draws under their machines, on average over these."""
    betas = [
        effective_beta(rbm, *(x.to(rbm.W) for x in (each.visible, each.hidden)), each.weights)
        for rbm, each in zip(prior.machines(), draws, strict=True)
    ]
    return sum(betas) / len(betas)


class _Record:
    """What was seen over some queries."""

    def __init__(self):
        self.n_queries = 0
        self.first: Tensor | None = None  # the negatives that it began with
        self.ess = math.inf  # of the worst query
        self.gaps: list[Tensor] = []

    def add(self, negatives: Tensor, ess: float) -> None:
        if self.first is None:
            self.first = negatives.clone()
        self.n_queries += 1
        self.ess = min(self.ess, ess)
