"""Rivals of other packages: `pip install drvi-py concord-sc`, which this project does not need."""

import logging
import warnings

import numpy as np
from anndata import AnnData

CONCORD_EPOCHS = 50  # 15 by default, which is short for few cells


def drvi_embedding(cells, epochs, rate):
    """DRVI (Moinfar and Theis 2024, drvi-py, BSD): one decoder for each of 32 latents."""
    from drvi.model import DRVI

    DRVI.setup_anndata(cells.adata, batch_key=cells.dataset.batch)
    model = DRVI(cells.adata)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(
            max_epochs=epochs,
            plan_kwargs={"lr": rate, "n_epochs_kl_warmup": 20},
            datasplitter_kwargs={"external_indexing": [cells.train, cells.held_out]},
            enable_progress_bar=False,
        )
    return model.get_latent_representation()


def concord_embedding(cells, epochs=CONCORD_EPOCHS):
    """CONCORD (Zhu 2025, concord-sc, MIT): contrast within batches, on log-normalised values.

    Its own number of epochs: it has no likelihood to overfit. Its neighbours are those of the
    cosine, so that each code gets the length 1.
    """
    from concord import Concord

    adata = AnnData(cells.adata.layers["log"].copy(), obs=cells.adata.obs.copy())
    model = Concord(
        adata,
        save_dir=None,
        domain_key=cells.dataset.batch,
        n_epochs=epochs,
        seed=cells.seed,
        use_faiss=False,
        preload_dense=True,
    )
    model.fit_transform(output_key="concord")
    codes = np.asarray(adata.obsm["concord"])
    return codes / np.linalg.norm(codes, axis=1, keepdims=True)
