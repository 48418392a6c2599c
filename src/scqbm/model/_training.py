"""What QBMVI and QBMANVI do around scvi-tools' training."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

from scvi import settings
from scvi.model.base import BaseModelClass

from scqbm import _checks
from scqbm.model._cells import fingerprint
from scqbm.samplers import Sampler, SamplerError
from scqbm.train import Checkpoints, check_checkpoint, plan_arguments, trainer_arguments

_FEW = 500  # cells: fewer were never tested on real data


def prepared(
    model: BaseModelClass,
    max_epochs: int | None,
    plan_kwargs: Any,
    trainer_kwargs: dict[str, Any],
    *,
    accelerator: str,
    trainer_config: Any,
    sampler: Sampler | None,
    sample_every: int | None,
    checkpoint_every: int | None,
    checkpoint_dir: str | os.PathLike,
) -> tuple[Any, dict[str, Any]]:
    """``plan_kwargs`` and ``trainer_kwargs`` with our own arguments in them."""
    if max_epochs is not None:  # to Lightning, -1 is without end
        _checks.whole("max_epochs", max_epochs)
    if accelerator == "mps":
        raise ValueError(
            "`accelerator` must be 'cpu', 'gpu' or 'auto', not 'mps': Apple's GPUs have no double "
            "precision, which the sampler needs."
        )
    for name in trainer_kwargs.keys() & plan_arguments():  # the trainer would be blamed for these
        raise TypeError(
            f"`{name}` is an argument of the training plan: pass "
            f"plan_kwargs={{{name!r}: {trainer_kwargs[name]!r}}}."
        )
    known = {*signature(model.train).parameters, *trainer_arguments(), "ckpt_path"}
    _checks.arguments("train", trainer_kwargs, known)
    if trainer_kwargs.get("ckpt_path") is not None:
        check_checkpoint(trainer_kwargs["ckpt_path"], model.module)
    if checkpoint_every is not None:
        saver = Checkpoints(checkpoint_dir, checkpoint_every)
        given = trainer_kwargs.get("callbacks") or as_dict(trainer_config).get("callbacks")
        callbacks = [*(given or ()), saver]
        trainer_kwargs = {**trainer_kwargs, "callbacks": callbacks}
    ours = {"sampler": sampler, "sample_every": sample_every}
    ours = {name: value for name, value in ours.items() if value is not None}
    return ({**as_dict(plan_kwargs), **ours} if ours else plan_kwargs), trainer_kwargs


def warn_of_few_cells(model: BaseModelClass) -> None:
    """Say so if there are fewer cells than any test on real data had; not for a query."""
    adata, module = model._adata, model.module
    is_query = module is not None and not all(p.requires_grad for p in module.parameters())
    if adata is not None and adata.n_obs < _FEW and not is_query:
        warnings.warn(
            f"There are only {adata.n_obs} cells, and {type(model).__name__} was not tested on "
            f"real data with fewer than {_FEW}: compare the result with principal components.",
            UserWarning,
            stacklevel=settings.warnings_stacklevel,
        )


def as_dict(kwargs: Any) -> dict[str, Any]:
    """Keyword arguments in any form that scvi-tools takes."""
    if kwargs is None:
        return {}
    return dict(kwargs.to_kwargs() if hasattr(kwargs, "to_kwargs") else kwargs)


@contextmanager
def keeping_what_was_learnt(model: BaseModelClass) -> Iterator[None]:
    """After an error of the sampler, the model can be used and saved as it was at that step."""
    try:
        yield
    except SamplerError:
        model.module.eval()
        model.is_trained_ = True
        _remember_cells(model)
        raise
    else:
        _remember_cells(model)
    finally:
        model._summarise()


def _remember_cells(model: Any) -> None:
    """What ``train_indices`` are positions in: a model can be loaded with other data."""
    if model._adata is not None:
        model.trained_on_ = fingerprint(model._adata)
