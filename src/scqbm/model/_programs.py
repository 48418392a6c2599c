"""Gene programs as numbers: of many units together, and of two models side by side."""

from __future__ import annotations

import numpy as np
import pandas as pd

_MOST_CELLS = 5000  # random ones for the decomposition, whose time grows with them
_LEAST_SIZE = 1e-5  # of a component, as a share of the largest: what is less is round-off


def independent_programs(
    values: np.ndarray, effects: np.ndarray, n: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Programs that are used independently of each other, of units that are not.

    The units of a code are many ways to write down the same few changes of expression, and each
    training finds another one. ``values @ effects`` is what the units do in each cell, to first
    order; its independent components (FastICA of scikit-learn) do not depend on how the units
    share the work.

    Parameters
    ----------
    values
        Units in each cell.
    effects
        Change of each gene (columns) where a unit (rows) rises by one.
    n
        Number of programs; there are fewer if the units do fewer different things.
    seed
        Seed of the choice of cells, if there are many, and of the decomposition.

    Returns
    -------
    The score of each cell in each program, with mean 0 and standard deviation 1 over the cells,
    and the change of each gene where the score rises by one. Programs with the largest changes
    stand first. A program is high in fewer cells than it is low.
    """
    from sklearn.decomposition import FastICA

    values = values - values.mean(0)
    some = values[np.sort(np.random.default_rng(seed).permutation(len(values))[:_MOST_CELLS])]
    # principal components of `some @ effects`, without that matrix of cells x genes
    _, sizes, genes = np.linalg.svd(np.linalg.qr(some, mode="r") @ effects, full_matrices=False)
    n = min(n, int((sizes > _LEAST_SIZE * sizes[0]).sum()))
    if n == 0:
        raise ValueError("There are no programs: all cells have the same code.")
    sizes, genes = sizes[:n] / np.sqrt(len(some)), genes[:n]
    whiten = effects @ genes.T / sizes
    scores, changes = values @ whiten, sizes[:, None] * genes
    if n > 1:
        ica = FastICA(whiten=False, max_iter=1000, tol=1e-3, random_state=seed)
        rotation = ica.fit(some @ whiten).components_
        scores, changes = scores @ rotation.T, rotation @ changes
    scale = np.where((scores**3).mean(0) < 0, -1, 1) * scores.std(0)
    scores, changes = scores / scale, changes * scale[:, None]
    order = np.argsort(-np.square(changes).sum(1), kind="stable")
    return scores[:, order], changes[order]


def match_programs(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """For each program, the most similar one of another model.

    Parameters
    ----------
    a, b
        Tables of :meth:`scqbm.QBMVI.get_programs`, best with ``n_genes=None``.

    Returns
    -------
    One row for each program of ``a``: ``source``, ``match`` (of ``b``) and ``similarity``, the
    absolute correlation of their effects over all genes; a gene that one table lacks counts as 0
    there. The sign of a unit means nothing: 0 and 1 can change places.
    """
    for name, table in (("a", a), ("b", b)):
        missing = sorted({"source", "target", "weight"} - set(table))
        if missing:
            raise ValueError(
                f"`{name}` must be a table of get_programs, but has no {' and no '.join(missing)}."
            )
    weights = [
        table.pivot_table(index="source", columns="target", values="weight", sort=False)
        for table in (a, b)
    ]
    genes = weights[0].columns.union(weights[1].columns)
    one, other = (_standardised(w.reindex(columns=genes).fillna(0.0)) for w in weights)
    similarity = np.abs(one @ other.T)
    best = similarity.argmax(1)
    return pd.DataFrame(
        {
            "source": weights[0].index,
            "match": weights[1].index[best],
            "similarity": similarity.max(1),
        }
    )


def _standardised(weights: pd.DataFrame) -> np.ndarray:
    values = weights.to_numpy()
    values = values - values.mean(1, keepdims=True)
    norm = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.where(norm > 0, norm, 1)
