"""New cells of a cell type that was asked for, beside real cells of that type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from scqbm import _checks
from scqbm.benchmark._classification import classify_by
from scqbm.benchmark._generation import Space, two_sample_accuracy
from scqbm.benchmark._inputs import check_models, column, rows


def conditional_generation(
    adata: AnnData,
    models: Mapping[str, Any],
    held_out: Sequence[int] | Sequence[bool],
    label_key: str,
    *,
    n_samples: int = 300,
    min_cells: int = 100,
    n_comps: int = 30,
    seed: int = 0,
) -> pd.DataFrame:
    """Whether new cells that a model was asked for are of the type that was asked for.

    Parameters
    ----------
    adata
        The data of the models, with raw counts in ``X``.
    models
        From a name to a trained :class:`scqbm.QBMVI`.
    held_out
        Cells that no model was trained on: their positions, or a Boolean mask of all cells. All
        other cells are the reference, which names the type that is asked for.
    label_key
        Column of ``adata.obs`` with the cell types.
    n_samples
        New cells of each type.
    min_cells
        Types with fewer cells than this are left out.
    n_comps
        Principal components, fitted to the reference, in which cells are compared.
    seed
        Seed of all random draws.

    Returns
    -------
    Tidy table with the columns ``method``, ``group`` (the cell type, or ``"mean"``), ``metric``
    and ``value``. The metrics are:

    - ``on type``: share of the new cells that a classifier, trained on the reference, gives the
      type that was asked for;
    - ``two-sample accuracy``: balanced, cross-validated accuracy at which gradient boosting tells
      the new cells from as many real cells of the type, held-out ones first.

    Beside both stand the same with ``, own codes``: the codes are draws from the posteriors of the
    type's own cells, not from the prior; and beside the first ``on type, real cells``.

    Examples
    --------
    >>> held_out = model.validation_indices
    >>> scqbm.benchmark.conditional_generation(adata, {"QBMVI": model}, held_out, "cell_type")
    """
    check_models(models)
    _checks.whole("n_samples", n_samples)
    _checks.whole("min_cells", min_cells)
    held_out = _checks.which_cells(adata.n_obs, held_out, "held_out")
    labels = np.array(
        ["" if x is None else str(x) for x in column(adata, "label_key", label_key)], object
    )
    reference = np.setdiff1d(np.arange(adata.n_obs), held_out)
    if not len(held_out) or not len(reference):
        raise ValueError("`held_out` must leave both held-out and other cells.")
    space = Space(adata.X[reference], min(n_comps, len(reference) - 1, adata.n_vars - 1))
    named = reference[labels[reference] != ""]
    namer = classify_by("logistic regression", seed).fit(space(adata.X[named]), labels[named])
    counts = pd.Series(labels[labels != ""]).value_counts()
    types = sorted(counts.index[counts >= min_cells])
    if not types:
        raise ValueError(f"`min_cells` is {min_cells}, but no type has so many cells.")
    rng = np.random.default_rng(seed)
    cells_of = {}
    for one in types:
        of_type = np.flatnonzero(labels == one)
        mine, unseen = np.intersect1d(of_type, reference), np.intersect1d(of_type, held_out)
        if len(mine) and len(unseen):
            real = np.concatenate([rng.permutation(unseen), rng.permutation(mine)])[:n_samples]
            source = rng.choice(mine, n_samples, replace=n_samples > len(mine))
            cells_of[one] = (mine, unseen, np.sort(real), source)
    if not cells_of:
        raise ValueError("`held_out` must leave cells of a type on both sides.")
    table = []
    for name, model in models.items():
        scores = []
        for one, (mine, unseen, real, source) in cells_of.items():
            new = model.sample_cells(n_samples, like=mine, seed=seed)
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                codes = model.get_latent_representation(indices=source, representation="sample")
            own = model.decode(codes, like=mine, seed=seed)
            new, own, theirs = space(new.X), space(own.X), space(adata.X[real])
            n = len(real)
            values = {
                "on type": (namer.predict(new) == one).mean(),
                "on type, real cells": (namer.predict(space(adata.X[unseen])) == one).mean(),
                "on type, own codes": (namer.predict(own) == one).mean(),
                "two-sample accuracy": two_sample_accuracy(new[:n], theirs, seed=seed),
                "two-sample accuracy, own codes": two_sample_accuracy(own[:n], theirs, seed=seed),
            }
            scores.append(values)
            table += rows(name, one, values)
        table += rows(name, "mean", pd.DataFrame(scores).mean().to_dict())
    return pd.DataFrame(table)
