"""What the benchmark runs on: name -> how to get the cells and what their columns mean.

A dataset whose loader needs the network or a file that is not there raises FileNotFoundError or
OSError, and the benchmark says so and goes on.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from shifts import skewed_types, windows_of_order, with_batches, without_types

from scqbm import data
from scqbm.benchmark._inputs import pca
from scqbm.data import log_normalised

N_GENES = 2000
HELD_OUT = 0.1


@dataclass(frozen=True)
class Dataset:
    """Raw counts and the columns of ``obs`` that matter."""

    load: Callable[[], AnnData]
    label: str
    batch: str | None = None
    order: str | None = None  # a column of numbers that grow along the trajectory
    root: str | None = None  # a column of booleans: where it starts
    branch: str | None = None
    tips: tuple | None = None
    one_order: bool = True  # whether the order compares cells of different branches
    truth: str | None = None  # what the counts were drawn from, a key of obsm
    public: bool = False  # comes over the network, so not by default
    shift: Callable[[AnnData, int], AnnData] | None = None  # how batches differ, drawn by seed


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
    if dataset.shift is not None:
        adata = dataset.shift(adata, seed)
    if n_cells is not None and n_cells < adata.n_obs:
        keep = np.random.default_rng(seed).choice(adata.n_obs, n_cells, replace=False)
        adata = adata[np.sort(keep)].copy()
    adata = data.prepare(adata, dataset.batch, N_GENES)
    return Cells(adata, dataset, seed)


def epochs(n_cells: int) -> int:
    """Enough for a plateau: about 4,500 steps; fewer of small sets, which overfit before."""
    return int(np.clip(600_000 / n_cells, 25, 200))


def paul15() -> AnnData:
    """Paul 2015 with the order that its clusters are known to have (see their names)."""
    adata = data.load("paul15")
    stages = {f"{i}Ery": 7 - i for i in range(1, 7)}  # 7MEP, then 6Ery to 1Ery
    branches = dict.fromkeys(["7MEP", *stages], "erythroid")
    stages["7MEP"] = 0
    fates = {"14Mo": "monocyte", "15Mo": "monocyte", "12Baso": "basophil", "13Baso": "basophil"}
    fates |= {"16Neu": "neutrophil", "17Neu": "neutrophil"}
    clusters = adata.obs["cell_type"].astype(str)
    order = clusters.map(stages | dict.fromkeys(fates, 1))
    branch = clusters.map(branches | fates)
    # granulocyte-monocyte progenitors begin three branches: each takes a third of them
    progenitors = np.flatnonzero(clusters.isin(["9GMP", "10GMP"]))
    for i, fate in enumerate(("monocyte", "basophil", "neutrophil")):
        branch.iloc[progenitors[i::3]] = fate
        order.iloc[progenitors[i::3]] = 0
    adata.obs["order"], adata.obs["branch"] = order.astype(float), branch
    adata.obs["root"] = clusters == "7MEP"
    return adata


def from_figshare(file: int, name: str, label: str, batch: str) -> AnnData:
    """One of scIB's files (Luecken 2022), fetched once; cells of batches that are counts only.

    Its MD5 is printed: figshare shows on the file's page what it must be.
    """
    import scanpy as sc

    path = Path.home() / ".cache" / "scqbm" / f"{name}.h5ad"
    adata = sc.read(path, backup_url=f"https://figshare.com/ndownloader/files/{file}")
    print(f"{path}: MD5 {hashlib.md5(path.read_bytes()).hexdigest()}", flush=True)
    counts = sparse.csr_matrix(adata.layers["counts"])
    whole = np.asarray(abs(counts - counts.rint()).sum(1)).ravel() == 0
    keep = pd.Series(whole).groupby(adata.obs[batch].to_numpy()).transform("all").to_numpy()
    obs = adata.obs.loc[keep, [batch, label]].copy()
    for column in obs:  # categories of the batches left out would stay behind
        obs[column] = obs[column].astype(str).astype("category")
    return AnnData(counts[keep], obs=obs, var=adata.var[[]])


def scvi_data(name: str) -> AnnData:
    """A dataset that scvi-tools downloads."""
    import scvi

    return getattr(scvi.data, name)(save_path=str(Path.home() / ".cache" / "scqbm"))


DATASETS = {
    "kang": Dataset(lambda: data.load("pbmc_kang_ifnb"), "cell_type", "batch"),
    "kang-donor": Dataset(lambda: data.load("pbmc_kang_ifnb"), "cell_type", "batch_donor"),
    "pancreas": Dataset(lambda: data.load("pancreas_4studies"), "cell_type", "batch"),
    "covid": Dataset(lambda: data.load("covid_liu_30k"), "cell_type", "batch"),
    "simulated": Dataset(
        lambda: data.simulate(3000, 1000, n_types=8, n_batches=3, seed=0),
        "cell_type",
        "batch",
        truth="programs",
    ),
    "simulated-tree": Dataset(
        lambda: data.simulate(3000, 1000, n_types=7, n_batches=3, trajectory=True, seed=0),
        "cell_type",
        "batch",
        order="pseudotime",
        branch="branch",
        tips=("branch_3", "branch_4", "branch_5", "branch_6"),
        truth="programs",
    ),
    "paul15": Dataset(
        paul15,
        "cell_type",
        order="order",
        root="root",
        branch="branch",
        tips=("erythroid", "monocyte", "basophil", "neutrophil"),
        one_order=False,
    ),
    "scib-lung": Dataset(
        lambda: from_figshare(24539942, "lung_atlas", "cell_type", "batch"),
        "cell_type",
        "batch",
        public=True,
    ),
    "scib-immune": Dataset(
        lambda: from_figshare(25717328, "immune_human", "final_annotation", "batch"),
        "final_annotation",
        "batch",
        public=True,
    ),
    "scib-pancreas": Dataset(
        lambda: from_figshare(24539828, "pancreas", "celltype", "tech"),
        "celltype",
        "tech",
        public=True,
    ),
    "pbmc-10x": Dataset(lambda: scvi_data("pbmc_dataset"), "str_labels", "batch", public=True),
    "heart": Dataset(
        lambda: scvi_data("heart_cell_atlas_subsampled"), "cell_type", "donor", public=True
    ),
}


def _shifted(name: str, shift: Callable, *columns: str) -> Dataset:
    """A dataset whose batches are made to differ."""
    return replace(DATASETS[name], shift=lambda adata, seed: shift(adata, *columns, seed))


DATASETS |= {
    f"{name}-{how}": _shifted(name, shift, DATASETS[name].batch, "cell_type")
    for name in ("pancreas", "covid", "kang-donor")
    for how, shift in (("deleted", without_types), ("skewed", skewed_types))
}
DATASETS["simulated-tree-windows"] = _shifted(
    "simulated-tree", windows_of_order, "batch", "pseudotime"
)
DATASETS["paul15-windows"] = replace(
    DATASETS["paul15"],
    batch="batch",
    shift=lambda adata, seed: windows_of_order(with_batches(adata, seed), "batch", "order", seed),
)
SHIFTED = [name for name, dataset in DATASETS.items() if dataset.shift is not None]
