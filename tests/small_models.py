"""Small trained models of each kind of code."""

import pytest
import scvi
from scvi.data import synthetic_iid

from scqbm import QBMVI

QUIET = {"accelerator": "cpu", "batch_size": 32, "enable_progress_bar": False}
BITS = {"latent_distribution": "bernoulli", "n_latent": 5, "n_prior_hidden": 0}
BITS_HIDDEN = {"latent_distribution": "bernoulli", "n_latent": 7, "n_prior_hidden": 3}
NORMAL = {"latent_distribution": "normal", "n_latent": 5, "n_prior_hidden": 4}
each_family = pytest.mark.parametrize(
    "family", [BITS, BITS_HIDDEN, NORMAL], ids=["halves", "hidden", "normal"]
)
bits_or_normal = pytest.mark.parametrize("family", [BITS, NORMAL], ids=["bits", "normal"])


def data(**kwargs):
    scvi.settings.seed = 0
    return synthetic_iid(**{"batch_size": 40, "n_genes": 30, **kwargs})


def trained(family=BITS, epochs=2, adata=None, labels_key=None, lr=1e-3, **kwargs):
    scvi.settings.seed = 0
    adata = data() if adata is None else adata
    QBMVI.setup_anndata(adata, batch_key="batch", labels_key=labels_key)
    model = QBMVI(adata, n_hidden=16, **family, **kwargs)
    model.train(epochs, plan_kwargs={"lr": lr, "prior_lr": 0.05}, **QUIET)
    return model
