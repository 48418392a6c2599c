"""Cell types from an embedding, in known batches and in a batch that was not seen."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scqbm import _checks
from scqbm.benchmark._inputs import as_arrays, chosen_cells, rows

CLASSIFIERS = ("logistic regression", "kNN", "gradient boosting")


def classification(
    adata: AnnData,
    label_key: str,
    embeddings: Mapping[str, Any],
    *,
    batch_key: str | None = None,
    classifiers: tuple[str, ...] = CLASSIFIERS,
    n_folds: int = 5,
    max_cells: int | None = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """How well three simple classifiers read cell types off embeddings.

    Parameters
    ----------
    adata
        The cells. Only ``obs`` is read, and ``obsm`` or ``X`` if an embedding needs it.
    label_key
        Column of ``adata.obs`` with the cell types.
    embeddings
        From a name to an array, a key of ``adata.obsm`` or a model with
        ``get_latent_representation``.
    batch_key
        Column of ``adata.obs`` with the batches: the classifiers are then also tested on each
        batch after training on the others. ``None`` leaves this test out.
    classifiers
        Some of ``"logistic regression"``, ``"kNN"`` (15 neighbours), ``"gradient boosting"``.
    n_folds
        Folds of the cross-validation, the same for all embeddings.
    max_cells
        Larger data are scored on a random subset of this size, stratified by batch and label.
        ``None`` uses all cells.
    seed
        Seed of the subset, the folds and the classifiers.

    Returns
    -------
    Tidy table with the columns ``method``, ``group``, ``metric`` and ``value``. The group is
    ``"within"`` (cross-validation) or ``"across"`` (mean over the batches left out). The metrics
    are the accuracy and the macro-F1 of each classifier (``"kNN macro-F1"``, ...), and their means
    over the classifiers (``"accuracy"`` and ``"macro-F1"``). ``"partial macro-F1"`` is that mean
    over the labels that at least one batch lacks, if there are any.

    Notes
    -----
    Labels with fewer cells than folds are left out. A batch that is left out is tested only on
    labels that the other batches have. Classifiers and their scaling are fitted to the training
    cells only. An embedding may have been trained on the expression of all cells, as in practice,
    but not on their labels.

    Examples
    --------
    >>> scqbm.benchmark.classification(adata, "cell_type", {"QBMVI": model}, batch_key="batch")
    """
    unknown = set(classifiers) - set(CLASSIFIERS)
    if unknown or not classifiers:
        raise ValueError(f"`classifiers` must be some of {CLASSIFIERS}, not {classifiers!r}.")
    _checks.whole("n_folds", n_folds, 2)
    arrays = as_arrays(adata, embeddings)
    keep, columns = chosen_cells(adata, batch_key, label_key, max_cells, seed)
    sizes = pd.Series(columns["label"]).value_counts()
    rare = sizes.index[sizes < n_folds]
    if len(rare):
        warnings.warn(
            f"Labels with fewer than {n_folds} cells are left out: {list(rare)}.", stacklevel=2
        )
        common = ~np.isin(columns["label"], rare)
        keep, columns = keep[common], {name: x[common] for name, x in columns.items()}
    labels = columns["label"]
    if len(np.unique(labels)) < 2:
        raise ValueError("`label_key` must name at least two labels with enough cells.")
    splits = {"within": [_folds(labels, n_folds, seed)]}
    if batch_key is not None:
        splits["across"] = _left_out(columns["batch"], labels)
    partial = _partial(columns["batch"], labels) if batch_key is not None else labels[:0]
    table = []
    for name, array in arrays.items():
        for group, several in splits.items():
            if not several:
                continue
            scores = {
                classifier: pd.DataFrame(  # its mean leaves out batches without such labels
                    [_score(array[keep], labels, s, classifier, seed, partial) for s in several]
                ).mean()
                for classifier in classifiers
            }
            for i, metric in enumerate(("accuracy", "macro-F1")):
                values = {f"{c} {metric}": score[i] for c, score in scores.items()}
                values[metric] = np.mean(list(values.values()))
                table += rows(name, group, values)
            if len(partial):
                rare = np.mean([score[2] for score in scores.values()])
                table += rows(name, group, {"partial macro-F1": rare})
    return pd.DataFrame(table)


def _folds(labels, n_folds, seed) -> list[tuple[np.ndarray, np.ndarray]]:
    from sklearn.model_selection import StratifiedKFold

    folds = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    return list(folds.split(np.zeros(len(labels)), labels))


def _left_out(batches, labels) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """One split per batch: train on the others, test on its cells whose labels they have."""
    splits = []
    for batch in np.unique(batches):
        train = np.flatnonzero(batches != batch)
        test = np.flatnonzero((batches == batch) & np.isin(labels, labels[train]))
        if len(test) and len(np.unique(labels[train])) > 1:
            splits.append([(train, test)])
    return splits


def _partial(batches, labels) -> np.ndarray:
    """Labels that some batch has no cell of."""
    return np.array([x for x in np.unique(labels) if set(batches[labels == x]) != set(batches)])


def _score(array, labels, folds, classifier, seed, partial) -> tuple[float, float, float]:
    """Accuracy, macro-F1 and that of some labels, over the test cells of all folds."""
    from sklearn.metrics import accuracy_score, f1_score

    truth, guess = [], []
    with one_thread():
        for train, test in folds:
            model = classify_by(classifier, seed)
            if classifier == "kNN":  # a small batch may have fewer cells than neighbours
                model.set_params(n_neighbors=min(model.n_neighbors, max(1, len(train) // 4)))
            model.fit(array[train], labels[train])
            truth.append(labels[test])
            guess.append(model.predict(array[test]))
    truth, guess = np.concatenate(truth), np.concatenate(guess)
    tested = np.unique(truth)
    f1 = f1_score(truth, guess, average=None, labels=tested, zero_division=0)
    some = np.isin(tested, partial)
    return accuracy_score(truth, guess), f1.mean(), f1[some].mean() if some.any() else np.nan


def one_thread():
    """A context with one thread: many small fits are slow where threads wait for each other."""
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    return threadpool_limits(1)


def classify_by(name: str, seed: int = 0):
    """The classifier of scikit-learn that has this name, not trained yet."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if name == "kNN":
        return KNeighborsClassifier(15, algorithm="brute")
    if name == "gradient boosting":  # few and coarse trees, as there are many fits
        return HistGradientBoostingClassifier(
            max_iter=30,
            learning_rate=0.2,
            max_bins=63,
            l2_regularization=1.0,  # else extreme leaves of rare types win most cells
            early_stopping=False,
            random_state=seed,
        )
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, tol=1e-3))
