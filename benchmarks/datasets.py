"""What the benchmark runs on: name -> how to get the cells and what their columns mean.

A dataset whose loader needs the network or a file that is not there raises FileNotFoundError or
OSError, and the benchmark says so and goes on.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from anndata import AnnData

from scqbm import data
from scqbm.benchmark._inputs import log_normalised, pca

N_GENES = 2000
HELD_OUT = 0.1


@dataclass(frozen=True)
class Dataset:
    """Raw counts and the columns of ``obs`` that matter."""

    load: Callable[[], AnnData]
    label: str
    batch: str | None = None
    order: str | None = None  # a column of numbers that grow along the trajectory
    root: str | None = None  # the label where it starts
    public: bool = False  # comes over the network, so not by default


@dataclass
class Cells:
    """One dataset, or a random subset of it, with its split: the same for every method."""

    adata: AnnData
    dataset: Dataset
    seed: int
    train: np.ndarray = field(init=False)
    held_out: np.ndarray = field(init=False)

    def __post_init__(self):
        order = np.random.default_rng(self.seed).permutation(self.adata.n_obs)
        held_out, train = np.split(order, [round(HELD_OUT * self.adata.n_obs)])
        self.train, self.held_out = np.sort(train), np.sort(held_out)
        self.adata.layers["log"] = log_normalised(self.adata.X)

    @cached_property
    def pca(self) -> np.ndarray:
        """50 principal components of all cells, "before integration"."""
        return pca(self.adata.X)


def cells(name: str, n_cells: int | None, seed: int) -> Cells:
    """Cells of a dataset: all, or a random ``n_cells`` of them (another subset for each seed)."""
    dataset = DATASETS[name]
    adata = dataset.load()
    if n_cells is not None and n_cells < adata.n_obs:
        keep = np.random.default_rng(seed).choice(adata.n_obs, n_cells, replace=False)
        adata = adata[np.sort(keep)].copy()
    adata = data.prepare(adata, dataset.batch, N_GENES)
    return Cells(adata, dataset, seed)


def epochs(n_cells: int) -> int:
    """Enough for a plateau: about 6,000 steps, within bounds."""
    return int(np.clip(800_000 / n_cells, 30, 400))


DATASETS = {
    "kang": Dataset(lambda: data.load("pbmc_kang_ifnb"), "cell_type", "batch"),
    "kang-donor": Dataset(lambda: data.load("pbmc_kang_ifnb"), "cell_type", "batch_donor"),
    "pancreas": Dataset(lambda: data.load("pancreas_4studies"), "cell_type", "batch"),
    "covid": Dataset(lambda: data.load("covid_liu_30k"), "cell_type", "batch"),
    "simulated": Dataset(
        lambda: data.simulate(3000, 1000, n_types=8, n_batches=3, seed=0), "cell_type", "batch"
    ),
}
