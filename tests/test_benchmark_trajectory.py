"""Pseudotime and energy against a known order."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from helpers import value

from scqbm import benchmark
from scqbm.benchmark._trajectory import energy_against_order


@pytest.fixture(scope="module")
def fork():
    """A stem that forks into two arms, in the plane."""
    rng = np.random.default_rng(0)
    n = 450
    time, arm = rng.random(n), np.arange(n) % 2
    late = np.clip(time - 0.5, 0, None)
    line = np.stack([time, np.where(arm == 0, late, -late)], 1) + 0.01 * rng.normal(size=(n, 2))
    branch = np.where(time < 0.5, "stem", np.where(arm == 0, "up", "down"))
    return AnnData(
        obs=pd.DataFrame({"time": time, "branch": branch, "start": time < 0.05}),
        obsm={"line": line, "noise": rng.normal(size=(n, 2))},
    )


def test_trajectory_of_a_known_fork(fork):
    table = benchmark.trajectory(
        fork, {"line": "line", "noise": "noise"}, "time", branch_key="branch", tips=["up", "down"]
    )
    assert value(table, "line", "Kendall") > 0.9
    assert value(table, "line", "Spearman") > 0.99
    assert value(table, "line", "Kendall within branches") > 0.9
    assert value(table, "line", "branch accuracy") > 0.95
    assert value(table, "line", "unreachable") == 0
    assert abs(value(table, "noise", "Kendall")) < 0.2
    assert value(table, "noise", "branch accuracy") < 0.75


def test_pseudotime_of_a_line_is_its_order(fork):
    line = fork[fork.obs["branch"] != "down"].copy()
    table = benchmark.trajectory(line, {"line": "line"}, "time", root_key="start")
    assert value(table, "line", "Kendall") > 0.95
    assert value(table, "line", "Spearman") > 0.99


def test_trajectory_survives_a_broken_graph_and_unknown_orders(fork):
    adata = fork.copy()
    adata.obsm["line"][adata.obs["time"] > 0.8] += 50  # far away: another component
    adata.obs.loc[adata.obs_names[::10], "time"] = np.nan
    table = benchmark.trajectory(adata, {"e": "line"}, "time", root_key="start")
    assert 0.1 < value(table, "e", "unreachable") < 0.3
    assert value(table, "e", "Kendall") > 0.7


def test_energy_against_order():
    order = np.linspace(0, 1, 200)
    rising = energy_against_order(3 * order, order)
    assert rising["Kendall"] == pytest.approx(1) and rising["rising pairs"] == 1
    assert rising["p-value"] == pytest.approx(2 * 0.5**100)  # 100 pairs, all the same way
    flat = energy_against_order(np.random.default_rng(0).random(200), order)
    assert flat["p-value"] > 0.01
