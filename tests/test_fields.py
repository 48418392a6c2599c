"""Machines with fields, and with units held at values: against enumeration."""

import pytest
import torch
from helpers import assert_one_sentence

from scqbm.ising import RBM, all_states
from scqbm.samplers import matching_fields

BITS, GAUSSIAN = False, True


def machine(gaussian, scale=2.0, n_visible=5, n_hidden=4):
    generator = torch.Generator().manual_seed(3)
    a, b, W = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((n_visible,), (n_hidden,), (n_visible, n_hidden))
    )
    return RBM(a, b, scale * W, gaussian=gaussian)


def joint(rbm):
    """All states of both layers of bits, and their probabilities."""
    states = all_states(rbm.n_visible + rbm.n_hidden, dtype=torch.float64)
    v, h = states.split([rbm.n_visible, rbm.n_hidden], 1)
    return v, h, (-rbm.energy(v, h)).softmax(0)


def means(rbm):
    """Exact means of both layers."""
    if rbm.gaussian:  # the hidden layer is enumerated, the mean of a visible unit is its field
        h = all_states(rbm.n_hidden, dtype=torch.float64)
        p = (-rbm.hidden_free_energy(h)).softmax(0)
        return p @ rbm.visible_field(h), p @ h
    v, h, p = joint(rbm)
    return p @ v, p @ h


@pytest.mark.parametrize(
    ("gaussian", "both", "scale"),
    [(BITS, True, 3.0), (BITS, False, 1.0), (GAUSSIAN, True, 1.0), (GAUSSIAN, False, 3.0)],
)
def test_fields_give_the_units_the_means_of_a_region(gaussian, both, scale):
    rbm = machine(gaussian, scale)
    # a part of the states, as the cells of one type are; its means are those of no product
    if gaussian:
        h = all_states(rbm.n_hidden, dtype=torch.float64)
        p = (-rbm.hidden_free_energy(h)).softmax(0) * (h[:, 0] == h[:, 1])
        p /= p.sum()
        visible, hidden = p @ rbm.visible_field(h), p @ h
    else:
        v, h, p = joint(rbm)
        p = p * (v[:, 0] != v[:, 1])
        p /= p.sum()
        visible, hidden = p @ v, p @ h
    generator = torch.Generator().manual_seed(0)
    fields = matching_fields(rbm, visible, hidden if both else None, generator=generator)
    assert bool(fields[1].any()) == both
    got = means(rbm.shifted(*fields))
    before = means(rbm)
    tolerance = 0.12 if gaussian else 0.02
    for wanted, found, _first in zip((visible, hidden), got, before, strict=True):
        if both or wanted is visible:
            torch.testing.assert_close(found, wanted, atol=tolerance, rtol=0)
    assert (before[0] - visible).abs().max() > 2 * tolerance


def test_fields_keep_the_couplings_and_hence_all_that_the_means_leave_open():
    """The result is exp(fields . v) times the machine, up to a constant."""
    rbm = machine(BITS)
    fields = torch.randn(5).double(), torch.randn(4).double()
    v, h, p = joint(rbm)
    expected = p * (v @ fields[0] + h @ fields[1]).exp()
    torch.testing.assert_close(joint(rbm.shifted(*fields))[2], expected / expected.sum())
    expected = p * (v @ fields[0]).exp()
    torch.testing.assert_close(joint(rbm.shifted(fields[0]))[2], expected / expected.sum())


def test_two_modes_are_told_apart_by_fields_alone():
    """Strong couplings make two modes; with such means, one has 98 % of the mass."""
    W = torch.full((6, 6), 1.5, dtype=torch.float64)
    rbm = RBM(torch.zeros(6).double(), torch.zeros(6).double(), W)
    wanted = torch.full((6,), 0.98, dtype=torch.float64)
    fields = matching_fields(rbm, wanted, wanted, generator=torch.Generator().manual_seed(0))
    v, h, p = joint(rbm.shifted(*fields))
    assert 0.95 < p[v.sum(1) > 3].sum() < 0.995
    assert joint(rbm)[2][v.sum(1) > 3].sum() < 0.51


@pytest.mark.parametrize("gaussian", [BITS, GAUSSIAN])
def test_held_units_leave_the_conditional_distribution_of_the_others(gaussian):
    rbm = machine(gaussian)
    nan = float("nan")
    visible = torch.tensor([nan, 1.0, nan, 0.0, nan], dtype=torch.float64)
    hidden = torch.tensor([nan, nan, 1.0, nan], dtype=torch.float64)
    if gaussian:
        visible[1] = -0.7
    held = rbm.held(visible, hidden)
    assert (held.n_visible, held.n_hidden, held.gaussian) == (5, 4, gaussian)
    assert not held.W[1].any() and not held.W[:, 2].any()
    if gaussian:  # a density: compare log-ratios at random points instead
        h = all_states(4, dtype=torch.float64)
        h = h[h[:, 2] == 1]
        v = torch.randn(len(h), 5, dtype=torch.float64)
        v[:, 1], v[:, 3] = -0.7, 0.0
        gap = rbm.energy(v, h) - held.energy(v, h)
        torch.testing.assert_close(gap, gap[:1].expand(len(gap)))
        return
    v, h, p = joint(rbm)
    agree = (v[:, 1] == 1) & (v[:, 3] == 0) & (h[:, 2] == 1)
    conditional = p[agree] / p[agree].sum()
    v, h, p = joint(held)
    # the held units are fair coins of their own there: any value serves
    torch.testing.assert_close(p[agree] / p[agree].sum(), conditional)
    torch.testing.assert_close(p[agree].sum().item(), 1 / 8)


@pytest.mark.parametrize(("coupling", "mean"), [(1.0, 0.7), (1.5, 0.9)])
def test_two_modes_are_weighed(coupling, mean):
    """Ten and ten units that answer together: a step too large would jump to the other mode."""
    zeros = torch.zeros(10, dtype=torch.float64)
    rbm = RBM(zeros, zeros, torch.full((10, 10), coupling, dtype=torch.float64))
    wanted = torch.full((10,), mean, dtype=torch.float64)
    fields = matching_fields(rbm, wanted, wanted, generator=torch.Generator().manual_seed(0))
    for found in means(rbm.shifted(*fields)):
        torch.testing.assert_close(found, wanted, atol=0.1, rtol=0)


def test_means_that_fields_cannot_give_are_told_of():
    zeros = torch.zeros(10, dtype=torch.float64)
    rbm = RBM(zeros, zeros, torch.full((10, 10), 4.0, dtype=torch.float64))
    wanted = torch.full((10,), 0.5, dtype=torch.float64)
    with pytest.warns(UserWarning, match="The fields miss the mean of a unit"):
        matching_fields(rbm, wanted, wanted, generator=torch.Generator().manual_seed(0))


def test_numbers_of_chains_and_steps_are_checked():
    rbm = machine(BITS)
    wanted = torch.full((5,), 0.5)
    for kwargs in ({"n_chains": 1}, {"n_steps": 1}):
        with pytest.raises(ValueError, match=next(iter(kwargs))) as error:
            matching_fields(rbm, wanted, **kwargs)
        assert_one_sentence(error.value)


def test_means_of_hidden_units_in_a_transverse_field_are_refused():
    rbm = machine(False)
    rbm = RBM(rbm.a, rbm.b, rbm.W, gamma=torch.ones_like(rbm.b))
    half = torch.full_like(rbm.a, 0.5), torch.full_like(rbm.b, 0.5)
    assert matching_fields(rbm, half[0])[0].isfinite().all()
    with pytest.raises(ValueError, match="transverse field cannot be asked for"):
        matching_fields(rbm, *half)
