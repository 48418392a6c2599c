"""Synthetic cells, drawn from a model's prior, beside real cells that it has not seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scqbm import _checks
from scqbm.benchmark._classification import classify_by, one_thread
from scqbm.benchmark._inputs import check_models, column, dense, is_model, known, rows
from scqbm.data import log_normalised
from scqbm.model import decode, random_cells

N_CORRELATED = 200  # most variable genes, whose correlations are compared


def generation(
    adata: AnnData,
    models: Mapping[str, Any],
    held_out: Sequence[int] | Sequence[bool],
    *,
    label_key: str | None = None,
    n_comps: int = 30,
    max_cells: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """How well synthetic cells, drawn from the prior, pass for real cells.

    Parameters
    ----------
    adata
        Raw counts in ``X``.
    models
        From a name to a trained :class:`scqbm.QBMVI` or :class:`scvi.model.SCVI`, or to a matrix
        of counts with one row per synthetic cell.
    held_out
        Cells that no model was trained on: their positions, or a Boolean mask of all cells. All
        other cells are the reference.
    label_key
        Column of ``adata.obs`` with the cell types, for the composition. ``None`` leaves the
        composition out.
    n_comps
        Number of principal components, fitted to the reference, in which cells are compared.
    max_cells
        At most this many held-out cells, and as many synthetic ones.
    seed
        Seed of all random draws.

    Returns
    -------
    Tidy table with the columns ``method``, ``group`` (``"generation"``), ``metric`` and
    ``value``. The method ``"real cells"`` stands for the best possible score: it uses a random
    part of the reference in the place of synthetic cells. The metrics are:

    - ``two-sample accuracy``: balanced, cross-validated accuracy at which gradient boosting tells
      synthetic from real cells. 0.5 is perfect. ``linear two-sample accuracy``: the same by
      logistic regression;
    - ``MMD``: squared maximum mean discrepancy, unbiased (Gaussian kernel, median distance);
    - ``gene mean``, ``gene variance``, ``gene zero fraction``: mean absolute differences over
      genes, the first two of log-normalised values;
    - ``gene correlation``: root mean squared difference between the correlations of the 200 most
      variable genes. ``gene correlation agreement``: Pearson correlation of those correlations;
    - ``composition``: total variation distance between the cell types of synthetic and real cells.
      One classifier names the types of both.

    Examples
    --------
    >>> scqbm.benchmark.generation(adata, {"QBMVI": model}, model.validation_indices)
    """
    check_models(models)
    _checks.whole("max_cells", max_cells)
    held_out = _checks.which_cells(adata.n_obs, held_out, "held_out")
    rng = np.random.default_rng(seed)
    reference = np.setdiff1d(np.arange(adata.n_obs), held_out)
    if not len(held_out) or not len(reference):
        raise ValueError("`held_out` must leave both held-out and other cells.")
    real = np.sort(rng.permutation(held_out)[:max_cells])
    # the components must not be fitted to the stand-ins: they would differ from held-out cells
    stand_in = rng.permutation(reference)[: min(len(real), len(reference) // 2)]
    others = np.setdiff1d(reference, stand_in)
    space = Space(adata.X[others], min(n_comps, len(others) - 1, adata.n_vars - 1))
    namer = None
    if label_key is not None:
        labels = column(adata, "label_key", label_key)[others]
        named = known(labels)
        namer = classify_by("logistic regression", seed).fit(
            space(adata.X[others])[named], labels[named].astype(str)
        )
    drawn = {"real cells": adata.X[stand_in]}
    for name, model in models.items():
        drawn[name] = draw(model, len(real), seed).X if is_model(model) else model
        if np.ndim(drawn[name]) != 2 or drawn[name].shape[1] != adata.n_vars:
            raise ValueError(
                f"`models[{name!r}]` must be a trained model or a matrix of counts with "
                f"{adata.n_vars} columns, one for each gene."
            )
    table = []
    for name, counts in drawn.items():
        # as many of both: accuracies and distances depend on the numbers
        n = min(counts.shape[0], len(real))
        theirs = real if n == len(real) else np.sort(rng.permutation(real)[:n])
        if n < counts.shape[0]:
            counts = counts[np.sort(rng.permutation(counts.shape[0])[:n])]
        values = _scores(counts, adata.X[theirs], space, namer, seed)
        table += rows(name, "generation", values)
    return pd.DataFrame(table)


def draw(model, n: int, seed: int = 0) -> AnnData:
    """Cells from a model's prior: by its ``sample_cells``, or from scVI's prior N(0, I)."""
    if hasattr(model, "sample_cells"):
        return model.sample_cells(n, seed=seed)
    codes = np.random.default_rng(seed).standard_normal((n, model.module.n_latent))
    return decode(model, codes, random_cells(model, n, seed), seed=seed)


def two_sample_accuracy(
    a: np.ndarray, b: np.ndarray, classifier: str = "gradient boosting", seed: int = 0
) -> float:
    """Balanced accuracy, in 5 folds, at which a classifier tells ``a`` from ``b``."""
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    x, y = np.vstack([a, b]), np.repeat([0, 1], [len(a), len(b)])
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    with one_thread():
        guess = cross_val_predict(classify_by(classifier, seed), x, y, cv=folds)
    return balanced_accuracy_score(y, guess)


def mmd(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased squared maximum mean discrepancy; kernel width: the median distance in ``b``."""
    from scipy.spatial.distance import cdist

    between = cdist(b, b, "sqeuclidean")
    width = np.median(between[np.triu_indices(len(b), 1)])

    def kernel(distance):
        return np.exp(-distance / width)

    def mean_off_diagonal(k):
        return (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))

    return (
        mean_off_diagonal(kernel(cdist(a, a, "sqeuclidean")))
        + mean_off_diagonal(kernel(between))
        - 2 * kernel(cdist(a, b, "sqeuclidean")).mean()
    )


class Space:
    """Principal components of log-normalised reference cells, and their most variable genes."""

    def __init__(self, counts, n_comps):
        from sklearn.decomposition import PCA

        values = dense(log_normalised(counts))
        self.variable = np.argsort(-values.var(0), kind="stable")[:N_CORRELATED]
        self.pca = PCA(n_comps, svd_solver="randomized", random_state=0).fit(values)

    def __call__(self, counts):
        return self.pca.transform(dense(log_normalised(counts)))


def _scores(drawn, real, space, namer, seed) -> dict[str, float]:
    a, b = space(drawn), space(real)
    values = {
        "two-sample accuracy": two_sample_accuracy(a, b, seed=seed),
        "linear two-sample accuracy": two_sample_accuracy(a, b, "logistic regression", seed),
        "MMD": mmd(a, b),
    }
    logs = [dense(log_normalised(x)) for x in (drawn, real)]
    zeros = [(dense(x) == 0).mean(0) for x in (drawn, real)]
    values["gene mean"] = np.abs(logs[0].mean(0) - logs[1].mean(0)).mean()
    values["gene variance"] = np.abs(logs[0].var(0) - logs[1].var(0)).mean()
    values["gene zero fraction"] = np.abs(zeros[0] - zeros[1]).mean()
    ours, theirs = (_correlations(x[:, space.variable]) for x in logs)
    values["gene correlation"] = np.sqrt(np.square(ours - theirs).mean())
    values["gene correlation agreement"] = np.corrcoef(ours, theirs)[0, 1]
    if namer is not None:
        shares = [
            pd.Series(namer.predict(x)).value_counts(normalize=True).reindex(namer.classes_)
            for x in (a, b)
        ]
        values["composition"] = (shares[0].fillna(0) - shares[1].fillna(0)).abs().sum() / 2
    return values


def _correlations(values) -> np.ndarray:
    """Correlations of all pairs of columns; 0 for a column that does not vary."""
    values = values - values.mean(0)
    norms = np.linalg.norm(values, axis=0)
    values = values / np.where(norms > 0, norms, 1)
    return (values.T @ values)[np.triu_indices(values.shape[1], 1)]
