"""New cells: codes from the prior, freely or under conditions, and counts from the decoder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from anndata import AnnData
from torch import Tensor

from scqbm._checks import whole
from scqbm.model._conditions import (
    Like,
    check_codes,
    describe,
)
from scqbm.model._decoding import decode, random_cells
from scqbm.model._draws_mixin import DrawsMixin
from scqbm.samplers import (
    Sampler,
    check_sampler,
)


class NewCellsMixin(DrawsMixin):
    """Methods of a model that draws from its prior."""

    @torch.no_grad()
    def sample_prior(
        self,
        n_samples: int = 1000,
        sampler: Sampler | None = None,
        seed: int = 0,
        *,
        like: Like | None = None,
        strength: float = 1.0,
        steer: Mapping[int, float] | None = None,
    ) -> np.ndarray:
        """Codes drawn from the prior, shape ``(n_samples, n_latent)``.

        Parameters
        ----------
        n_samples
            How many.
        sampler
            By default exact where the prior is small enough, else annealed block Gibbs chains.
        seed
            Seed of the draws.
        like, strength, steer
            Which codes, see :meth:`sample_cells`; all that the prior has by default.
        """
        whole("n_samples", n_samples)
        if sampler is not None:
            check_sampler(sampler)
        return self._draw_codes(n_samples, sampler, seed, like, strength, steer)

    def sample_cells(
        self,
        n_samples: int = 1000,
        *,
        batch: str | None = None,
        library_size: float | None = None,
        like: Like | None = None,
        strength: float = 1.0,
        steer: Mapping[int, float] | None = None,
        sampler: Sampler | None = None,
        seed: int = 0,
        dataloader: Iterable[dict[str, Tensor]] | None = None,
    ) -> AnnData:
        """Simulate new cells: codes drawn from the prior, counts from the decoder.

        Parameters
        ----------
        n_samples
            How many.
        batch
            Batch of all cells. By default the batch, with the depth and any registered covariates,
            of random training cells.
        library_size
            Total count that all cells are drawn at, by default those of the same cells. Not for a
            model with a ``size_factor_key``.
        like
            Cells of the training data that the new cells resemble: a dict of columns of ``obs``
            and the values they must have, such as ``{"cell_type": "CD14 Mono"}``, a Boolean mask,
            or positions. Fields on the units are added to the prior, so that the mean code is that
            of these cells. The couplings stay, so that every sampler can be used. Batch, depth and
            covariates are those of these cells.
        strength
            Factor on these fields. 1 gives the new cells the mean code of these cells. More moves
            them further in the same direction; a continuous code then leaves the range of the
            data.
        steer
            Units of the code that are fixed, and their values: ``{3: 1, 17: 0}``.
        sampler
            Where the codes come from, see :meth:`sample_prior`.
        seed
            Seed of the draws.
        dataloader
            Minibatches of cells whose batch, depth and covariates are used in the place of those
            of random training cells; needed if the model was trained from a datamodule.

        Returns
        -------
        Counts in ``X``; codes in ``obsm["code"]``; in ``obs`` the batch and covariates that each
        cell was decoded with, and ``"prior_energy"``, the energy of its code; in ``uns`` how the
        cells were made.

        Examples
        --------
        >>> monocytes = model.sample_cells(500, like={"cell_type": "CD14 Mono"}, batch="donor_1")
        """
        self._check_if_trained(warn=False)
        whole("n_samples", n_samples)
        if dataloader is None:
            self._need_cells("dataloader")
        if sampler is not None:
            check_sampler(sampler)
        cells = None if like is None else self._cells_like(like)
        codes = self._draw_codes(n_samples, sampler, seed, like, strength, steer)
        drawn = self.decode(
            codes,
            batch=batch,
            library_size=library_size,
            seed=seed,
            dataloader=dataloader,
            like=None if dataloader is not None else cells,
        )
        made = {
            "model": type(self).__name__,
            "sampler": "default" if sampler is None else repr(sampler),
            "seed": seed,
            "batch": batch,
            "library_size": library_size,
            "like": None if like is None or cells is None else describe(like, len(cells)),
            "strength": None if cells is None else float(strength),
            "steer": None if steer is None else {str(unit): x for unit, x in steer.items()},
        }
        drawn.uns["sample_cells"] = {k: v for k, v in made.items() if v is not None}
        return drawn

    def decode(
        self,
        codes: np.ndarray,
        *,
        batch: str | None = None,
        library_size: float | None = None,
        like: Like | None = None,
        seed: int = 0,
        dataloader: Iterable[dict[str, Tensor]] | None = None,
    ) -> AnnData:
        """Draw the counts of one new cell for each code.

        Parameters
        ----------
        codes
            One row a cell: bits or probabilities of bits, or real numbers, as the model's code is.
        batch, library_size, dataloader
            As in :meth:`sample_cells`.
        like
            Cells of the training data of which random ones give the batch, the depth and the
            covariates, named as in :meth:`sample_cells`; all training cells by default.
        seed
            Seed of the counts.

        Returns
        -------
        As from :meth:`sample_cells`. Depth and covariates are those of random cells, not those of
        the cells that the codes come from.

        Examples
        --------
        >>> codes = model.get_latent_representation(indices=[0, 1, 2])
        >>> model.decode(codes, batch="donor_1").X
        """
        self._check_if_trained(warn=False)
        prior = self._prior()
        codes = check_codes(codes, prior)
        some = None
        if dataloader is None:
            self._need_cells("dataloader")
            pool = None if like is None else self._cells_like(like)
            some = random_cells(self, len(codes), seed, pool)
        elif like is not None:
            raise ValueError("`dataloader` stands for the cells that `like` would name.")
        cells = decode(
            self,
            codes,
            some,
            dataloader=dataloader,
            batch=batch,
            library_size=library_size,
            seed=seed,
        )
        with torch.inference_mode():
            energy = prior.energy(torch.as_tensor(codes, device=self.device))
        cells.obs["prior_energy"] = energy.cpu().numpy()
        return cells
