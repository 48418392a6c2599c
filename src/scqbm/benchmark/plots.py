"""scib-metrics' own table plot, from the tidy table of :func:`~scqbm.benchmark.integration`."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from anndata import AnnData

GROUPS = {"bio": "Bio conservation", "batch": "Batch correction", "aggregate": "Aggregate score"}


def plot_integration(table: pd.DataFrame, path: str | Path) -> None:
    """Draw scores as circles and averages as bars, best method first.

    Parameters
    ----------
    table
        What :func:`~scqbm.benchmark.integration` returned. Metrics that are undefined for some
        method are not drawn, as they are not in the averages.
    path
        File to write; its ending says the format.
    """
    import matplotlib.pyplot as plt
    from scib_metrics.benchmark import BatchCorrection, Benchmarker, BioConservation

    table = table[table["group"].isin(GROUPS)]
    group = table.drop_duplicates("metric").set_index("metric")["group"].map(GROUPS)
    wide = table.pivot(index="method", columns="metric", values="value")[group.index]
    wide = wide.dropna(axis=1).astype(object)
    wide.loc["Metric Type"] = group[wide.columns]

    class FromTable(Benchmarker):
        def get_results(self, min_max_scale: bool = False, clean_names: bool = True):
            return wide

    kinds = {
        "bio_conservation_metrics": BioConservation(),
        "batch_correction_metrics": BatchCorrection() if "Total" in wide else None,
    }
    methods = [method for method in wide.index if method != "Metric Type"]
    drawn = FromTable(AnnData(), "batch", "label", methods, **kinds).plot_results_table(show=False)
    drawn.ax.figure.savefig(path, bbox_inches="tight")
    plt.close(drawn.ax.figure)
