"""How good a sampler is on a given machine: one row of figures against a reference."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from scqbm.ising import RBM, all_states, bits_to_spins
from scqbm.partition import smaller_side
from scqbm.samplers._base import Draws, Sampler
from scqbm.samplers._health import effective_beta, effective_number
from scqbm.samplers._tempering import TemperingSampler

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_MAX_UNITS = 20
_CHUNK = 2**14


class Moments(NamedTuple):
    """Means of the visible layer, the hidden spins and their products.

    Bits count as spins, +-1. ``square`` is the mean of the squared visible units (1 for spins) and
    ``n_draws`` how many independent draws the means rest on, infinite where they are exact.
    """

    visible: Tensor
    hidden: Tensor
    product: Tensor
    square: Tensor
    n_draws: float = float("inf")

    def variances(self) -> tuple[Tensor, Tensor]:
        """Variances of a single draw: of both layers' units, and of the products."""
        first = torch.cat([self.square - self.visible.square(), 1 - self.hidden.square()])
        return first.clamp(min=0), (self.square[:, None] - self.product.square()).clamp(min=0)


@torch.no_grad()
def moments(
    rbm: RBM,
    sampler: Sampler | None = None,
    n_draws: int = 256,
    n_queries: int = 40,
    generator: torch.Generator | None = None,
) -> Moments:
    """Moments of a machine: by enumeration if its smaller layer of bits allows, else sampled.

    Parameters
    ----------
    rbm
        The machine.
    sampler
        Where enumeration is not wanted or not possible; a long parallel tempering if ``None``.
    n_draws
        Draws a query.
    n_queries
        Queries pooled.
    generator
        Source of random numbers on the device of ``rbm``.
    """
    if sampler is None and smaller_side(rbm) <= _MAX_UNITS:
        return _enumerated(rbm.to(torch.float64))
    if sampler is None:
        sampler = TemperingSampler(n_sweeps=20, n_replicas=24, n_start=2000)
    state, seen = None, []
    for _ in range(n_queries):
        draws = sampler.sample(rbm, n_draws, state, generator)
        state = draws.state
        seen.append(_of_draws(rbm, draws))
    # queries of one chain are no independent draws: a quarter of them count as such
    return _mean(seen, float(n_draws * max(1, n_queries // 4)))


def _mean(seen: list[Moments], n_draws: float) -> Moments:
    parts = zip(*(one[:4] for one in seen), strict=True)
    return Moments(*(torch.stack(part).mean(0) for part in parts), n_draws=n_draws)


def _of_draws(rbm: RBM, draws: Draws) -> Moments:
    """Weighted means over one query."""
    v = draws.visible.double() if rbm.gaussian else bits_to_spins(draws.visible.double())
    s = bits_to_spins(draws.hidden.double())
    w = v.new_ones(len(v)) if draws.weights is None else draws.weights.double()
    w = w / w.sum()
    return Moments(w @ v, w @ s, (v * w[:, None]).T @ s, w @ v.square(), float(len(v)))


def _enumerated(rbm: RBM) -> Moments:
    if not rbm.gaussian and rbm.n_visible < rbm.n_hidden:
        turned = _enumerated(rbm.transposed())
        ones = torch.ones_like(turned.hidden)
        return Moments(turned.hidden, turned.visible, turned.product.T, ones)
    n, like = 2**rbm.n_hidden, {"dtype": rbm.W.dtype, "device": rbm.W.device}
    chunks = [(i, min(i + _CHUNK, n)) for i in range(0, n, _CHUNK)]
    energy = torch.cat(
        [rbm.hidden_free_energy(all_states(rbm.n_hidden, *chunk, **like)) for chunk in chunks]
    )
    p = torch.softmax(-energy, 0)
    parts = []
    for chunk in chunks:
        h, w = all_states(rbm.n_hidden, *chunk, **like), p[slice(*chunk)]
        field, s = rbm.visible_field(h), bits_to_spins(h)
        v = field if rbm.gaussian else bits_to_spins(field.sigmoid())
        square = w @ (v.square() + 1) if rbm.gaussian else w.sum() * torch.ones_like(rbm.a)
        parts.append((w @ v, w @ s, (v * w[:, None]).T @ s, square))
    return Moments(*(torch.stack(part).sum(0) for part in zip(*parts, strict=True)))


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
    """Compare a sampler with a reference.

    Parameters
    ----------
    sampler
        The sampler.
    rbm
        The machine it draws from.
    n_draws
        Draws a query.
    n_queries
        Queries, each with the state of the one before. A first one is left out of the figures.
    reference
        Another sampler, or what :func:`moments` returned; by default enumeration where the
        machine allows it, else a long parallel tempering.
    generator
        Source of random numbers on the device of ``rbm``.
    name
        Label of the row; the sampler's class by default.

    Returns
    -------
    One row. ``error_1`` and ``error_2`` are the root mean square errors of a query's first and
    second moments (bits as spins), ``floor_1`` and ``floor_2`` what as many independent exact
    draws would have. ``gradient_bias`` is the error of the prior's gradient averaged over all
    queries, ``gradient_floor`` what independent draws would leave of it. ``ess`` is the number of
    independent draws that a query is worth, by its weights and by how long the draws remember
    earlier queries; ``beta`` the effective inverse temperature.
    """
    import pandas as pd

    if not isinstance(reference, Moments):
        reference = moments(rbm, reference, generator=generator)
    start = time.perf_counter()
    draws = sampler.sample(rbm, n_draws, None, generator)
    first_seconds = time.perf_counter() - start
    seconds, seen, weighted, betas, visited = [], [], [], [], []
    for _ in range(n_queries):
        start = time.perf_counter()
        draws = sampler.sample(rbm, n_draws, draws.state, generator)
        seconds.append(time.perf_counter() - start)
        seen.append(_of_draws(rbm, draws))
        weighted.append(effective_number(draws.weights, len(draws.visible)))
        betas.append(effective_beta(rbm, draws.visible, draws.hidden, draws.weights))
        visited.append(draws.visible)
    pooled = _mean(seen, float(n_draws * n_queries))
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
    """``d log Z / d (a, b, W)``: means in the units of :class:`~scqbm.ising.RBM`."""
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
    """Queries between two independent ones, draw by draw; units pooled by their variance.

    The sum of autocorrelations ends where it has run for five times itself (Sokal 1997).
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


def plot_assessment(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Error of second moments over its floor against seconds an effective draw.

    Parameters
    ----------
    table
        Rows of :func:`assess`, concatenated.
    ax
        Where to draw; a new figure by default.
    """
    import matplotlib.pyplot as plt

    if ax is None:
        _, ax = plt.subplots(figsize=(5, 4), layout="constrained")
    for name, rows in table.groupby("sampler", sort=False):
        x, y = rows["seconds_per_effective"], rows["error_2"] / rows["floor_2"]
        ax.plot(x, y, "o", label=name)
    ax.axhline(1, color="0.6", linewidth=1, zorder=0)
    ax.set(xscale="log", yscale="log", xlabel="seconds an effective draw")
    ax.set_ylabel("error of second moments / that of independent draws")
    ax.legend(frameon=False)
    return ax
