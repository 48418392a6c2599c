"""The one door to every sampler: what it answers is checked, and what it raises is redacted."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scqbm.ising import RBM
from scqbm.samplers._base import Draws, Sampler
from scqbm.samplers._redact import redacted, reveals


class SamplerError(RuntimeError):
    """A sampler failed or returned something that is not a draw from the prior."""


def check_sampler(sampler: object, name: str = "sampler") -> None:
    """Raise a TypeError unless ``sampler`` is an instance with a method ``sample``."""
    if isinstance(sampler, type):
        cls = sampler.__name__
        raise TypeError(f"`{name}` must be an instance, {cls}(), not the class {cls}.")
    if not callable(getattr(sampler, "sample", None)):
        raise TypeError(
            f"`{name}` must have a method sample(rbm, n_draws, state, generator), as "
            f"scqbm.samplers.Sampler has; {type(sampler).__name__} has none."
        )


@torch.no_grad()
def ask(
    sampler: Sampler,
    rbm: RBM,
    n_draws: int,
    state: dict[str, Tensor | int] | None = None,
    generator: torch.Generator | None = None,
    when: str = "",
) -> Draws:
    """Query a sampler; raise a :class:`SamplerError` unless it answers with valid draws.

    Parameters
    ----------
    sampler, rbm, n_draws, state, generator
        As in :meth:`scqbm.samplers.Sampler.sample`. The sampler gets a copy of ``rbm``.
    when
        Ends the first sentence of an error, for example ``" at step 3"``.
    """
    name = type(sampler).__name__
    problem = cause = None
    try:
        draws = sampler.sample(rbm.to(rbm.W.device, copy=True), n_draws, state, generator)
    except Exception as error:
        secrets = sampler.secrets() if isinstance(sampler, Sampler) else []
        reason = redacted(str(error) or type(error).__name__, secrets).strip().rstrip(".")
        problem = f"failed{when}: {reason}"
        cause = None if reveals(error, secrets) else error
    else:
        wrong = problem_with(draws, rbm)
        problem = wrong and f"{wrong}{when}"
    if problem:  # raised here, so that an error that holds a token is not its context either
        raise SamplerError(f"`sampler` {name} {problem}.") from cause
    return draws


def problem_with(draws: object, rbm: RBM) -> str | None:
    """What is wrong with a sampler's answer, as the rest of a sentence."""
    if not isinstance(draws, Draws):
        return f"returned {type(draws).__name__} instead of scqbm.samplers.Draws"
    layers = (
        ("visible", draws.visible, rbm.n_visible, rbm.gaussian),
        ("hidden", draws.hidden, rbm.n_hidden, False),
    )
    for name, units, width, _ in layers:
        if not isinstance(units, Tensor):
            return f"returned {name} draws of type {type(units).__name__} instead of torch.Tensor"
        if units.dim() != 2 or len(units) == 0 or units.shape[1] != width:
            return (
                f"returned {name} draws of shape {tuple(units.shape)} instead of "
                f"(n_draws, {width})"
            )
    n_draws = len(draws.visible)
    if len(draws.hidden) != n_draws:
        return f"returned {len(draws.hidden)} hidden draws beside {n_draws} visible ones"
    weights = draws.weights
    if weights is not None and not isinstance(weights, Tensor):
        return f"returned weights of type {type(weights).__name__} instead of torch.Tensor"
    if weights is not None and weights.shape != (n_draws,):
        return f"returned weights of shape {tuple(weights.shape)} for {n_draws} draws"
    if weights is not None and not (weights.min() >= 0 and 0 < weights.sum() < math.inf):
        return "returned weights that are negative, not finite or all zero"
    for _, units, _, gaussian in layers:
        legal = units.isfinite() if gaussian else units * (units - 1) == 0
        if not bool(legal.all()):
            if not bool(units.isfinite().all()):
                return "returned NaN or infinite values"
            return "returned values other than 0 and 1 (convert with scqbm.ising.spins_to_bits)"
    for name, value in (("state", draws.state), ("info", draws.info)):
        if not isinstance(value, dict):
            return f"returned {name} of type {type(value).__name__} instead of dict"
    return None
