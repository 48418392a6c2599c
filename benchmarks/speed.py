"""Time per epoch of QBMVI over SCVI at equal widths, side by side.

python benchmarks/speed.py

Both models train in turn (A B A B ...) on the same simulated cells; what counts is the ratio of
the median epoch times. Appends nothing: writes results/speed.csv anew.
"""

import logging
import platform
import time
import warnings
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import scvi
import torch

from scqbm import QBMVI, data

RESULTS = Path(__file__).parent / "results" / "speed.csv"
WIDTHS = [10, 64]
ROUNDS, EPOCHS = 3, 2


class EpochClock(pl.Callback):
    """Seconds of each epoch."""

    def on_train_epoch_start(self, trainer, pl_module):
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer, pl_module):
        self.seconds = [*getattr(self, "seconds", []), time.perf_counter() - self.start]


def epochs_of(model):
    """Epoch times of a short training, the first (warm-up) left out."""
    clock = EpochClock()
    model.train(EPOCHS + 1, callbacks=[clock], enable_progress_bar=False)
    return clock.seconds[1:]


def main():
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    adata = data.simulate(n_cells=5000, n_genes=2000, seed=0)
    rows = []
    for width in WIDTHS:
        for family in ("bernoulli", "normal"):
            models = {}
            for cls, extra in ((scvi.model.SCVI, {}), (QBMVI, {"latent_distribution": family})):
                cls.setup_anndata(adata, batch_key="batch")
                models[cls.__name__] = cls(adata, gene_likelihood="nb", n_latent=width, **extra)
            times = {name: [] for name in models}
            for _ in range(ROUNDS):
                for name, model in models.items():
                    times[name] += epochs_of(model)
            median = {name: np.median(seconds) for name, seconds in times.items()}
            rows.append(
                {
                    "n_latent": width,
                    "latent_distribution": family,
                    "ratio": median["QBMVI"] / median["SCVI"],
                    "threads": torch.get_num_threads(),
                    "torch": torch.__version__,
                    "scvi-tools": scvi.__version__,
                    "python": platform.python_version(),
                }
            )
            print(rows[-1], flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    pd.DataFrame(rows).to_csv(RESULTS, index=False, float_format="%.3f")


if __name__ == "__main__":
    main()
