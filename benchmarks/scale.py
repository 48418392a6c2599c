"""SCVI and QBMVI on up to a million cells on disk: cells a second, step time, memory, loss.

python benchmarks/scale.py --cells 10000 100000 1000000 --steps 400

Cells are written once, in chunks, to an h5ad file in FOLDER: real cells (SCQBM_DATA) or, without
them, simulated ones, each drawn anew with a random share of its counts and in a batch with its own
share of each gene. Each model trains in a process of its own; both read the same file through the
same loader, which maps the file into memory and reads only the cells of a minibatch. Rows go to
results/scale.csv.
"""

import argparse
import json
import logging
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import anndata
import h5py
import lightning.pytorch as pl
import numpy as np
import pandas as pd
import scvi
import torch
from scipy import sparse
from tqdm import tqdm

from scqbm import QBMVI, data

RESULTS = Path(__file__).parent / "results" / "scale.csv"
TEMPLATE = "pbmc_kang_ifnb"  # real cells
N_GENES, N_BATCHES, CHUNK = 2000, 10, 10_000
HELD_OUT = 10_000  # cells of which the held-out loss is reported


# -- cells ----------------------------------------------------------------------------------------


def templates():
    """Real cells with 2,000 variable genes, or simulated ones."""
    if TEMPLATE in data.available():
        return data.prepare(data.load(TEMPLATE), "batch", N_GENES).X.tocsr(), TEMPLATE
    adata = data.simulate(20_000, N_GENES, n_types=20, n_batches=1, library_size=200, seed=0)
    return adata.X.tocsr(), "simulated"


def write(path, n_cells, seed=0):
    """An h5ad file of so many cells; never more than a chunk of them in memory."""
    source, name = templates()
    rng = np.random.default_rng(seed)
    kept = rng.uniform(0.7, 1.0, (N_BATCHES, source.shape[1]))  # of each gene's counts, by batch
    batch = rng.integers(N_BATCHES, size=n_cells)
    ends, raw = [np.zeros(1, np.int64)], path.with_suffix(".part")
    progress = tqdm(range(0, n_cells, CHUNK), desc=f"Writing {n_cells:,} cells", unit="chunk")
    with open(f"{raw}.data", "wb") as values, open(f"{raw}.indices", "wb") as genes:
        for start in progress:
            of_cell = batch[start : start + CHUNK]
            cells = source[rng.integers(source.shape[0], size=len(of_cell))]
            row = np.repeat(np.arange(len(of_cell)), np.diff(cells.indptr))
            share = rng.uniform(0.8, 1.0, len(of_cell))[row] * kept[of_cell[row], cells.indices]
            cells.data = rng.binomial(cells.data.astype(np.int64), share).astype(np.float32)
            cells.eliminate_zeros()
            empty = np.diff(cells.indptr) == 0
            if empty.any():  # a cell without any count has no size factor
                filled = sparse.csr_matrix(
                    (np.ones(empty.sum(), np.float32), (np.flatnonzero(empty), [0] * empty.sum())),
                    cells.shape,
                )
                cells = (cells + filled).tocsr()
            cells.data.tofile(values)
            cells.indices.astype(np.int32).tofile(genes)
            ends.append(ends[-1][-1] + cells.indptr[1:].astype(np.int64))
    indptr = np.concatenate(ends)
    obs = pd.DataFrame({"batch": pd.Categorical(batch.astype(str))})
    obs.index = obs.index.astype(str)
    empty = sparse.csr_matrix((n_cells, source.shape[1]), dtype=np.float32)
    unfinished = path.with_suffix(".unfinished")
    anndata.AnnData(empty, obs=obs, uns={"source": name}).write_h5ad(unfinished)
    with h5py.File(unfinished, "r+") as file:
        for key, kind in (("data", np.float32), ("indices", np.int32)):
            del file[f"X/{key}"]
            # contiguous and not compressed, so that it can be mapped into memory
            whole = file.create_dataset(f"X/{key}", shape=(indptr[-1],), dtype=kind)
            part = np.memmap(f"{raw}.{key}", kind, "r")
            for start in range(0, len(part), 10_000_000):
                whole[start : start + 10_000_000] = part[start : start + 10_000_000]
            del part
            Path(f"{raw}.{key}").unlink()
        file["X/indptr"][:] = indptr
    unfinished.replace(path)


def mapped(path):
    """The file as AnnData whose counts stay on disk until a minibatch needs them."""
    with h5py.File(path, "r") as file:
        parts = []
        for key in ("data", "indices"):
            values = file[f"X/{key}"]
            offset = values.id.get_offset()
            parts.append(np.memmap(path, values.dtype, "r", offset, values.shape))
        indptr = file["X/indptr"][:]
        shape = tuple(file["X"].attrs["shape"])
        obs = anndata.io.read_elem(file["obs"])
    counts = sparse.csr_matrix(shape, dtype=parts[0].dtype)
    counts.data, counts.indices, counts.indptr = *parts, indptr
    return anndata.AnnData(counts, obs=obs)


# -- one training ---------------------------------------------------------------------------------


class Clock(pl.Callback):
    """When each step ended."""

    def __init__(self):
        self.ends = []

    def on_train_batch_end(self, *args):
        self.ends.append(time.perf_counter())


def train(args):
    """Train one model, and print one line of figures for the parent process."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    scvi.settings.seed = 0
    cls = {"SCVI": scvi.model.SCVI, "QBMVI": QBMVI}[args.model]
    adata = mapped(args.file)
    cls.setup_anndata(adata, batch_key="batch")
    width = {} if args.n_latent is None else {"n_latent": args.n_latent}
    model, clock = cls(adata, gene_likelihood=args.likelihood, **width), Clock()
    plan = {"compile": True} if args.compile else {}
    model.train(
        max_epochs=args.epochs,
        limit_train_batches=args.steps or 1.0,
        accelerator=args.accelerator,
        precision=args.precision,
        plan_kwargs=plan,
        callbacks=[clock],
        enable_progress_bar=False,
    )
    taken = np.diff(clock.ends[len(clock.ends) // 10 :])  # the first tenth warms up
    held_out = np.random.default_rng(0).permutation(model.validation_indices)[:HELD_OUT]
    row = {
        "cells a second": 128 / taken.mean(),
        "step, ms": 1e3 * np.median(taken),
        "peak GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "held-out -ELBO": -float(model.get_elbo(indices=np.sort(held_out))),
        "steps": len(clock.ends),
    }
    if args.accelerator != "cpu":
        row["peak GPU GB"] = torch.cuda.max_memory_allocated() / 2**30
    print("ROW", json.dumps({name: float(value) for name, value in row.items()}))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cells", nargs="+", type=int, default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--steps", type=int, help="bound on the steps of an epoch")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--likelihood", default="zinb", choices=["nb", "zinb", "poisson"])
    parser.add_argument("--n-latent", type=int, help="of both models; the default of each")
    parser.add_argument("--accelerator", default="cpu", help='"gpu" on a machine with one')
    parser.add_argument("--precision", default="32-true", help='for example "bf16-mixed"')
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "scqbm-scale")
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.model:
        train(args)
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    for n_cells in args.cells:
        path = args.folder / f"cells_{n_cells}.h5ad"
        if not path.exists():
            write(path, n_cells)
        for model in ("SCVI", "QBMVI"):
            command = [sys.executable, __file__, *sys.argv[1:], "--model", model, "--file", path]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            figures = json.loads(done.stdout.split("ROW ")[-1])
            save({"cells": n_cells, "model": model, **figures} | about(args, path))


def about(args, path):
    """Settings, machine and versions."""
    with h5py.File(path, "r") as file:
        source = file["uns/source"].asstr()[()]
        zeros = 1 - file["X/data"].shape[0] / np.prod(file["X"].attrs["shape"], dtype=float)
    gpu = torch.cuda.get_device_name() if args.accelerator != "cpu" else ""
    return {
        "source": source,
        "zeros": zeros,
        "gene_likelihood": args.likelihood,
        "n_latent": args.n_latent or "default",
        "precision": args.precision,
        "compile": args.compile,
        "threads": torch.get_num_threads(),
        "machine": gpu or f"{os.cpu_count()} cores, {platform.machine()}",
        "torch": torch.__version__,
        "scvi-tools": scvi.__version__,
        "python": platform.python_version(),
    }


def save(row):
    """Add a row in the place of that of the same settings."""
    new = pd.DataFrame([row]).round(3)
    print(new.iloc[0, :7].to_string(), "\n", flush=True)
    keys = ["cells", "model", "gene_likelihood", "n_latent", "precision", "compile", "machine"]
    if RESULTS.exists():
        old = pd.read_csv(RESULTS)
        same = (old[keys].astype(str) == new[keys].astype(str).iloc[0]).all(axis=1)
        new = pd.concat([old[~same], new])
    new.to_csv(RESULTS, index=False)


if __name__ == "__main__":
    main()
