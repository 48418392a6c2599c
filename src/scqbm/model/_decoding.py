"""Counts from codes, by the decoder of any model built on scVI's module."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse
from scvi import REGISTRY_KEYS
from scvi.model.base import BaseModelClass
from scvi.module._constants import MODULE_KEYS
from torch import Tensor

from scqbm._checks import positive, which_cells
from scqbm.model._cells import loader_in_order, training_cells

COVARIATES = (REGISTRY_KEYS.BATCH_KEY, REGISTRY_KEYS.CAT_COVS_KEY, REGISTRY_KEYS.CONT_COVS_KEY)


@torch.inference_mode()
def decode(
    model: BaseModelClass,
    codes: np.ndarray,
    sources: Sequence[int] | np.ndarray | None = None,
    *,
    dataloader: Iterable[dict[str, Tensor]] | None = None,
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
    sources
        For each, the cell of the model's data whose batch, depth and covariates it gets.
    dataloader
        Minibatches of such cells in the place of ``sources``, used from the start again if they
        are too few.
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
    Counts in ``X``, codes in ``obsm``, and in ``obs`` the registered covariates that were used.
    """
    names = _batch_names(model)
    if batch is not None and str(batch) not in names:
        raise ValueError(f"`batch` must be one of {names}, not {batch!r}.")
    if library_size is not None:
        positive("library_size", library_size)
        if getattr(model.module, "use_size_factor_key", False):
            raise ValueError(
                "`library_size` cannot be set: the model has a size_factor_key, whose values "
                "scale the counts."
            )
    if dataloader is None:
        cells = which_cells(model.adata.n_obs, sources, "sources")
        if len(cells) != len(codes):
            raise ValueError(
                f"`sources` must name one cell for each of the {len(codes)} codes, "
                f"not {len(cells)}."
            )
        loader = loader_in_order(model._make_data_loader, model.adata, cells, batch_size)
    else:
        loader = _repeated(dataloader, len(codes))
    module, counts, batches = model.module, [], []
    all_z = torch.as_tensor(codes, dtype=torch.float32, device=model.device)
    done = 0
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for tensors in loader:
            tensors = {k: x.to(model.device) for k, x in tensors.items() if x is not None}
            if batch is not None:
                given = tensors[REGISTRY_KEYS.BATCH_KEY]
                tensors[REGISTRY_KEYS.BATCH_KEY] = torch.full_like(given, names.index(str(batch)))
            outputs = module.inference(**module._get_inference_input(tensors))
            if library_size is not None:
                outputs[MODULE_KEYS.LIBRARY_KEY].fill_(np.log(library_size))
            z = all_z[done : done + len(tensors[REGISTRY_KEYS.X_KEY])]
            done += len(z)
            outputs[MODULE_KEYS.Z_KEY] = z
            generative = module.generative(**module._get_generative_input(tensors, outputs))
            drawn = generative[MODULE_KEYS.PX_KEY].sample()
            counts.append(sparse.csr_matrix(drawn.cpu().numpy()))
            batches.append(tensors[REGISTRY_KEYS.BATCH_KEY].flatten().cpu().numpy())
    if dataloader is None:
        obs = _covariates(model, cells)
        batch_column = model.adata_manager.get_state_registry(COVARIATES[0]).original_key
        if batch is not None and batch_column in obs:
            obs[batch_column] = str(batch)
        var = model.adata.var[[]].copy()
    else:
        of_cell = np.concatenate(batches).astype(int)
        obs = pd.DataFrame({"batch": [names[b] if b < len(names) else str(b) for b in of_cell]})
        var = None
    obs.index = [f"drawn_{i}" for i in range(len(obs))]
    code = all_z.cpu().numpy()
    return AnnData(sparse.vstack(counts, format="csr"), obs=obs, var=var, obsm={"code": code})


def random_cells(
    model: BaseModelClass, n: int, seed: int, cells: np.ndarray | None = None
) -> np.ndarray:
    """Random cells of a model's data, the training cells by default; each once while they last."""
    if cells is None:
        cells = training_cells(model)
        cells = np.arange(model.adata.n_obs) if cells is None else cells
    return np.random.default_rng(seed).choice(cells, n, replace=n > len(cells))


def _batch_names(model: BaseModelClass) -> list[str]:
    """Names of the batches in the order of their codes, as far as the registry has them."""
    fields = (getattr(model, "registry_", None) or {}).get("field_registries") or {}
    state = (fields.get(REGISTRY_KEYS.BATCH_KEY) or {}).get("state_registry") or {}
    return [str(name) for name in state.get("categorical_mapping", ())]


def _covariates(model: BaseModelClass, cells: np.ndarray) -> pd.DataFrame:
    """What the decoder is given of these cells besides the code; nothing else of ``obs``."""
    fields = model.adata_manager.data_registry
    keys = [key for key in COVARIATES if key in fields]
    if getattr(model.module, "dispersion", None) == "gene-label":
        keys.append(REGISTRY_KEYS.LABELS_KEY)
    columns = []
    for key in keys:
        state = model.adata_manager.get_state_registry(key)
        if "original_key" in state:  # one column of categories
            columns.append(state.original_key)
        else:
            columns += list(state.get("field_keys", state.get("columns", ())))
    columns = [c for c in dict.fromkeys(columns) if not c.startswith("_scvi")]
    return model.adata.obs[columns].iloc[cells].reset_index(drop=True)


def _repeated(loader: Iterable[dict[str, Tensor]], n: int) -> Iterator[dict[str, Tensor]]:
    """Minibatches until they hold ``n`` cells, cut to that number."""
    left = n
    while left > 0:
        before = left
        for tensors in loader:
            size = len(tensors[REGISTRY_KEYS.X_KEY])
            keep = min(size, left)
            yield {k: x[:keep] for k, x in tensors.items() if x is not None}
            left -= keep
            if left == 0:
                return
        if left == before:
            raise ValueError("`dataloader` holds no cells (a generator runs only once).")
