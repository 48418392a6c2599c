"""Plots: what is drawn, and where."""

import inspect
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from helpers import assert_one_sentence, two_models
from matplotlib.collections import PathCollection

from scqbm import benchmark, pl, samplers


@pytest.fixture(autouse=True)
def _figures(monkeypatch):
    plt.switch_backend("agg")
    yield
    plt.close("all")


def texts(things):
    return [thing.get_text() for thing in things]


def draw(plot, ax, *args, **kwargs):
    """Draws in Axes of ours, or in none; no further Axes may appear beside the given ones."""
    before = plt.get_fignums()
    drawn = plot(*args, **kwargs, ax=ax)
    if ax is None:
        assert len(plt.get_fignums()) == len(before) + 1
    else:
        assert drawn is ax and plt.get_fignums() == before
        assert ax.figure.axes[0] is ax
    drawn.figure.canvas.draw()
    return drawn


each_ax = pytest.mark.parametrize("make_ax", [lambda: None, lambda: plt.figure().add_subplot()])


@pytest.mark.parametrize("name", pl.__all__)
def test_every_plot_has_scanpys_arguments(name):
    function = getattr(pl, name)
    signature = inspect.signature(function)
    assert list(signature.parameters)[-3:] == ["show", "save", "return_fig"]
    described = inspect.getdoc(function)
    for argument in signature.parameters:
        assert described.count(f"\n{argument}\n    ") == 1
    assert described.index("return_fig") < described.index("Returns\n-------")


def test_showing_saving_and_the_figure(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()))
    adata = AnnData(np.ones((4, 1), np.float32), obs={"type": list("aabb")})
    adata.obsm["X_qbmvi"] = np.arange(8.0).reshape(4, 2)
    ax = pl.units(adata, "type")
    assert not shown
    figure = pl.units(adata, "type", show=True, save=tmp_path / "units.png", return_fig=True)
    assert isinstance(figure, plt.Figure) and shown == [figure] and figure is not ax.figure
    assert plt.imread(tmp_path / "units.png").std() > 0
    assert pl.units(adata, "type", ax=ax, return_fig=True) is ax.figure


# -- integration ---------------------------------------------------------------------------------


@pytest.fixture
def scores():
    rows = [
        (method, group, metric, score)
        for method, score in (("a", 0.2), ("b", 0.7))
        for group, metric in (("bio", "cLISI"), ("batch", "KBET"), ("batch", "iLISI"))
    ]
    table = pd.DataFrame(rows, columns=["method", "group", "metric", "value"])
    table.loc[1, "value"] = np.nan
    with pytest.warns(UserWarning, match="KBET"):
        return pd.concat([table, benchmark.aggregates(table)])


def circles(ax):
    return sum(
        len(found.get_offsets()) for found in ax.collections if isinstance(found, PathCollection)
    )


@each_ax
def test_plot_of_a_table_with_an_undefined_metric(scores, make_ax):
    ax = draw(pl.integration, make_ax(), scores)
    assert texts(ax.get_yticklabels()) == ["b", "a"]  # the best on top
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    metrics = ["cLISI", "iLISI", "Batch\ncorrection", "Bio\nconservation", "Total"]
    assert texts(ax.get_xticklabels()) == metrics
    assert circles(ax) == 2 * 2 and len(ax.patches) == 2 * 3
    assert ax.figure.axes == [ax]
    said = texts(ax.texts)
    assert {"Bio conservation", "Batch correction", "Aggregate score"} < set(said)
    assert said.count("0.70") == 5 and said.count("0.20") == 5
    widths = [bar.get_width() for bar in ax.patches]
    assert widths[:2] == pytest.approx([0.9 * 0.7, 0.9 * 0.2])  # a full column is 1


def test_plot_without_batches_or_of_one_method(scores):
    bio = scores[(scores["group"] == "bio") | (scores["metric"] == "Bio conservation")]
    ax = pl.integration(bio)
    assert texts(ax.get_xticklabels()) == ["cLISI", "Bio\nconservation"]
    assert texts(ax.get_yticklabels()) == ["b", "a"]
    ax = pl.integration(scores[scores["method"] == "a"])
    assert texts(ax.get_yticklabels()) == ["a"] and circles(ax) == 2
    with pytest.raises(ValueError, match="`table`") as error:
        pl.integration(scores[:0])
    assert_one_sentence(error.value)


def test_the_same_plots_by_their_other_names():
    assert benchmark.plot_integration is pl.integration
    assert samplers.plot_assessment is pl.assessment


# -- training ------------------------------------------------------------------------------------


def history(n_epochs=40, last=1.0):
    """A loss that falls; validation at each fifth epoch."""
    epochs = pd.RangeIndex(n_epochs, name="epoch")
    train = pd.DataFrame({"elbo_train": last + 1 / (1 + epochs)}, index=epochs)
    seen = train.iloc[4::5].set_axis(["elbo_validation"], axis=1)
    other = train.set_axis(["kl_local_train"], axis=1)
    return {"elbo_train": train, "elbo_validation": seen, "kl_local_train": other}


@each_ax
def test_training_curves_of_two_models(make_ax):
    ax = draw(pl.training, make_ax(), {"A": history(), "B": history(last=3.0)})
    labels = ["A train", "A validation", "B train", "B validation"]
    assert texts(ax.get_legend().get_texts()) == labels == [x.get_label() for x in ax.lines]
    assert [line.get_linestyle() for line in ax.lines] == [":", "-"] * 2
    colours = [line.get_color() for line in ax.lines]
    assert colours[0] == colours[1] != colours[2] == colours[3]
    assert [list(line.get_xdata())[0] for line in ax.lines] == [3, 4] * 2  # the fall is left out
    assert list(ax.lines[1].get_xdata()) == list(range(4, 40, 5))
    assert ax.lines[2].get_ydata()[-1] == pytest.approx(3 + 1 / 40)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "-ELBO, nats per cell")


def test_training_curves_of_a_model_or_a_history():
    _, trained = two_models()  # of two epochs: both are drawn
    for model in (trained["QBMVI"], trained["QBMVI"].history):
        ax = pl.training(model)
        assert texts(ax.get_legend().get_texts())[0] == "train"
        assert list(ax.lines[0].get_xdata()) == [0, 1]
    ax = pl.training(trained, "reconstruction_loss")
    assert ax.get_ylabel() == "reconstruction_loss"
    assert {"QBMVI train", "SCVI train"} <= set(texts(ax.get_legend().get_texts()))


def test_training_curves_without_validation_or_of_one_point():
    one = history(5)
    ax = pl.training(one, n_skipped=0)
    assert ax.lines[1].get_marker() == "." and len(ax.lines[1].get_xdata()) == 1
    ax = pl.training(one, "kl_local")
    assert texts(ax.get_legend().get_texts()) == ["train"]
    with pytest.raises(ValueError, match="`metric` must be one of .*'elbo', 'kl_local'") as error:
        pl.training(one, "loss")
    assert_one_sentence(error.value)
    with pytest.raises(ValueError, match="`models` must be trained models or .*") as error:
        pl.training([one])
    assert_one_sentence(error.value)


# -- cells ---------------------------------------------------------------------------------------


@pytest.fixture
def cells():
    rng = np.random.default_rng(0)
    groups = pd.Categorical(np.repeat(["high", "low", "middle"], 20))
    energy = np.repeat([2.0, -2.0, 0.0], 20) + 0.1 * rng.standard_normal(60)
    obs = pd.DataFrame({"type": groups, "prior_energy": energy}, [f"c{i}" for i in range(60)])
    adata = AnnData(np.ones((60, 2)), obs=obs)
    adata.obsm["one"], adata.obsm["two"] = rng.standard_normal((2, 60, 2))
    return adata


@each_ax
def test_energy_by_group(cells, make_ax):
    cells.obs.loc[cells.obs_names[:3], "type"] = None
    ax = draw(pl.energy_by_group, make_ax(), cells, "type")
    assert texts(ax.get_yticklabels()) == ["low", "middle", "high"]  # by their medians
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    assert ax.get_xlabel().startswith("prior energy") and ax.get_ylabel() == ""
    assert len(ax.patches) == 3  # boxes
    middles = [box.get_path().vertices[:, 0].mean() for box in ax.patches]
    assert np.allclose(middles, [-2, 0, 2], atol=0.3)


def test_energy_of_other_columns(cells):
    cells.obs["E"] = -cells.obs["prior_energy"]
    ax = pl.energy_by_group(cells, "type", "E")
    assert texts(ax.get_yticklabels()) == ["high", "middle", "low"]
    for arguments, name in ((("kind",), "group_key"), (("type", "e"), "energy_key")):
        with pytest.raises(ValueError, match=f"`{name}` must be a column of adata.obs"):
            pl.energy_by_group(cells, *arguments)


@pytest.mark.parametrize("given", [False, True])
def test_embeddings_share_one_legend(cells, given):
    ax = plt.subplots(1, 2)[1] if given else None
    figures = plt.get_fignums()
    axes = pl.embeddings(cells, {"A": "one", "B": "two"}, "type", ax=ax)
    assert len(plt.get_fignums()) == len(figures) + (not given)
    assert not given or axes == list(ax)
    assert axes[0].figure.axes == axes
    assert [axis.get_title() for axis in axes] == ["A, type", "B, type"]
    assert axes[0].get_legend() is None
    assert texts(axes[1].get_legend().get_texts()) == ["high", "low", "middle"]
    colours = []
    for axis, key in zip(axes, ("one", "two"), strict=True):
        points = next(c for c in axis.collections if len(c.get_offsets()))  # not of the legend
        np.testing.assert_allclose(points.get_offsets(), cells.obsm[key])
        colours.append(points.get_facecolor())
    assert len(np.unique(colours[0], axis=0)) == 3
    np.testing.assert_array_equal(*colours)


def test_embeddings_of_numbers_share_one_colour_bar(cells):
    axes = pl.embeddings(cells, ["one", "two"], "prior_energy")
    assert len(axes[0].figure.axes) == 3
    assert [axis.get_title() for axis in axes] == ["one, prior_energy", "two, prior_energy"]
    (only,) = pl.embeddings(cells, "one", "prior_energy", ax=plt.figure().add_subplot())
    assert only.get_title() == "one, prior_energy"


def test_embeddings_that_are_not_there(cells):
    for arguments, name in (
        ((["three"], "type"), "bases"),
        ((["one"], "kind"), "color"),
        ((["one", "two"], "type", plt.figure().add_subplot()), "ax"),
    ):
        with pytest.raises(ValueError, match=f"^`{name}` must") as error:
            pl.embeddings(cells, *arguments)
        assert_one_sentence(error.value)


# -- samplers ------------------------------------------------------------------------------------


@each_ax
def test_assessment(make_ax):
    table = pd.DataFrame(
        {
            "sampler": ["slow", "fast", "slow"],
            "seconds_per_effective": [1e-2, 1e-4, 2e-2],
            "error_2": [0.1, 0.4, 0.2],
            "floor_2": 0.1,
        }
    )
    ax = draw(pl.assessment, make_ax(), table)
    assert texts(ax.get_legend().get_texts()) == ["slow", "fast"]
    slow, fast, exact = ax.lines
    np.testing.assert_allclose(slow.get_xydata(), [[1e-2, 1], [2e-2, 2]])
    np.testing.assert_allclose(fast.get_xydata(), [[1e-4, 4]])
    assert set(exact.get_ydata()) == {1} and ax.get_xscale() == ax.get_yscale() == "log"
    assert ax.get_xlabel() == "seconds per effective draw"


def test_importing_scqbm_loads_no_plotting_library_beside_scvi_s():
    code = (
        "import sys, scvi; before = set(sys.modules); import scqbm; "
        "late = {'scanpy', 'seaborn', 'matplotlib.pyplot', 'scib_metrics', 'jax'}; "
        "sys.exit(', '.join(late & (set(sys.modules) - before)) or None)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


# -- the prior -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_landscape():
    adata, models = two_models()
    model = models["QBMVI"]
    generator = torch.Generator().manual_seed(1)
    for parameter in model.module.prior.parameters():
        parameter.data = 3 * torch.randn(parameter.shape, generator=generator)
    landscape = model.get_landscape(resolution=0.0, min_cells=0, labels_key="cell_type")
    return adata, model, landscape


@each_ax
@pytest.mark.parametrize("color", [None, "label", "mass"])
def test_plot_of_a_landscape(with_landscape, make_ax, color):
    _, _, found = with_landscape
    ax = draw(pl.landscape, make_ax(), found, color)
    assert texts(ax.texts) == list(found.obs_names)
    n = found.n_obs
    joined = np.eye(n, dtype=bool)
    places, heights = [t.xy for t in ax.texts], []
    for line in ax.lines:
        i, j = (places.index(tuple(end)) for end in line.get_xydata())
        joined[i, j] = joined[j, i] = True
        heights.append(found.obsp["barriers"][i, j] + found.obs["energy"].min())
    assert np.linalg.matrix_power(joined.astype(float), n).all()  # one graph
    merges = found.uns["merge_tree"]["at_energy"]  # and the lowest ways
    np.testing.assert_allclose(sorted(heights), sorted(merges[merges < np.inf]), rtol=1e-5)
    if color == "label":
        named = ["no label" if pd.isna(x) else x for x in found.obs["label"]]
        assert texts(ax.get_legend().get_texts()) == list(dict.fromkeys(named))
        assert ax.get_legend().get_title().get_text() == "label"
    else:
        assert circles(ax) == found.n_obs and ax.get_legend() is None
        assert ax.figure.axes[-1].get_ylabel() == (color or "energy")
    again = draw(pl.landscape, None, found, color)
    assert [t.xy for t in again.texts] == [t.xy for t in ax.texts]  # the same at each call


@each_ax
def test_plot_of_a_merge_tree(with_landscape, make_ax):
    _, _, found = with_landscape
    ax = draw(pl.merge_tree, make_ax(), found, "label")
    tree = found.uns["merge_tree"]
    merged = (tree["into"] != "").sum()
    assert len(ax.lines) == found.n_obs + merged
    assert ax.get_xlabel() == "basin" and ax.get_ylabel() == "energy"
    shown = texts(ax.get_xticklabels())
    assert sorted(name.split(" ")[0] for name in shown) == sorted(found.obs_names)
    for name in shown:
        number, _, label = name.partition(" ")
        assert label == ("" if pd.isna(found.obs["label"][number]) else found.obs["label"][number])
    starts = sorted(line.get_ydata()[0] for line in ax.lines if np.ptp(line.get_xdata()) == 0)
    np.testing.assert_allclose(starts, np.sort(found.obs["energy"]))


@each_ax
def test_plot_of_units_by_type(with_landscape, make_ax):
    adata, model, _ = with_landscape
    adata.obsm["X_qbmvi"] = model.get_latent_representation()
    ax = draw(pl.units, make_ax(), adata, "cell_type", n_units=4)
    (image,) = ax.images
    assert image.get_array().shape == (adata.obs["cell_type"].nunique(), 4)
    rows, columns = texts(ax.get_yticklabels()), texts(ax.get_xticklabels())
    for i, name in enumerate(rows):
        of_type = (adata.obs["cell_type"] == name).to_numpy()
        mean = adata.obsm["X_qbmvi"][of_type].mean(0)[[int(c) for c in columns]]
        np.testing.assert_allclose(image.get_array()[i], mean, rtol=1e-5)
    assert image.get_clim() == (0, 1)
    assert ax.figure.axes[-1].get_ylabel() == "mean of the unit"


@each_ax
def test_plot_of_couplings(with_landscape, make_ax):
    _, model, _ = with_landscape
    W = model.module.prior.rbm().W.numpy()
    ax = draw(pl.couplings, make_ax(), model)
    (image,) = ax.images
    rows, columns = ([int(t) for t in texts(a.get_ticklabels())] for a in (ax.yaxis, ax.xaxis))
    shift = W.shape[0]
    expected = W[np.ix_(rows, [j - shift for j in columns])]
    np.testing.assert_allclose(image.get_array(), expected, rtol=1e-6)
    low, high = image.get_clim()
    assert low == -high and high == pytest.approx(np.abs(W).max())
    few = draw(pl.couplings, None, model, [1, 0])
    assert few.images[0].get_array().shape == (2, W.shape[1])
    with pytest.raises(ValueError, match="`units` must be visible units") as error:
        pl.couplings(model, [77])
    assert_one_sentence(error.value)


@each_ax
def test_plot_of_new_cells(with_landscape, make_ax):
    adata, model, _ = with_landscape
    new = model.sample_cells(30)
    ax = draw(pl.new_cells, make_ax(), adata, new)
    assert texts(ax.get_legend().get_texts()) == ["real", "new"]
    assert [len(found.get_offsets()) for found in ax.collections] == [adata.n_obs, 30]
    assert ax.get_xlabel().startswith("PC 1 (") and ax.get_ylabel().startswith("PC 2 (")
    dense = new.copy()
    dense.X = new.X.toarray()
    assert len(draw(pl.new_cells, None, adata, dense).collections) == 2
    with pytest.raises(ValueError, match="`new` must have the genes of `real`") as error:
        pl.new_cells(adata, new[:, ::-1])
    assert_one_sentence(error.value)


@pytest.mark.parametrize(
    ("plot", "given", "says"),
    [
        (pl.landscape, {"color": "type"}, "`color` must be a column of landscape.obs"),
        (pl.merge_tree, {"label": "type"}, "`label` must be a column of landscape.obs"),
    ],
)
def test_bad_columns_of_a_landscape(with_landscape, plot, given, says):
    adata, _, found = with_landscape
    with pytest.raises(ValueError, match=says) as error:
        plot(found, **given)
    assert_one_sentence(error.value)
    with pytest.raises(ValueError, match="`landscape` must be an AnnData from get_landscape"):
        plot(adata)


def test_plot_of_programs_by_type():
    """Their names stand below, and scores have both signs."""
    adata = AnnData(np.ones((6, 1), np.float32))
    adata.obs["type"] = list("aabbcc")
    scores = pd.DataFrame(
        {"program_0": [2.0, 2, -1, -1, -1, -1], "program_1": [0, 0, 1, 1, -1, -1]}
    )
    adata.obsm["programs"] = scores.set_axis(adata.obs_names)
    ax = pl.units(adata, "type", code_key="programs")
    names = [label.get_text() for label in ax.get_xticklabels()]
    assert set(names) == {"program_0", "program_1"}
    image = ax.images[0]
    types = [label.get_text() for label in ax.get_yticklabels()]
    shown = pd.DataFrame(image.get_array(), types, names)
    assert shown.loc["a", "program_0"] == 2
    assert shown.loc["c", "program_1"] == -1
    assert image.get_clim() == (-2, 2)
    assert ax.get_title() == "Programs by type"
    assert ax.figure.axes[1].get_ylabel() == "mean score"


def test_bad_keys_of_units(with_landscape):
    adata, _, _ = with_landscape
    for given, says in (
        ({"group_key": "type"}, "`group_key` must be a column"),
        ({"group_key": "cell_type", "code_key": "X"}, "`code_key` must be a key"),
        ({"group_key": "cell_type", "n_units": 0}, "`n_units` must be an integer"),
    ):
        adata.obsm.setdefault("X_qbmvi", np.zeros((adata.n_obs, 6)))
        with pytest.raises(ValueError, match=says) as error:
            pl.units(adata, **given)
        assert_one_sentence(error.value)


def test_basins_without_a_value_and_cells_without_scores(with_landscape):
    landscape = with_landscape[2].copy()
    landscape.obs["some"] = [np.nan] * (landscape.n_obs - 1) + [1.0]
    landscape.obs["high"] = np.inf
    for color in ("some", "high"):
        ax = pl.landscape(landscape, color=color)
        assert sum(len(dots.get_offsets()) for dots in ax.collections) == landscape.n_obs
    cells = AnnData(np.zeros((6, 1), np.float32), obs={"type": list("aabbcc")})
    cells.obsm["programs"] = pd.DataFrame(
        {"p": [1.0, 2, 3, np.nan, np.nan, np.nan]}, index=cells.obs_names
    )
    ax = pl.units(cells, "type", code_key="programs")
    assert sorted(texts(ax.get_yticklabels())) == ["a", "b"]  # c has no scores
    cells.obsm["programs"]["p"] = np.nan
    with pytest.raises(ValueError, match="holds no values for the groups"):
        pl.units(cells, "type", code_key="programs")
