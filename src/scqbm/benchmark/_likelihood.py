"""Likelihood of cells that training has not seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData


def likelihood(
    models: Mapping[str, Any],
    indices: Sequence[int] | None = None,
    *,
    adata: AnnData | None = None,
    n_repeats: int = 5,
    n_draws: int = 100,
    max_cells: int = 500,
    seed: int = 0,
) -> pd.DataFrame:
    """Held-out negative ELBO and importance-weighted marginal likelihood, in nats a cell.

    Comparable only between models of the same genes, cells and likelihood of the counts.

    Parameters
    ----------
    models
        From a name to a trained :class:`scqbm.QBMVI` or :class:`scvi.model.SCVI`.
    indices
        Held-out cells. By default each model's own validation cells.
    adata
        Where the cells are, by default the model's own data.
    n_repeats
        Draws a cell of the ELBO.
    n_draws
        Draws a cell of the marginal likelihood; with more, the bound comes nearer to it.
    max_cells
        Cells of the marginal likelihood, drawn from ``indices``.
    seed
        Seed of the draws; torch's own random numbers go on afterwards as if nothing had been.

    Returns
    -------
    Tidy table with the columns ``method``, ``group`` (``"likelihood"``), ``metric`` and ``value``:
    ``negative ELBO`` and its part ``reconstruction``; ``marginal log-likelihood`` (a lower bound)
    and its ``standard error`` over cells; ``log Z`` of a Boltzmann prior and the ``log Z error``
    of its estimate, which both likelihoods share.
    """
    rows = []
    for name, model in models.items():
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            values = _one(model, indices, adata, n_repeats, n_draws, max_cells, seed)
        rows += [
            {"method": name, "group": "likelihood", "metric": metric, "value": value}
            for metric, value in values.items()
        ]
    return pd.DataFrame(rows)


def _one(model, indices, adata, n_repeats, n_draws, max_cells, seed) -> dict[str, float]:
    indices = np.asarray(model.validation_indices if indices is None else indices)
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
        # both figures above took the estimate stored after training; this one is better
        correction = log_z.value - float(model.module.prior.log_z)
        boltzmann = {"log Z": log_z.value, "log Z error": log_z.error}
    return {
        "negative ELBO": correction - np.mean(elbos),
        "reconstruction": abs(float(error)),
        "marginal log-likelihood": float(marginal.mean()) - correction,
        "standard error": float(marginal.std()) / np.sqrt(len(few)),
    } | boltzmann
