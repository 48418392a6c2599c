"""Simulated counts of cells whose types, batches and trajectory are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from scqbm._checks import is_number, whole

_BLOCK = 1_000_000  # values of the dense cells-by-genes block in memory at once
_GENE_SD = 1.2  # of the log base expression: few genes are high, many are low


def simulate(
    n_cells: int = 2000,
    n_genes: int = 500,
    n_types: int = 8,
    n_batches: int = 2,
    *,
    type_strength: float = 1.0,
    type_genes: float = 0.1,
    type_concentration: float = 5.0,
    batch_strength: float = 0.3,
    batch_depth: float = 0.3,
    composition_shift: float = 0.3,
    library_size: float = 1000.0,
    library_sd: float = 0.4,
    dispersion: float = 0.3,
    dispersion_sd: float = 0.3,
    trajectory: bool = False,
    seed: int = 0,
) -> AnnData:
    """Simulate negative-binomial counts of cells in types, batches and, if asked, a trajectory.

    Cell types are the leaves of a binary tree. Each edge of the tree is a gene programme, which
    changes the log expression of a random subset of genes, so that types that share most of their
    path are similar. With ``trajectory=True`` the types are instead the branches of a tree along
    which cells move: branch 0 is the root, and branch ``k`` grows from the end of branch
    ``(k - 1) // 2``.

    Parameters
    ----------
    n_cells
        Number of cells, at least ``n_types`` and ``n_batches``.
    n_genes
        Number of genes.
    n_types
        Number of cell types, or of branches of the trajectory.
    n_batches
        Number of batches. Their sizes differ by at most one cell.
    type_strength
        Standard deviation of the log fold changes of a programme.
    type_genes
        Expected share of the genes that a programme changes.
    type_concentration
        Dirichlet concentration of the type proportions. Large values give equal proportions.
    batch_strength
        Standard deviation of the log fold change of each gene in each batch.
    batch_depth
        Standard deviation, over batches, of the log sequencing depth.
    composition_shift
        0 gives all batches the same type proportions, 1 gives them unrelated ones.
    library_size
        Median expected count of a cell, before the depth of its batch.
    library_sd
        Standard deviation, over the cells of a batch, of the log library size.
    dispersion
        Median, over genes, of the dispersion ``a`` in ``variance = mean + a * mean**2``
        (``theta`` of scvi-tools is ``1 / a``).
    dispersion_sd
        Standard deviation, over genes, of the log dispersion.
    trajectory
        Place the cells along branches instead of at separate types.
    seed
        Seed of all random draws.

    Returns
    -------
    Counts in ``X`` (CSR, float32), and the truth behind them:

    - ``obs``: ``batch``, ``cell_type``, ``library_size``; with a trajectory also ``branch`` and
      ``pseudotime``, the distance from the root scaled to [0, 1].
    - ``var``: ``log_base``, ``dispersion``; ``varm["batch_effect"]``, one column per batch.
    - ``obsm["programs"]``: activity of the programmes in each cell; ``varm["programs"]``: what
      they change in each gene.
    - ``uns["simulation"]``: the arguments; ``uns["type_distance"]``: number of edges between
      types.

    Expected counts are ``library_size * softmax(log_base + programs + batch_effect)``.

    Examples
    --------
    >>> adata = scqbm.data.simulate(n_cells=2000, n_batches=2)
    """
    params = dict(locals())
    _check(params)
    rng = np.random.default_rng(seed)

    # Cells: batch, type, depth.
    batch = rng.permutation(np.arange(n_cells) % n_batches)
    common, own = np.split(rng.dirichlet([type_concentration] * n_types, 1 + n_batches), [1])
    upper = np.cumsum(common + composition_shift * (own - common), axis=1)[:, :-1]
    cell_type = (rng.random((n_cells, 1)) > upper[batch]).sum(1)
    cell_type[rng.choice(n_cells, n_types, replace=False)] = np.arange(n_types)  # no type is empty
    depth = batch_depth * rng.standard_normal(n_batches)
    library = library_size * np.exp(depth[batch] + library_sd * rng.standard_normal(n_cells))
    obs = {
        "batch": _categorical("batch", batch, n_batches),
        "cell_type": _categorical("type", cell_type, n_types),
        "library_size": library,
    }

    # Programmes: how active each is in each cell.
    paths = _branch_paths(n_types) if trajectory else _leaf_paths(n_types)
    activity = paths.T[cell_type]
    if trajectory:
        progress = rng.random(n_cells)
        branch = np.eye(n_types)[cell_type]
        # A branch adds a lasting change, which is 0 at its start and 1 at its end, where its
        # children start, and a passing change, which is 0 at both ends: a curve without jumps.
        lasting = activity - branch * (1 - progress[:, None])
        activity = np.hstack([lasting, branch * np.sin(np.pi * progress[:, None])])
        length = paths.sum(0)  # of the path from the root to the end of each branch
        obs["branch"] = _categorical("branch", cell_type, n_types)
        obs["pseudotime"] = (length[cell_type] - 1 + progress) / length.max()

    # Genes.
    log_base = _GENE_SD * rng.standard_normal(n_genes)
    alpha = dispersion * np.exp(dispersion_sd * rng.standard_normal(n_genes))
    shape = (activity.shape[1], n_genes)
    programs = type_strength * rng.standard_normal(shape) * (rng.random(shape) < type_genes)
    batch_effect = batch_strength * rng.standard_normal((n_batches, n_genes))

    blocks = []
    step = max(1, _BLOCK // n_genes)
    for start in range(0, n_cells, step):
        rows = slice(start, start + step)
        log_rate = log_base + activity[rows] @ programs + batch_effect[batch[rows]]
        rate = np.exp(log_rate - log_rate.max(axis=1, keepdims=True))
        rate *= library[rows, None] / rate.sum(axis=1, keepdims=True)
        # Poisson counts whose rate is gamma with mean 1 and variance alpha.
        rate *= alpha * rng.standard_gamma(1 / alpha, size=rate.shape)
        blocks.append(sparse.csr_matrix(rng.poisson(rate).astype(np.float32)))

    return AnnData(
        sparse.vstack(blocks, format="csr"),
        obs=pd.DataFrame(obs, index=[f"cell_{i}" for i in range(n_cells)]),
        var=pd.DataFrame(
            {"log_base": log_base, "dispersion": alpha},
            index=[f"gene_{i}" for i in range(n_genes)],
        ),
        obsm={"programs": activity},
        varm={"programs": programs.T, "batch_effect": batch_effect.T},
        uns={
            "simulation": params,
            "type_distance": np.abs(paths[:, :, None] - paths[:, None, :]).sum(0),
        },
    )


def _leaf_paths(n_types: int) -> np.ndarray:
    """Balanced binary tree over the types: entry (e, t) is 1 if edge e leads to leaf t."""
    edges, todo = [], [range(n_types)]
    while todo:
        node = todo.pop()
        if len(node) > 1:
            middle = (len(node) + 1) // 2
            todo += [node[:middle], node[middle:]]
            edges += [np.isin(range(n_types), child) for child in todo[-2:]]
    return np.array(edges, dtype=float).reshape(-1, n_types)


def _branch_paths(n_types: int) -> np.ndarray:
    """Binary tree of branches: entry (b, t) is 1 if b is t or is between the root and t."""
    paths = np.eye(n_types)
    for branch in range(1, n_types):
        paths[:, branch] += paths[:, (branch - 1) // 2]
    return paths


def _categorical(prefix: str, codes: np.ndarray, n: int) -> pd.Categorical:
    return pd.Categorical.from_codes(codes, [f"{prefix}_{i}" for i in range(n)])


def _check(params: dict[str, Any]) -> None:
    """Raise a ValueError that names the first bad argument."""
    for name, value in params.items():
        number = is_number(value) and not isinstance(value, bool) and np.isfinite(value)
        if name == "seed" or name.startswith("n_"):
            whole(name, value, 0 if name == "seed" else 1)
            continue
        if name == "trajectory":
            good, need = isinstance(value, bool | np.bool_), "True or False"
        elif name in ("type_genes", "composition_shift"):
            good, need = number and 0 <= value <= 1, "a number between 0 and 1"
        elif name in ("type_concentration", "library_size", "dispersion"):
            good, need = number and value > 0, "a finite number above 0"
        else:
            good, need = number and value >= 0, "a finite number of at least 0"
        if not good:
            raise ValueError(f"`{name}` must be {need}, not {value!r}.")
    if params["n_cells"] < max(params["n_types"], params["n_batches"]):
        raise ValueError("`n_cells` must be at least `n_types` and at least `n_batches`.")
