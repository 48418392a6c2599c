"""States, barriers and basins, against enumeration of small machines."""

import heapq

import anndata
import numpy as np
import pytest
import torch
from helpers import assert_one_sentence
from small_models import BITS, BITS_HIDDEN, NORMAL, each_family, trained

from scqbm.ising import RBM, all_states
from scqbm.landscape import PairEnergy, barriers, merge_tree


def machine(seed=0, n_visible=5, n_hidden=5, scale=3.0, gaussian=False):
    generator = torch.Generator().manual_seed(seed)
    a, b, W = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((n_visible,), (n_hidden,), (n_visible, n_hidden))
    )
    return RBM(a, b, scale * W, gaussian=gaussian)


def minima(values, n):
    """Positions of the states that no single flip lowers."""
    index = np.arange(2**n)
    flipped = np.stack([values[index ^ (1 << i)] for i in range(n)])
    return np.flatnonzero((values <= flipped).all(0))


def lowest_passes(values, n, start):
    """The lowest height to each state from one, over all paths of single flips."""
    best = np.full(2**n, np.inf)
    best[start] = values[start]
    queue = [(values[start], start)]
    while queue:
        height, state = heapq.heappop(queue)
        if height > best[state]:
            continue
        for i in range(n):
            other = state ^ (1 << i)
            top = max(height, values[other])
            if top < best[other]:
                best[other] = top
                heapq.heappush(queue, (top, other))
    return best


def test_the_energy_is_that_of_the_machine():
    rbm = machine()
    u = all_states(10, dtype=torch.float64)
    pair = PairEnergy.of(rbm).energy(u)
    gap = rbm.energy(u[:, :5], u[:, 5:]) - pair
    torch.testing.assert_close(gap, gap[:1].expand(len(gap)))


def test_the_energy_of_a_gaussian_machine_is_the_least_over_its_visible_units():
    rbm = machine(gaussian=True)
    h = all_states(5, dtype=torch.float64)
    least = rbm.energy(rbm.visible_field(h), h)
    shifted = rbm.energy(rbm.visible_field(h) + 0.1, h)
    assert (least < shifted).all()
    gap = least - PairEnergy.of(rbm).energy(h)
    torch.testing.assert_close(gap, gap[:1].expand(len(gap)))


@pytest.mark.parametrize("gaussian", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_flips_and_descents(gaussian, seed):
    """Every descent ends in a minimum, never higher than it began, and minima stay."""
    energy = PairEnergy.of(machine(seed, gaussian=gaussian))
    n = len(energy.field)
    u = all_states(n, dtype=torch.float64)
    values = energy.energy(u)
    index = torch.arange(2**n)
    flipped = torch.stack([values[index ^ (1 << i)] for i in range(n)], 1)
    torch.testing.assert_close(energy.flips(u), flipped - values.unsqueeze(1))
    down = (energy.descend(u) @ (2.0 ** torch.arange(n, dtype=torch.float64))).long()
    assert (values[down] <= values + 1e-9).all()
    expected = minima(values.numpy(), n)
    assert set(down.tolist()) == set(expected.tolist())
    assert down[expected].tolist() == expected.tolist()


@pytest.mark.parametrize("gaussian", [False, True])
def test_barriers_are_bounds_and_mostly_the_lowest_passes(gaussian):
    found, exact = [], []
    for seed in range(8):
        energy = PairEnergy.of(machine(seed, gaussian=gaussian, n_hidden=10 if gaussian else 5))
        n = len(energy.field)
        u = all_states(n, dtype=torch.float64)
        values = energy.energy(u).numpy()
        places = minima(values, n)
        pairs = torch.combinations(torch.arange(len(places)))
        found += barriers(energy, u[places], pairs).tolist()
        passes = {i: lowest_passes(values, n, places[i]) for i in range(len(places))}
        exact += [passes[i][places[j]] for i, j in pairs.tolist()]
    found, exact = np.array(found), np.array(exact)
    assert len(found) > 20
    assert (found >= exact - 1e-9).all()
    assert np.isclose(found, exact).mean() > 0.6
    assert np.median(found - exact) < 0.1


def test_the_tree_against_the_lowest_passes_of_all_paths():
    """With exact passes: a state merges where the water from a deeper one first reaches it."""
    energy = PairEnergy.of(machine(5))
    u = all_states(10, dtype=torch.float64)
    values = energy.energy(u).numpy()
    places = minima(values, 10)
    assert len(places) > 4
    passes = np.array([lowest_passes(values, 10, i)[places] for i in places])
    pairs = np.array([(i, j) for i in range(len(places)) for j in range(i)])
    tree = merge_tree(values[places], pairs, passes[tuple(pairs.T)])
    for i, place in enumerate(places):
        deeper = values[places] < values[place]
        expected = passes[i][deeper].min() if deeper.any() else np.inf
        assert tree.height[i] == pytest.approx(expected)
        assert tree.persistence[i] == pytest.approx(expected - values[place])
    # at a resolution, two states are together exactly if the tree joins them by shallow ones
    for resolution in (0.0, 0.5, 2.0, 100.0):
        belongs = tree.cut(resolution)
        deep = tree.persistence >= resolution
        assert set(belongs) == set(np.flatnonzero(deep))
        assert (belongs[deep] == np.flatnonzero(deep)).all()
        for i in np.flatnonzero(~deep):
            assert belongs[i] == belongs[tree.parent[i]]
    assert len(set(tree.cut(100.0))) == 1


def test_states_with_few_cells_join_the_deeper_one():
    """A chain 3 -> 2 -> 1 -> 0, and 4 that nothing connects."""
    energy = np.array([0.0, 1.0, 2.0, 3.0, 0.5])
    tree = merge_tree(energy, np.array([(0, 1), (1, 2), (2, 3)]), np.array([9.0, 8.0, 7.0]))
    assert tree.parent.tolist() == [-1, 0, 1, 2, -1]
    counts = np.array([1, 4, 3, 2, 0])
    assert tree.cut(0.0, counts, 0).tolist() == [0, 1, 2, 3, 4]
    assert tree.cut(0.0, counts, 3).tolist() == [0, 1, 2, 2, 4]
    assert tree.cut(0.0, counts, 5).tolist() == [0, 0, 2, 2, 4]  # 2 stands for five by then
    assert tree.cut(0.0, counts, 6).tolist() == [0, 1, 1, 1, 4]  # and 1 for nine
    assert tree.cut(0.0, counts, 100).tolist() == [0, 0, 0, 0, 4]
    assert tree.cut(5.0, counts, 0).tolist() == [0, 1, 2, 2, 4]  # only 3 is less than 5 deep


def test_states_that_nothing_connects_stay_apart():
    tree = merge_tree(np.array([0.0, -1.0, 2.0]), np.array([[0, 1]]), np.array([0.5]))
    assert tree.parent.tolist() == [1, -1, -1]
    assert tree.cut(10.0).tolist() == [1, 1, 2]


# -- the landscape of a model ---------------------------------------------------------------------


def strong(family, scale=3.0):
    model = trained(family)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.module.prior.parameters():
        parameter.data = scale * torch.randn(parameter.shape, generator=generator)
    return model


@each_family
def test_basins_of_a_model(family, tmp_path):
    model = strong(family)
    adata = model.adata
    landscape = model.get_landscape(
        resolution=0.0, min_cells=0, labels_key="labels", n_samples=3000
    )
    energy = PairEnergy.of(model.module.prior.rbm())
    values = energy.energy(all_states(len(energy.field))).numpy()
    obs = landscape.obs
    # every state that is told of is one, with its energy
    known = values[minima(values, len(energy.field))]
    for one in obs["energy"]:
        assert np.abs(known - one).min() < 1e-4
    assert obs["energy"].min() == pytest.approx(values.min(), abs=1e-4)
    # cells and draws are counted
    counts = adata.obs["basin"].value_counts()
    assert obs["n_cells"].sum() == adata.n_obs and obs["mass"].sum() == pytest.approx(1)
    for name, n in obs["n_cells"].items():
        assert counts.get(name, 0) == n
    assert list(obs["n_cells"]) == sorted(obs["n_cells"], reverse=True)
    table = landscape.uns["cells"]["basin"]
    assert (table.astype(str) == adata.obs["basin"].astype(str)).all()
    # labels
    largest = adata.obs["labels"][(adata.obs["basin"] == "0").to_numpy()].value_counts()
    assert obs["label"].iloc[0] in set(largest.index[largest == largest.max()].astype(str))
    assert obs["label_share"].iloc[0] == pytest.approx(largest.max() / largest.sum())
    # barriers: symmetric, above both, and no higher than the tree knows
    heights = landscape.obsp["barriers"].toarray() + obs["energy"].min()
    n = len(obs)
    both = np.maximum.outer(obs["energy"].to_numpy(), obs["energy"].to_numpy())
    apart = ~np.eye(n, dtype=bool)
    np.testing.assert_allclose(heights, heights.T)
    assert (heights >= both - 1e-4)[apart].all()
    links = landscape.obsp["connectivities"].toarray()[apart]
    np.testing.assert_allclose(links, np.exp(-(heights - both)[apart]), rtol=1e-3)
    tree = landscape.uns["merge_tree"]
    place = {name: i for i, name in enumerate(obs.index)}
    for name, row in tree.iterrows():
        if row["into"]:
            assert heights[place[name], place[row["into"]]] <= row["at_energy"] + 1e-4
            assert obs.loc[row["into"], "energy"] <= obs.loc[name, "energy"] + 1e-6
    landscape.write_h5ad(tmp_path / "landscape.h5ad")
    assert anndata.read_h5ad(tmp_path / "landscape.h5ad").obs["energy"].equals(obs["energy"])


def test_ways_out_past_basins_with_few_cells():
    """A basin whose way leads through one that has merged away must climb the higher pass."""
    for seed in range(6):
        model = trained(BITS_HIDDEN)
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.module.prior.parameters():
            parameter.data = 3 * torch.randn(parameter.shape, generator=generator)
        found = model.get_landscape(resolution=0.0, min_cells=6, silent=True)
        place = {name: i for i, name in enumerate(found.obs_names)}
        heights = found.obsp["barriers"].toarray() + found.obs["energy"].min()
        for name, row in found.uns["merge_tree"].iterrows():
            depth = row["at_energy"] - found.obs.loc[name, "energy"]
            assert found.obs.loc[name, "depth"] == pytest.approx(depth, abs=1e-4)
            if row["into"]:
                barrier = heights[place[name], place[row["into"]]]
                assert barrier <= row["at_energy"] + 1e-4


def test_labels_may_be_missing():
    model = strong(BITS)
    model.adata.obs["none"] = np.nan
    assert model.get_landscape(labels_key="none", silent=True).obs["label"].isna().all()


@pytest.mark.parametrize("family", [BITS, BITS_HIDDEN], ids=["halves", "hidden"])
def test_the_mass_of_a_basin_is_that_of_the_prior(family):
    """Against the probabilities of all states of the machine that run down to it."""
    model = strong(family, 1.5)
    landscape = model.get_landscape(resolution=0.0, min_cells=0, n_samples=20_000, key_added=None)
    assert "basin" not in model.adata.obs
    prior = model.module.prior
    energy = PairEnergy.of(prior.rbm())
    codes = all_states(prior.n_latent)
    with torch.no_grad():
        p = (-prior.energy(codes)).double().softmax(0).numpy()
    visible, hidden = prior.layers(codes)
    if hidden is None:
        hidden = (prior.rbm().hidden_field(visible) > 0).float()
    ends = energy.energy(energy.descend(torch.cat([visible, hidden], 1))).numpy()
    for _, row in landscape.obs.iterrows():
        exact = p[np.abs(ends - row["energy"]) < 1e-4].sum()
        assert row["mass"] == pytest.approx(exact, abs=0.02)


def test_a_coarser_resolution_merges_basins_and_keeps_the_deep_ones():
    model = strong(BITS_HIDDEN)
    fine = model.get_landscape(resolution=0.0, min_cells=0, silent=True)
    coarse = model.get_landscape(resolution=3.0, min_cells=0, silent=True)
    assert 1 <= coarse.n_obs < fine.n_obs
    assert (coarse.obs["depth"] >= 3.0).all()
    deep = fine.obs["depth"] >= 3.0
    np.testing.assert_allclose(
        np.sort(coarse.obs["energy"]), np.sort(fine.obs["energy"][deep]), rtol=1e-6
    )
    assert coarse.uns["resolution"] == 3.0
    few = model.get_landscape(resolution=0.0, min_cells=15, silent=True)
    deepest = few.obs["depth"] == np.inf
    assert (few.obs["n_cells"] >= 15)[~deepest].all()
    assert few.obs["n_cells"].sum() == model.adata.n_obs
    assert few.obs["mass"].sum() == pytest.approx(1)


def test_some_cells_and_minibatches():
    model = strong(BITS)
    some = model.get_landscape(indices=[3, 8, 20], key_added="mine", resolution=0.0)
    cells = some.uns["cells"]
    energy = PairEnergy.of(model.module.prior.rbm())
    codes = torch.from_numpy(model.get_latent_representation(indices=[3, 8, 20]) > 0.5).float()
    ends = energy.energy(energy.descend(codes)).numpy()
    told = some.obs.loc[cells["basin"].astype(str), "energy"].to_numpy()
    np.testing.assert_allclose(told, ends, atol=1e-4)
    assert some.obs["n_cells"].sum() == 3
    assert model.adata.obs["mine"].notna().sum() == 3
    loader = model._make_data_loader(model.adata)
    given = model.get_landscape(dataloader=loader)
    whole = model.get_landscape()
    assert given.obs["n_cells"].tolist() == whole.obs["n_cells"].tolist()
    assert len(given.uns["cells"]) == model.adata.n_obs


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"resolution": -1}, "`resolution` must be 0 or more"),
        ({"resolution": "fine"}, "`resolution` must be 0 or more"),
        ({"key_added": ""}, "`key_added` must be a name or None"),
        ({"labels_key": "type"}, "`labels_key` must be a column"),
        ({"min_cells": -1}, "`min_cells` must be an integer"),
        ({"n_samples": 0}, "`n_samples` must be an integer"),
        ({"indices": []}, "`indices` names no cells"),
        ({"dataloader": [], "labels_key": "labels"}, "`labels_key` needs cells"),
    ],
)
def test_bad_landscapes(given, says):
    with pytest.raises(ValueError, match=says) as error:
        trained(NORMAL).get_landscape(**given)
    assert_one_sentence(error.value)
