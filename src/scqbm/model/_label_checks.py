"""Checks of labels and of SCANVI's arguments: one sentence each."""

from __future__ import annotations

import warnings
from typing import Any

import pandas as pd
from anndata import AnnData
from scvi import REGISTRY_KEYS, settings

from scqbm import _checks


def check_scanvi_arguments(kwargs: dict[str, Any]) -> None:
    """Take those of SCANVI out that ask for what QBMANVI does; refuse the others."""
    for name, ours in (("linear_classifier", True), ("use_labels_groups", False)):
        if kwargs.pop(name, ours) is not ours:
            raise ValueError(
                f"`{name}` must be {ours}: the label unit of the prior is linear in the code."
            )
    for name in ("classifier_parameters", "labels_groups", "y_prior"):
        if kwargs.pop(name, None) is not None:
            raise ValueError(
                f"`{name}` is an argument of SCANVI only: QBMANVI predicts with the label unit of "
                "its prior."
            )


def check_known(labels: pd.Series, source: dict[str, Any]) -> None:
    """No label that the reference does not have."""
    field = source["field_registries"][REGISTRY_KEYS.LABELS_KEY]["state_registry"]
    known = set(field["categorical_mapping"])
    if new := sorted(str(label) for label in labels.dropna().unique() if label not in known):
        raise ValueError(
            f"The reference model has no label {', '.join(map(repr, new))}: give such cells the "
            f"unlabelled category, {field['unlabeled_category']!r}."
        )


def check_labels(adata: AnnData, labels_key: str, unlabeled_category: str) -> None:
    """A column of labels that can be learnt from, or one sentence."""
    _checks.column(adata, "labels_key", labels_key)
    labels = adata.obs[labels_key]
    n_missing = int(labels.isna().sum())
    if n_missing:
        raise ValueError(
            f"{n_missing} cells have no value in adata.obs[{labels_key!r}]: give them the "
            f"unlabelled category, {unlabeled_category!r}."
        )
    values = set(labels.unique())
    types = sorted(map(str, values - {unlabeled_category}))
    if len(types) < 2:
        found = f"only {types[0]!r}" if types else "none"
        raise ValueError(
            f"adata.obs[{labels_key!r}] must hold at least two labels besides "
            f"{unlabeled_category!r}, but has {found}."
        )
    if unlabeled_category not in values:
        warnings.warn(
            f"No cell has the unlabelled category {unlabeled_category!r} in "
            f"adata.obs[{labels_key!r}], so all cells count as labelled.",
            UserWarning,
            stacklevel=settings.warnings_stacklevel,
        )
