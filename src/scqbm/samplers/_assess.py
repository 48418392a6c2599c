"""How good a sampler's draws are on a given RBM: one row of figures against a reference."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scqbm._checks import whole
from scqbm.ising import RBM, effective_beta, effective_number
from scqbm.samplers._ask import check_sampler
from scqbm.samplers._base import Sampler
from scqbm.samplers._moments import Moments, mean_of, moments, of_draws

if TYPE_CHECKING:
    import pandas as pd


@torch.no_grad()
def assess(
    sampler: Sampler,
    rbm: RBM,
    n_draws: int = 256,
    n_queries: int = 20,
    reference: Sampler | Moments | None = None,
    generator: torch.Generator | None = None,
    name: str | None = None,
) -> pd.DataFrame:
    """Measure how good a sampler's draws are, against enumeration or another sampler.

    Parameters
    ----------
    sampler
        The sampler.
    rbm
        The RBM to draw from, for example ``model.module.prior.rbm()``.
    n_draws
        Draws per query.
    n_queries
        Number of queries. Each receives the state of the one before. One more query at the start
        is timed but not counted otherwise.
    reference
        Another sampler, or the result of :func:`moments`. By default the RBM is enumerated if it
        is small enough, else sampled by a long parallel tempering.
    generator
        Source of random numbers on the device of ``rbm``.
    name
        Label of the row; the sampler's class by default.

    Returns
    -------
    One row. ``error_1`` and ``error_2`` are the root mean square errors of a query's first and
    second moments (bits as spins). ``floor_1`` and ``floor_2`` are the errors of as many
    independent exact draws. ``gradient_bias`` is the error of the prior's gradient, averaged over
    all queries, and ``gradient_floor`` that of independent draws. ``ess`` is the number of
    independent draws that one query is worth, given its weights and the correlation between
    queries. ``beta`` is the effective inverse temperature: 1 is right.
    """
    import pandas as pd

    check_sampler(sampler)
    whole("n_draws", n_draws)
    whole("n_queries", n_queries)
    if not isinstance(reference, Moments):
        if reference is not None:
            check_sampler(reference, "reference")
        reference = moments(rbm, reference, generator=generator)
    start = time.perf_counter()
    draws = sampler.sample(rbm, n_draws, None, generator)
    first_seconds = time.perf_counter() - start
    seconds, seen, weighted, betas, visited = [], [], [], [], []
    for _ in range(n_queries):
        start = time.perf_counter()
        draws = sampler.sample(rbm, n_draws, draws.state, generator)
        seconds.append(time.perf_counter() - start)
        seen.append(of_draws(rbm, draws))
        weighted.append(effective_number(draws.weights, len(draws.visible)))
        betas.append(effective_beta(rbm, draws.visible, draws.hidden, draws.weights))
        visited.append(draws.visible)
    pooled = mean_of(seen, float(n_draws * n_queries))
    var_1, var_2 = (v.mean().item() for v in reference.variances())
    memory = integrated_autocorrelation(visited)
    ess = sum(weighted) / n_queries / memory

    def rms(part: Moments, which: str) -> float:
        if which == "first":
            off = torch.cat([part.visible - reference.visible, part.hidden - reference.hidden])
        else:
            off = part.product - reference.product
        return off.square().mean().item() ** 0.5

    def mean_square(which: str) -> float:
        return (sum(rms(one, which) ** 2 for one in seen) / n_queries) ** 0.5

    share, total = 1 / n_draws + 1 / reference.n_draws, n_draws * n_queries
    seconds_per_query = float(torch.tensor(seconds).median())
    row = {
        "sampler": name or type(sampler).__name__,
        "n_visible": rbm.n_visible,
        "n_hidden": rbm.n_hidden,
        "gaussian": rbm.gaussian,
        "n_draws": n_draws,
        "n_queries": n_queries,
        "error_1": mean_square("first"),
        "floor_1": (var_1 * share) ** 0.5,
        "error_2": mean_square("second"),
        "floor_2": (var_2 * share) ** 0.5,
        "gradient_bias": _gradient_error(rbm, pooled, reference),
        "gradient_floor": _gradient_floor(rbm, reference, total),
        "ess": ess,
        "beta": sum(betas) / n_queries,
        "seconds_first": first_seconds,
        "seconds_per_query": seconds_per_query,
        "seconds_per_effective": seconds_per_query / ess,
    }
    return pd.DataFrame([row])


def _gradient(rbm: RBM, m: Moments) -> Tensor:
    """``d log Z / d (a, b, W)``: the means in the units of :class:`~scqbm.ising.RBM`."""
    scale = 1.0 if rbm.gaussian else 0.5  # spins to bits, up to a constant
    return torch.cat([m.visible * scale, m.hidden / 2, (m.product * scale / 2).flatten()])


def _gradient_error(rbm: RBM, found: Moments, truth: Moments) -> float:
    return (_gradient(rbm, found) - _gradient(rbm, truth)).square().mean().item() ** 0.5


def _gradient_floor(rbm: RBM, truth: Moments, n_draws: int) -> float:
    scale = 1.0 if rbm.gaussian else 0.5
    first, second = truth.variances()
    units = torch.cat([first[: rbm.n_visible] * scale**2, first[rbm.n_visible :] / 4])
    variance = torch.cat([units, second.flatten() * scale**2 / 4]).mean().item()
    return (variance * (1 / n_draws + 1 / truth.n_draws)) ** 0.5


def integrated_autocorrelation(visited: list[Tensor]) -> float:
    """Number of queries between two independent ones, from each draw's correlation with itself.

    Units are pooled by their variance. The sum over lags ends at the first lag that is at least
    five times the sum so far (Sokal 1997).
    """
    x = torch.stack([v.double() for v in visited])
    x = x - x.mean((0, 1))
    variance = x.square().mean()
    if variance == 0:
        return float(len(x))
    tau = 1.0
    for lag in range(1, len(x)):
        tau += 2 * ((x[lag:] * x[:-lag]).mean() / variance).item()
        if lag >= 5 * tau:
            break
    return min(max(tau, 1.0), float(len(x)))
