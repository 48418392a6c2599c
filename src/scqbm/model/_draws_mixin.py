"""Draws from the prior: freely, like some cells, or with units fixed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from scqbm._checks import positive
from scqbm.ising import RBM, can_enumerate
from scqbm.model._conditions import Like, cells_like, fixed_units
from scqbm.prior import Prior
from scqbm.samplers import ExactSampler, GibbsSampler, Sampler, ask, matching_fields

if TYPE_CHECKING:  # what the mixin is mixed into
    from scvi.model import SCVI as _Model
else:
    _Model = object


class DrawsMixin(_Model):
    """How a model draws codes from its prior."""

    def _cells_like(self, like: Like) -> np.ndarray:
        self._need_cells_for("like")
        return cells_like(self.adata, like)

    def _draw_codes(
        self,
        n_samples: int,
        sampler: Sampler | None,
        seed: int,
        like: Like | None = None,
        strength: float = 1.0,
        steer: Mapping[int, float] | None = None,
    ) -> np.ndarray:
        """Codes from the prior, given the cells that they resemble and units that are fixed."""
        positive("strength", strength)
        prior = self._prior()
        generator = torch.Generator(device=prior.log_z.device).manual_seed(seed)
        fixed = None if steer is None else fixed_units(steer, prior).to(prior.rbm().W)
        machines, shares = self._machines(like, strength, fixed, generator)
        if len(machines) == 1:
            return self._draws_of(machines[0], n_samples, sampler, fixed, generator)
        shares = shares.to(generator.device)
        of_which = torch.multinomial(shares, n_samples, True, generator=generator)
        counts = torch.bincount(of_which, minlength=len(machines)).tolist()
        codes = [
            self._draws_of(rbm, n, sampler, fixed, generator)
            for rbm, n in zip(machines, counts, strict=True)
            if n > 0
        ]
        # each draw back to its place, so that the first draws are as good a sample as all
        in_order = np.argsort(of_which.argsort(stable=True).cpu().numpy())
        return np.concatenate(codes)[in_order]

    def _machines(
        self,
        like: Like | None,
        strength: float,
        fixed: Tensor | None,
        generator: torch.Generator,
    ) -> tuple[list[RBM], Tensor]:
        """Machines whose draws were asked for, the share of each, with units held if ``fixed``."""
        prior = self._prior()
        rbm = prior.rbm()
        if like is not None:
            rbm = self._resembling(rbm, self._cells_like(like), strength, generator)
        return [self._held(rbm, fixed)], torch.ones(1)

    def _resembling(
        self, rbm: RBM, cells: np.ndarray, strength: float, generator: torch.Generator
    ) -> RBM:
        """The machine with fields that give its draws the mean code of these cells."""
        prior = self._prior()
        mean = self.get_latent_representation(indices=cells).mean(0)
        layers = prior.layers(torch.as_tensor(mean, device=prior.log_z.device))
        fields = matching_fields(rbm, *layers, generator=generator)
        return rbm.shifted(*(strength * field for field in fields))

    def _held(self, rbm: RBM, fixed: Tensor | None) -> RBM:
        """The machine of the units that are not fixed."""
        if fixed is None:
            return rbm
        visible, hidden = self._prior().layers(fixed)
        return rbm.held(visible, torch.full_like(rbm.b, torch.nan) if hidden is None else hidden)

    def _draws_of(
        self,
        rbm: RBM,
        n_samples: int,
        sampler: Sampler | None,
        fixed: Tensor | None,
        generator: torch.Generator,
    ) -> np.ndarray:
        prior = self._prior()
        if sampler is None:
            small = can_enumerate(rbm)
            sampler = ExactSampler() if small else GibbsSampler(n_sweeps=1000, n_anneal=1000)
        draws = ask(sampler, rbm, n_samples, None, generator)
        code = prior.code(draws.visible, draws.hidden)
        if fixed is not None:
            code = torch.where(fixed.isnan(), code, fixed)
        weights = draws.weights
        if weights is None and len(code) < n_samples:  # some machines return fewer
            weights = torch.ones(len(code), device=code.device)
        if weights is not None and not (
            len(code) == n_samples and torch.allclose(weights, weights.mean())
        ):
            code = code[torch.multinomial(weights, n_samples, True, generator=generator)]
        return code[:n_samples].cpu().numpy()

    def _prior(self) -> Prior:
        if self.module is None:
            raise RuntimeError("The model has no prior yet: call train(datamodule=...) first.")
        return self.module.prior

    def _need_cells(self, argument: str) -> None:
        if self._adata is None:
            raise ValueError(
                f"`{argument}` must be given, since this model was trained without an AnnData."
            )

    def _need_cells_for(self, argument: str) -> None:
        if self._adata is None:
            raise ValueError(
                f"`{argument}` needs cells of the training data, but this model was trained "
                "without an AnnData."
            )
