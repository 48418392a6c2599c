"""Plots: what is drawn, and where."""

import numpy as np
import pandas as pd
import pytest

from scqbm import benchmark


def test_plot_of_a_table_with_an_undefined_metric(tmp_path):
    rows = [
        (method, group, metric, score)
        for method, score in (("a", 0.2), ("b", 0.7))
        for group, metric in (("bio", "cLISI"), ("batch", "KBET"), ("batch", "iLISI"))
    ]
    table = pd.DataFrame(rows, columns=["method", "group", "metric", "value"])
    table.loc[1, "value"] = np.nan
    with pytest.warns(UserWarning, match="KBET"):
        table = pd.concat([table, benchmark.aggregates(table)])
    benchmark.plot_integration(table, tmp_path / "scib.png")
    assert (tmp_path / "scib.png").stat().st_size > 10_000
