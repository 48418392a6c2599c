"""The benchmark's own arithmetic: which runs count, who leads, which learning rate goes on."""

import argparse
import sys
from pathlib import Path

import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "cells"))
import report
import run

TOTAL, ELBO = report.QUESTIONS[0], report.NEGATIVE_ELBO


def rows(values, metric=("integration", "aggregate", "Total"), dataset="kang"):
    """Tidy rows from ``(method, rate): values by seed``."""
    task, group, name = metric
    return pd.DataFrame(
        {
            "dataset": dataset, "cells": "all", "method": method, "rate": rate, "seed": seed,
            "task": task, "group": group, "metric": name, "value": value,
        }
        for (method, rate), by_seed in values.items()
        for seed, value in enumerate(by_seed)
    )  # fmt: skip


def test_only_runs_over_all_seeds_count_and_the_best_rate_is_taken():
    table = rows(
        {
            ("QBMVI", ""): [0.7, 0.8],
            ("SCVI-10", "0.001"): [0.5, 0.6],
            ("SCVI-10", "0.003"): [0.6, 0.6],
            ("SCVI-30", "0.001"): [0.9],  # a lucky seed and no other
            ("PCA", ""): [0.1, 0.2],
        }
    )
    runs = report.by_seed(table, TOTAL, "all")
    assert set(runs) == {"QBMVI", "SCVI-10", "PCA"}
    assert runs["SCVI-10"].tolist() == [0.6, 0.6]
    shown, line = report.compared(runs, TOTAL)
    assert shown.loc["kang", "lead"] == "+0.150 ± 0.050"
    assert "over SCVI-10, the rival that is best on average, is +0.150" in line


def test_lower_is_better_where_it_is():
    metric = ("likelihood", "likelihood", "negative ELBO")
    worse = rows({("QBMVI", ""): [310.0, 330.0], ("SCVI-10", "0.001"): [300.0, 320.0]}, metric)
    better = rows({("QBMVI", ""): [90.0], ("SCVI-10", "0.001"): [93.0]}, metric, "covid")
    shown, line = report.compared(report.by_seed(pd.concat([worse, better]), ELBO, "all"), ELBO)
    assert shown["lead"].to_dict() == {"covid": "+3.0", "kang": "-10.0 ± 0.0"}
    assert "ahead on 1 of 2 datasets" in line and "smallest lead is on kang, -10.0" in line


def test_parts_compare_the_seeds_that_all_had():
    metric = ("integration", "aggregate", "Total")
    table = rows({("QBMVI", ""): [0.7, 0.1], ("QBMVI-uncoupled", ""): [0.6]}, metric)
    text = report.parts(table, "all")
    assert "Seed 0 only." in text and "0.700" in text and "0.600" in text


def test_rivals_with_fewer_seeds_are_listed_apart():
    table = rows({("QBMVI", ""): [0.7, 0.1], ("PCA", ""): [0.3, 0.3], ("LDVAE", "0.001"): [0.45]})
    assert "LDVAE" not in report.by_seed(table, TOTAL, "all")
    text = report.parts(table, "all")
    assert "LDVAE" in text and "0.450" in text and "PCA" not in text


def test_a_rival_of_all_seeds_here_and_of_one_there_is_listed_there():
    whole = {("QBMVI", ""): [0.7, 0.1], ("LDVAE", "0.001"): [0.45, 0.46]}
    here = rows(whole | {("SCVI-10", "0.001"): [0.3, 0.3]})
    there = rows(whole | {("SCVI-10", "0.001"): [0.25]}, dataset="covid")
    table = pd.concat([here, there])
    assert report.behind(table, TOTAL, "all") == {"SCVI-10"}
    assert "| covid | 0.700 | 0.250 |" in report.parts(table, "all")


def test_tau_over_branches_only_where_their_order_compares(tmp_path):
    metric = ("trajectory", "pseudotime", "Kendall")
    both = [rows({("QBMVI", ""): [0.5]}, metric, name) for name in ("paul15", "simulated-tree")]
    energy = rows({("QBMVI", ""): [-0.1]}, ("trajectory", "energy", "Kendall"), "paul15")
    pd.concat([*both, energy]).to_csv(tmp_path / "rows.csv", index=False)
    table = report.read(tmp_path / "rows.csv")
    kept = set(zip(table["dataset"], table["group"], strict=True))
    assert kept == {("simulated-tree", "pseudotime"), ("paul15", "energy")}


@pytest.mark.parametrize(("elbo_of_fast", "expected"), [(9.0, (3e-3,)), (11.0, (1e-3, 3e-3))])
def test_rates_that_go_on(tmp_path, elbo_of_fast, expected):
    """3e-3 has the better Total; 1e-3 goes on if it has the better ELBO."""
    scores = {"Total": ("integration", [0.5, 0.6]), "negative ELBO": ("likelihood", [10.0])}
    scores["negative ELBO"][1].append(elbo_of_fast)
    parts = [
        rows({("SCVI-10", rate): [value]}, (task, "x", metric))
        for metric, (task, values) in scores.items()
        for rate, value in zip(("0.001", "0.003"), values, strict=True)
    ]
    out = tmp_path / "rows.csv"
    pd.concat(parts).to_csv(out, index=False)
    args = argparse.Namespace(cells=None, seeds=[0, 1, 2])
    assert run.chosen_rates(args, "kang", "SCVI-10", out) == expected
    assert run.chosen_rates(args, "covid", "SCVI-10", out) == (1e-3, 3e-3)  # nothing known yet


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{}"], "--model needs --out"),
        (["n_latent=64", "--out", "x.csv"], "'n_latent=64' is no JSON"),
        (["64", "--out", "x.csv"], "'64' is no object"),
    ],
)
def test_a_model_of_ones_own_is_asked_for_clearly(arguments, sentence, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run.py", "--model", *arguments])
    with pytest.raises(SystemExit):
        run.main()
    assert sentence in capsys.readouterr().err
