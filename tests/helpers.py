"""What several test files need: small machines and models, seeds, and how an error must read."""

import warnings

import numpy as np
import scvi
import torch

from scqbm import QBMVI
from scqbm.data import simulate
from scqbm.ising import RBM


def seeded(seed, device="cpu"):
    """A source of random numbers."""
    return torch.Generator(device=device).manual_seed(seed)


def random_rbm(n_visible, n_hidden, gaussian=False, seed=0, scale=1.0, bias=1.0, dtype=None):
    """A machine with normal couplings of standard deviation ``scale``; ``bias`` times for biases.

    In double precision unless ``dtype`` says otherwise.
    """
    g = seeded(seed)
    a, b, W = (
        scale * torch.randn(shape, generator=g, dtype=torch.float64)
        for shape in ((n_visible,), (n_hidden,), (n_visible, n_hidden))
    )
    return RBM(bias * a, bias * b, W, gaussian).to(dtype or torch.float64)


def assert_one_sentence(error):
    """Users get one sentence, which ends in a full stop."""
    text = str(error)
    assert text.endswith(".") and "\n" not in text and ". " not in text, text


# -- tables, models and simulated cells ----------------------------------------------------------

P_SMALL = 1e-6  # chance that a correct simulator fails a test on a fresh seed


def value(table, method, metric, group=None):
    """The one score of a tidy table."""
    rows = table[(table["method"] == method) & (table["metric"] == metric)]
    if group is not None:
        rows = rows[rows["group"] == group]
    (only,) = rows["value"]
    return only


def two_models():
    """Simulated cells, and a QBMVI and a SCVI that were trained on them for a moment."""
    scvi.settings.seed = 0
    adata = simulate(200, 30, n_types=3, seed=0)
    trained = {}
    for name, cls, kwargs in (
        ("QBMVI", QBMVI, {"n_latent": 6}),
        ("SCVI", scvi.model.SCVI, {"n_latent": 3}),
    ):
        cls.setup_anndata(adata, batch_key="batch")
        trained[name] = cls(adata, gene_likelihood="nb", **kwargs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trained[name].train(2, train_size=0.8, enable_progress_bar=False)
    return adata, trained


def rates(adata):
    """Counts over the true library size, so that depth plays no role."""
    return adata.X.toarray().astype(float) / adata.obs["library_size"].to_numpy()[:, None]


def assert_same_cells(a, b):
    assert (a.X != b.X).nnz == 0
    assert a.obs.astype(str).equals(b.obs.astype(str))
    assert a.var.equals(b.var)
    for key in a.varm:
        np.testing.assert_array_equal(a.varm[key], b.varm[key])
