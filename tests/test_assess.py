"""Moments and the table that compares samplers, with the documentation's own sampler."""

import re
from pathlib import Path

import pytest
import torch
from helpers import (
    Constant,
    Hot,
    all_machines,
    assert_one_sentence,
    exact_moments,
    glass,
    seeded,
    tiny_rbm,
)

from scqbm.ising import RBM
from scqbm.samplers import ExactSampler, assess, moments


@all_machines
def test_enumerated_moments(machine):
    rbm = tiny_rbm(machine, torch.float64)
    v, h, vh = exact_moments(rbm)
    found = moments(rbm)
    product = 2 * vh - v[:, None] if rbm.gaussian else 4 * vh - 2 * v[:, None] - 2 * h + 1
    torch.testing.assert_close(found.visible, v if rbm.gaussian else 2 * v - 1)
    torch.testing.assert_close(found.hidden, 2 * h - 1)
    torch.testing.assert_close(found.product, product)


@pytest.mark.parametrize("gaussian", [False, True])
def test_assess_finds_exact_draws_at_the_floor(gaussian):
    g = seeded(0)
    rbm = RBM(
        torch.randn(9, generator=g),
        torch.randn(8, generator=g),
        torch.randn(9, 8, generator=g),
        gaussian,
    )
    row = assess(ExactSampler(), rbm, 500, 40, generator=g).iloc[0]
    for moment in (1, 2):
        assert row[f"error_{moment}"] == pytest.approx(row[f"floor_{moment}"], rel=0.15)
    assert row["gradient_bias"] == pytest.approx(row["gradient_floor"], rel=0.5)
    assert row["ess"] == pytest.approx(500, rel=0.25)
    assert row["beta"] == pytest.approx(1, abs=0.05)


def test_assess_finds_what_is_wrong():
    rbm = glass(10, 0.4)
    constant = assess(Constant(), rbm, 100, 10).iloc[0]
    assert constant["ess"] <= 10 and constant["error_2"] > 5 * constant["floor_2"]
    hot = assess(Hot(), rbm, 500, 10, generator=seeded(0)).iloc[0]
    assert hot["beta"] == pytest.approx(0.5, abs=0.05)
    assert hot["gradient_bias"] > 5 * hot["gradient_floor"]


@pytest.mark.parametrize("kwargs", [{"n_draws": 0}, {"n_queries": 0}, {"n_draws": 1.5}])
def test_bad_numbers_are_named(kwargs):
    (name,) = kwargs
    for measure in (assess, moments):
        with pytest.raises(ValueError, match=f"^`{name}` must be an integer of at") as caught:
            measure(*([ExactSampler()] if measure is assess else []), tiny_rbm("bits"), **kwargs)
        assert_one_sentence(caught.value)


def test_what_is_no_sampler_is_named():
    with pytest.raises(TypeError, match=r"^`sampler` must be an instance, ExactSampler\(\)"):
        assess(ExactSampler, tiny_rbm("bits"))
    with pytest.raises(TypeError, match="^`reference` must have a method sample"):
        assess(ExactSampler(), tiny_rbm("bits"), reference=3)
    with pytest.raises(TypeError, match="^`sampler` must have a method sample"):
        moments(tiny_rbm("bits"), "gibbs")


def test_a_plot_of_the_table():
    import matplotlib

    matplotlib.use("agg")
    from scqbm.samplers import plot_assessment

    ax = plot_assessment(assess(ExactSampler(), tiny_rbm("bits"), 50, 3))
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["ExactSampler"]


def test_the_sampler_of_the_documentation():
    text = (Path(__file__).parents[1] / "docs" / "samplers.md").read_text()
    (code,) = (c for c in re.findall(r"```python\n(.*?)```", text, re.S) if "class " in c)
    assert len(code.splitlines()) < 30
    exec(compile(code, "docs/samplers.md", "exec"), names := {})
    row = assess(names["MetropolisSampler"](), tiny_rbm("bits"), 2000, 4, generator=seeded(0))
    assert row["error_2"].item() < 1.5 * row["floor_2"].item()
