"""Counts from codes, by the decoder of any model built on scVI's module."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from anndata import AnnData
from scipy import sparse
from scvi import REGISTRY_KEYS
from scvi.model.base import BaseModelClass
from scvi.module._constants import MODULE_KEYS


@torch.inference_mode()
def decode(
    model: BaseModelClass,
    codes: np.ndarray,
    like: Sequence[int],
    *,
    batch: str | None = None,
    library_size: float | None = None,
    batch_size: int = 512,
    seed: int = 0,
) -> AnnData:
    """Draw a cell's counts for each code; all that is not in the code is taken from real cells.

    Parameters
    ----------
    model
        The trained model.
    codes
        One row a cell.
    like
        For each, the cell of the model's data whose batch, depth and covariates it gets.
    batch
        One batch for all instead.
    library_size
        One total count for all instead.
    batch_size
        Cells at a time.
    seed
        Seed of the counts.

    Returns
    -------
    Counts in ``X``, the ``obs`` of the cells named by ``like`` and the codes in ``obsm``.
    """
    if batch is not None:
        registry = model.adata_manager.get_state_registry(REGISTRY_KEYS.BATCH_KEY)
        names = list(map(str, registry.categorical_mapping))
        if str(batch) not in names:
            raise ValueError(f"`batch` must be one of {names}, not {batch!r}.")
    if library_size is not None and not library_size > 0:
        raise ValueError(f"`library_size` must be positive, not {library_size!r}.")
    like = np.asarray(like)
    module, parts = model.module, []
    codes = torch.as_tensor(codes, dtype=torch.float32, device=model.device)
    loader = model._make_data_loader(model.adata, indices=like, batch_size=batch_size)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for tensors, z in zip(loader, codes.split(batch_size), strict=True):
            if batch is not None:
                tensors[REGISTRY_KEYS.BATCH_KEY].fill_(names.index(str(batch)))
            tensors = {name: x.to(model.device) for name, x in tensors.items()}
            outputs = module.inference(**module._get_inference_input(tensors))
            if library_size is not None:
                outputs[MODULE_KEYS.LIBRARY_KEY].fill_(np.log(library_size))
            outputs[MODULE_KEYS.Z_KEY] = z
            generative = module.generative(**module._get_generative_input(tensors, outputs))
            counts = generative[MODULE_KEYS.PX_KEY].sample()
            parts.append(sparse.csr_matrix(counts.cpu().numpy()))
    obs = model.adata.obs.iloc[like].reset_index(drop=True)
    obs.index = "drawn_" + obs.index.astype(str)
    batch_column = model.adata_manager.get_state_registry(REGISTRY_KEYS.BATCH_KEY).original_key
    if batch is not None and batch_column in obs:
        obs[batch_column] = str(batch)
    return AnnData(
        sparse.vstack(parts, format="csr"),
        obs=obs,
        var=model.adata.var[[]].copy(),
        obsm={"code": codes.cpu().numpy()},
    )


def random_cells(model: BaseModelClass, n: int, seed: int) -> np.ndarray:
    """Random training cells of a model, each at most once while they last."""
    cells = getattr(model, "train_indices", None)
    cells = np.arange(model.adata.n_obs) if cells is None else np.asarray(cells)
    return np.random.default_rng(seed).choice(cells, n, replace=n > len(cells))
