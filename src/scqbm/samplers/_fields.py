"""Fields that give the units of a machine the means that are asked for."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from scqbm._checks import whole
from scqbm.ising import RBM, effective_number
from scqbm.samplers._base import Draws
from scqbm.samplers._gibbs import GibbsSampler

_ROUNDS = 8  # of correction by chains that are annealed anew
_LEAST_VARIANCE = 0.02  # of a bit, by which a step is divided
_KEPT, _LEAST_STEP = 0.5, 1e-3  # share of the effective draws that a step must keep; least step
_TOO_FAR = 0.3  # an error of a mean, in standard deviations, that is worth a warning


@torch.no_grad()
def matching_fields(
    rbm: RBM,
    visible: Tensor,
    hidden: Tensor | None = None,
    n_chains: int = 500,
    n_steps: int = 200,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Fields on top of the biases at which the units have these means; the couplings stay.

    Of all distributions with such means, the machine with these fields is the one closest to the
    machine without them (least relative entropy). Without couplings the fields are known. The
    couplings are then switched on in small steps, while weighted chains follow and the fields
    correct the means (stochastic approximation). At last, chains that are annealed anew show how
    much mass each mode has, and correct the fields once more.

    Parameters
    ----------
    rbm
        The machine.
    visible
        Means of the visible units; for bits between 0 and 1.
    hidden
        Means of the hidden bits; ``None`` leaves them without fields.
    n_chains
        Gibbs chains.
    n_steps
        Steps in which the couplings rise.
    generator
        Source of random numbers, on the device of ``rbm``.

    Returns
    -------
    Fields of the visible and of the hidden units (0 where none were asked for).
    """
    whole("n_chains", n_chains, 2)
    whole("n_steps", n_steps, 2)
    if hidden is not None and rbm.gamma is not None:
        raise ValueError("Means of hidden units in a transverse field cannot be asked for.")
    wanted = [visible.to(rbm.W)] if hidden is None else [visible.to(rbm.W), hidden.to(rbm.W)]
    gaussian = [rbm.gaussian, False]
    fields = [torch.zeros_like(rbm.a), torch.zeros_like(rbm.b)]
    for i, means in enumerate(wanted):
        # chains cannot show a mean that is closer to 0 or 1
        alone = means if gaussian[i] else torch.logit(means, 0.5 / n_chains)
        fields[i] += alone - (rbm.a, rbm.b)[i]

    def correct(machine: RBM, draws: Draws, rate: float) -> float:
        """Newton's step of each unit on its own; returns the largest error of a mean before it."""
        # given the other layer: less noise than in the draws
        found = (machine.visible_field(draws.hidden), machine.hidden_field(draws.visible))
        units, steps, worst = (draws.visible, draws.hidden), [], 0.0
        for i, means in enumerate(wanted):
            expected = found[i] if gaussian[i] else found[i].sigmoid()
            mean = draws.weights @ expected
            if gaussian[i]:
                variance = 1 + draws.weights @ (expected - mean).square()
            else:
                variance = (means * (1 - means)).clamp(min=_LEAST_VARIANCE)
            steps.append(rate * (means - mean) / variance)
            off = (means - mean) / variance.clamp(min=0.25).sqrt()
            worst = max(worst, float(off.abs().max()))
        # coupled units answer together: no step that leaves most draws without weight
        change = sum(unit @ step for unit, step in zip(units, steps, strict=False))
        share, n = 1.0, effective_number(draws.weights, n_chains)
        while share > _LEAST_STEP:
            weights = draws.weights * (share * (change - change.max())).exp()
            if effective_number(weights, n_chains) >= _KEPT * n:
                break
            share /= 2
        for field, step in zip(fields, steps, strict=False):
            field += share * step
        return worst

    following, state = GibbsSampler(n_sweeps=1, renew_every=0, n_anneal=1), None
    for step in range(n_steps):
        machine = rbm.scaled(step / n_steps).shifted(*fields)
        draws = following.sample(machine, n_chains, state, generator)
        state = draws.state
        correct(machine, draws, 0.2)
    anew = GibbsSampler(n_sweeps=5, n_anneal=200)
    total = [torch.zeros_like(field) for field in fields]
    for i in range(_ROUNDS):
        machine = rbm.shifted(*fields)
        worst = correct(machine, anew.sample(machine, n_chains, None, generator), 1 / (2 + i))
        if i >= _ROUNDS // 2:
            for sum_, field in zip(total, fields, strict=True):
                sum_ += field / (_ROUNDS - _ROUNDS // 2)
    if worst > _TOO_FAR:
        warnings.warn(
            f"The fields miss the mean of a unit by {worst:.2g} standard deviations. If the means "
            "are those of several groups of cells, ask for each group on its own.",
            stacklevel=2,
        )
    return total[0], total[1]
