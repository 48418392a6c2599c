"""Time per epoch of QBMVI over SCVI's, side by side, and where the time of a step goes.

python benchmarks/speed.py
python benchmarks/speed.py --threads 1 --likelihoods nb --zeros 0.91 --widths default

New models of both kinds train in turn (A B A B ...) on the same simulated cells with 2,000 genes.
What counts is the ratio of the times per epoch: the mean over the epochs of a training, since the
chains begin anew in one epoch of three, and the median over trainings. Rows of the same settings
are replaced in results/speed.csv (ratios) and results/speed_steps.csv (parts of a step, in units
of SCVI's step).
``--code NAME`` marks rows of another version of scqbm that is found on PYTHONPATH.
"""

import argparse
import functools
import logging
import platform
import time
import warnings
from collections import Counter
from importlib import import_module
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import scvi
import torch

from scqbm import QBMVI, data

RESULTS = Path(__file__).parent / "results"
DEPTHS = {0.91: 200, 0.75: 790}  # expected counts of a cell that leave this share of zeros
# parts of a step, each with the functions that do it: module, class (or none), name
PARTS = {
    "minibatch": [("torch.utils.data.dataloader", "_BaseDataLoaderIter", "__next__")],
    "sampler, log Z": [("scqbm.train", "NegativePhase", "on_train_batch_start")],
    "encoder": [("scvi.module", "VAE", "_regular_inference")],
    "decoder": [("scvi.module", "VAE", "generative")],
    "likelihood": [
        ("scqbm.likelihood", "SparseNegativeBinomial", "log_prob"),
        ("scqbm.likelihood", "SparseZeroInflatedNegativeBinomial", "log_prob"),
        ("scvi.distributions", "NegativeBinomial", "log_prob"),
        ("scvi.distributions", "ZeroInflatedNegativeBinomial", "log_prob"),
    ],
    "prior, mixing": [("scqbm.module", "BoltzmannMixin", "boltzmann_terms")],
    "gradients": [("torch", "Tensor", "backward")],
    "optimiser": [("torch.optim.adam", None, "adam")],
    "logging": [("lightning.pytorch", "LightningModule", "log")],
}


class Stopwatch(pl.Callback):
    """Seconds of each epoch."""

    def __init__(self):
        self.seconds = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer, pl_module):
        self.seconds.append(time.perf_counter() - self.start)


def seconds_per_epoch(cls, adata, epochs, **arguments):
    """Times of a short training of a new model, the first epoch (warm-up) left out."""
    cls.setup_anndata(adata, batch_key="batch")
    model, watch = cls(adata, **arguments), Stopwatch()
    model.train(epochs + 1, callbacks=[watch], enable_progress_bar=False, accelerator="cpu")
    return watch.seconds[1:]


def timed(function, part, spent, running):
    """The function, whose own time (without that of other parts) is added to ``spent``."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        start = time.perf_counter()
        running.append(0.0)
        try:
            return function(*args, **kwargs)
        finally:
            took = time.perf_counter() - start
            spent[part] += took - running.pop()
            if running:
                running[-1] += took

    return wrapper


def parts_of_a_step(cls, adata, epochs, **arguments):
    """Seconds that each part takes in an epoch; what is left is Python, Lightning and the loss."""
    spent, running, undo = Counter(), [], []
    for part, places in PARTS.items():
        for module, owner, name in places:
            try:
                holder = import_module(module)
            except ImportError:  # another version of scqbm
                continue
            holder = holder if owner is None else getattr(holder, owner)
            if owner is not None and name not in vars(holder):
                continue
            function = getattr(holder, name)
            undo.append((holder, name, function))
            setattr(holder, name, timed(function, part, spent, running))
    try:
        seconds = seconds_per_epoch(cls, adata, epochs, **arguments)
    finally:
        for holder, name, function in undo:
            setattr(holder, name, function)
    whole = np.mean(seconds)
    share = {part: spent[part] / (epochs + 1) for part in PARTS}
    return share | {"the rest": whole - sum(share.values())}


def arguments_of(cls, likelihood, width):
    given = {} if width == "default" else {"n_latent": int(width)}
    return {"gene_likelihood": likelihood, **given}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--likelihoods", nargs="+", default=["nb", "zinb"])
    parser.add_argument(
        "--widths", nargs="+", default=["default", "10", "64"], help="n_latent of both models"
    )
    parser.add_argument("--zeros", nargs="+", type=float, default=list(DEPTHS), choices=DEPTHS)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, torch.get_num_threads()])
    parser.add_argument("--cells", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=6, help="trainings of each model")
    parser.add_argument("--epochs", type=int, default=6, help="timed epochs of each training")
    parser.add_argument("--code", default="now", help="name of this version in the results")
    parser.add_argument("--plot", action="store_true", help="only draw docs/_static/step.png")
    args = parser.parse_args()
    if args.plot:
        plot()
        return
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    about = {
        "code": args.code,
        "machine": f"{platform.machine()}, CPU {torch.backends.cpu.get_cpu_capability()}",
        "torch": torch.__version__,
        "scvi-tools": scvi.__version__,
        "python": platform.python_version(),
    }
    for zeros in args.zeros:
        adata = data.simulate(args.cells, 2000, library_size=DEPTHS[zeros], seed=0)
        is_zero = 1 - adata.X.nnz / np.prod(adata.shape)
        for threads in dict.fromkeys(args.threads):
            torch.set_num_threads(threads)
            for likelihood in args.likelihoods:
                for width in args.widths:
                    setting = {
                        "gene_likelihood": likelihood,
                        "n_latent": width,
                        "zeros": round(is_zero, 2),
                        "threads": threads,
                    }
                    ratio = ratio_of(adata, args, likelihood, width)
                    save("speed.csv", [{**setting, **ratio, **about}])
                    if width == "default":
                        save("speed_steps.csv", steps(adata, args, likelihood, setting | about))


def ratio_of(adata, args, likelihood, width):
    """Ratio of median times, and the range of the ratios of all pairs of trainings."""
    rounds = {"SCVI": [], "QBMVI": []}
    for _ in range(args.rounds):
        for cls in (scvi.model.SCVI, QBMVI):
            arguments = arguments_of(cls, likelihood, width)
            seconds = seconds_per_epoch(cls, adata, args.epochs, **arguments)
            rounds[cls.__name__].append(np.mean(seconds))
    pairs = np.divide(rounds["QBMVI"], rounds["SCVI"])
    return {
        "ratio": np.median(rounds["QBMVI"]) / np.median(rounds["SCVI"]),
        "lowest": pairs.min(),
        "highest": pairs.max(),
    }


def steps(adata, args, likelihood, about):
    """Parts of both models' steps, in units of SCVI's step, from the training of median length."""
    found = {}
    for cls in (scvi.model.SCVI, QBMVI):
        arguments = arguments_of(cls, likelihood, "default")
        runs = [parts_of_a_step(cls, adata, args.epochs, **arguments) for _ in range(3)]
        found[cls.__name__] = sorted(runs, key=lambda parts: sum(parts.values()))[1]
    unit = sum(found["SCVI"].values())
    return [
        {**about, "model": model, **{part: time / unit for part, time in parts.items()}}
        for model, parts in found.items()
    ]


def plot():
    """Parts of a step as stacked bars, in units of SCVI's step."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    table = pd.read_csv(RESULTS / "speed_steps.csv")
    table = table[table["threads"] == table["threads"].min()]
    table = table[table["zeros"] == table["zeros"].max()]  # as in real data
    bars = [("SCVI", "now"), ("QBMVI", "before"), ("QBMVI", "now")]
    likelihoods = table["gene_likelihood"].unique()
    figure, axes = plt.subplots(1, len(likelihoods), figsize=(9, 3.8), sharey=True, squeeze=False)
    colors = plt.get_cmap("tab10").colors
    for ax, likelihood in zip(axes[0], likelihoods, strict=True):
        names, rows = [], []
        for model, code in bars:
            some = table.query("gene_likelihood == @likelihood and model == @model")
            some = some[some["code"] == code]
            if len(some):
                rows.append(some.iloc[0])
                names.append("SCVI" if model == "SCVI" else f"QBMVI {code}")
        bottom = np.zeros(len(rows))
        for color, part in zip(colors, [*PARTS, "the rest"], strict=True):
            height = np.array([row[part] for row in rows], dtype=float)
            ax.bar(names, height, bottom=bottom, color=color, label=part, width=0.6)
            bottom += height
        ax.axhline(1, color="black", linewidth=0.8, linestyle=":")
        ax.set_title(likelihood)
    axes[0, 0].set_ylabel("time, in units of SCVI's step")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    axes[0, -1].legend(handles[::-1], labels[::-1], bbox_to_anchor=(1.02, 1), loc="upper left")
    figure.tight_layout()
    figure.savefig(RESULTS.parents[1] / "docs" / "_static" / "step.png", dpi=130)


def save(name, rows):
    """Add rows to a results file in the place of those of the same settings."""
    path = RESULTS / name
    new = pd.DataFrame(rows).round(3)
    print(new.to_string(index=False), flush=True)
    keys = ["gene_likelihood", "n_latent", "zeros", "threads", "code", "model"]
    old = pd.read_csv(path, dtype={"n_latent": str}) if path.exists() else new.iloc[:0]
    keys = [key for key in keys if key in new and key in old]
    if len(old) and len(keys) >= 5:
        same = (
            old[keys]
            .astype(str)
            .agg("|".join, axis=1)
            .isin(new[keys].astype(str).agg("|".join, axis=1))
        )
        new = pd.concat([old[~same], new])
    path.parent.mkdir(exist_ok=True)
    new.to_csv(path, index=False)


if __name__ == "__main__":
    main()
