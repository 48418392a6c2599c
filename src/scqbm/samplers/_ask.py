"""The one door to every sampler: it checks the answers and removes secrets from the errors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scqbm.ising import RBM
from scqbm.samplers._base import Draws, Sampler, State
from scqbm.samplers._redact import reason, reveals


class SamplerError(RuntimeError):
    """A sampler failed, or its answer does not hold draws from the prior.

    The message names the sampler's class and the reason, without access tokens. ``__cause__`` is
    the sampler's own error, unless that shows a token. A model whose training ended with this
    error keeps what it has learnt up to that step.
    """


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
    state: State | None = None,
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

    Returns
    -------
    The draws, on the device and in the precision of ``rbm``.
    """
    name = type(sampler).__name__
    if rbm.gamma is not None and not getattr(sampler, "transverse", False):
        raise SamplerError(
            f"`sampler` {name} cannot draw from hidden units in a transverse field: use "
            "GibbsSampler, TemperingSampler, ExactSampler or DimodSampler."
        )
    problem = cause = None
    try:
        draws = sampler.sample(rbm.to(rbm.W.device, copy=True), n_draws, state, generator)
    except Exception as error:
        secrets = sampler.secrets() if isinstance(sampler, Sampler) else []
        problem = f"failed{when}: {reason(error, secrets)}"
        cause = None if reveals(error, secrets) else error
    else:
        wrong = problem_with(draws, rbm)
        problem = wrong and f"{wrong}{when}"
    if problem:  # raised here, because inside `except` the sampler's error would be its context
        raise SamplerError(f"`sampler` {name} {problem}.") from cause
    weights = draws.weights
    if weights is not None and (weights.dtype, weights.device) != (rbm.W.dtype, rbm.W.device):
        weights = (weights / weights.sum()).to(rbm.W)  # first to sum 1: they might underflow
    return Draws(draws.visible.to(rbm.W), draws.hidden.to(rbm.W), draws.state, weights, draws.info)


def problem_with(draws: object, rbm: RBM) -> str | None:
    """What is wrong with a sampler's answer, as the end of a sentence; ``None`` if nothing is."""
    if not isinstance(draws, Draws):
        return f"returned {type(draws).__name__} instead of scqbm.samplers.Draws"
    layers = (
        ("visible", draws.visible, rbm.n_visible, rbm.gaussian),
        ("hidden", draws.hidden, rbm.n_hidden, rbm.gamma is not None),
    )
    for name, units, width, _ in layers:
        if not isinstance(units, Tensor):
            return f"returned {name} draws of type {type(units).__name__} instead of torch.Tensor"
        if units.is_complex():
            return f"returned {name} draws that are complex numbers"
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
    if weights is not None and weights.is_complex():
        return "returned weights that are complex numbers"
    if weights is not None and not (weights.min() >= 0 and 0 < weights.sum() < math.inf):
        return "returned weights that are negative, not finite or all zero"
    for _, units, _, any_number in layers:
        bits = units.bool().to(units.dtype)
        if not (bool(units.isfinite().all()) if any_number else torch.equal(units, bits)):
            if not bool(units.isfinite().all()):
                return "returned NaN or infinite values"
            return "returned values other than 0 and 1 (convert with scqbm.ising.spins_to_bits)"
    for name, value in (("state", draws.state), ("info", draws.info)):
        if not isinstance(value, dict):
            return f"returned {name} of type {type(value).__name__} instead of dict"
    return None
