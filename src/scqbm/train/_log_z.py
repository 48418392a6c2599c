"""Keeps a prior's log Z current while its parameters move."""

from __future__ import annotations

import torch
from torch import Tensor

from scqbm.prior import Prior
from scqbm.train._ranks import from_first_rank


class LogZ:
    """Follows ``log Z`` from step to step by importance weights of the negatives.

    Between two estimates, ``log Z' - log Z = log <exp(F - F')>`` over draws from the parameters of
    ``F``. A fresh estimate replaces what was followed before each validation and at the end.
    """

    def __init__(self):
        self.energy: Tensor | None = None  # of the negatives, at the parameters that drew them
        self.shift = torch.zeros(())  # log Z since then, as far as followed
        self._fresh: list[Tensor] = []  # the parameters at which log Z was last estimated

    def begin(self) -> None:
        """A new fit: no estimate is fresh."""
        self._fresh = []

    def restart(self, prior: Prior) -> None:
        """New negatives: follow from here."""
        self.energy, self.shift = prior.negative_energy(), torch.zeros_like(prior.log_z)

    @torch.no_grad()
    def follow(self, prior: Prior) -> None:
        """Move the prior's ``log Z`` to its present parameters."""
        if self.energy is None:
            return
        change = self.energy - prior.negative_energy()
        shift = prior.log_mean_exp(change)
        prior.move_log_z(shift - self.shift)
        self.shift = shift

    def refresh(self, prior: Prior, generator: torch.Generator | None) -> None:
        """Estimate ``log Z`` anew, unless the last estimate was made at these parameters."""
        parameters = [p.detach() for p in prior.parameters()]
        if self._fresh and all(map(torch.equal, self._fresh, parameters)):
            return  # the end of training, right after a validation whose state may be on disk
        self._fresh = [p.clone() for p in parameters]
        self.follow(prior)  # so that following goes on from here
        estimate = from_first_rank(lambda: prior.log_partition(generator=generator))
        prior.set_log_partition(estimate)

    def state_dict(self) -> dict[str, Tensor | None]:
        """What an exact resume needs."""
        return {"energy": self.energy, "shift": self.shift}

    def load(self, energy: Tensor, shift: Tensor, device: torch.device) -> None:
        """Go on from a checkpoint, which was read onto the CPU."""
        self.energy, self.shift = energy.to(device), shift.to(device)
