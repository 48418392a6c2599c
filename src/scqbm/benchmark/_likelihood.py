"""Likelihood of cells that training has not seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from scqbm import _checks
from scqbm.benchmark._inputs import check_models, rows


def likelihood(
    models: Mapping[str, Any],
    indices: Sequence[int] | Sequence[bool] | None = None,
    *,
    adata: AnnData | None = None,
    n_repeats: int = 5,
    n_draws: int = 100,
    max_cells: int = 500,
    seed: int = 0,
) -> pd.DataFrame:
    """Held-out negative ELBO and marginal log-likelihood, in nats per cell.

    Compare only models of the same genes, the same cells and the same likelihood of the counts.

    Parameters
    ----------
    models
        From a name to a trained :class:`scqbm.QBMVI` or :class:`scvi.model.SCVI`.
    indices
        Held-out cells: their positions, or a Boolean mask of all cells. By default all cells of
        ``adata``, or each model's own validation cells without one.
    adata
        The data that ``indices`` refer to. By default each model's own data.
    n_repeats
        Draws of each cell's code for the ELBO.
    n_draws
        Draws of each cell's code for the marginal likelihood. More draws give a tighter bound.
    max_cells
        At most this many cells, drawn from ``indices``, for the marginal likelihood.
    seed
        Seed of the draws. The state of torch's own random numbers is not changed.

    Returns
    -------
    Tidy table with the columns ``method``, ``group`` (``"likelihood"``), ``metric`` and ``value``.
    The metrics are:

    - ``negative ELBO``, and its part ``reconstruction``;
    - ``marginal log-likelihood``, a lower bound by importance weighting, and its
      ``standard error`` over cells;
    - for a model with a Boltzmann prior also ``log Z`` and ``log Z error``, the standard error of
      its estimate. Both likelihoods use this estimate.

    Examples
    --------
    >>> scqbm.benchmark.likelihood({"QBMVI": model, "SCVI": other})
    """
    for name, number in (("n_repeats", n_repeats), ("n_draws", n_draws), ("max_cells", max_cells)):
        _checks.whole(name, number)
    check_models(models)
    table = []
    for name, model in models.items():
        data = model.adata if adata is None else adata
        if data is None:
            raise ValueError(
                f"`adata` must be given, since the model {name!r} was trained without an AnnData."
            )
        own = model.validation_indices if adata is None else np.arange(data.n_obs)
        cells = own if indices is None else indices
        cells = _checks.which_cells(data.n_obs, () if cells is None else cells, "indices")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            values = _scores(model, cells, adata, n_repeats, n_draws, max_cells, seed)
        table += rows(name, "likelihood", values)
    return pd.DataFrame(table)


def _scores(model, indices, adata, n_repeats, n_draws, max_cells, seed) -> dict[str, float]:
    if not len(indices):
        raise ValueError("`indices` is empty: train with cells left out (train_size=0.9).")
    elbos = [float(model.get_elbo(adata, indices=indices)) for _ in range(n_repeats)]
    error = model.get_reconstruction_error(adata, indices=indices)["reconstruction_loss"]
    few = np.random.default_rng(seed).permutation(indices)[:max_cells]
    marginal = model.get_marginal_ll(
        adata,
        indices=few,
        batch_size=64,
        n_mc_samples=n_draws,
        n_mc_samples_per_pass=min(n_draws, 25),
        return_mean=False,
    )
    correction, boltzmann = 0.0, {}
    if hasattr(model, "get_log_partition"):
        log_z = model.get_log_partition(seed=seed)
        # the model's methods use the estimate stored after training; this one is more precise
        correction = log_z.value - float(model.module.prior.log_z)
        boltzmann = {"log Z": log_z.value, "log Z error": log_z.error}
    return {
        "negative ELBO": correction - np.mean(elbos),
        "reconstruction": abs(float(error)),
        "marginal log-likelihood": float(marginal.mean()) - correction,
        "standard error": float(marginal.std()) / np.sqrt(len(few)),
    } | boltzmann
