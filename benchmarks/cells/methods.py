"""What the benchmark compares: name -> how to train it and which learning rates it may try."""

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import outside
import recipe
import scvi
import torch
from anndata import AnnData
from datasets import Cells
from mixed import MixedSCVI
from mixture import MixtureSCVI

from scqbm import QBMVI, samplers

RATES = (1e-3, 3e-3)  # of each rival; the report takes the better one, dataset by dataset
PLAN = {"n_epochs_kl_warmup": 20}  # as QBMVI has by default
LIKELIHOOD = "nb"


@dataclass
class Fitted:
    """What the tasks judge."""

    embedding: np.ndarray
    model: Any = None  # with get_elbo and a decoder, if it has them
    plan: dict = field(default_factory=dict)
    late_gain: float = np.nan  # what the last tenth of the epochs brought, in nats a held-out cell


@dataclass(frozen=True)
class Method:
    """``fit(cells, epochs, rate)``; a rate of ``None`` means its own default."""

    fit: Callable[[Cells, int, float | None], Fitted]
    rates: tuple = (None,)
    needs_batch: bool = False
    needs_truth: bool = False


def fit_noise(cells, epochs, rate):
    """What the metrics give to an embedding that knows nothing."""
    return Fitted(np.random.default_rng(cells.seed).standard_normal((cells.adata.n_obs, 10)))


def fit_truth(cells, epochs, rate):
    """What the metrics give to what the counts were drawn from, where it is known."""
    return Fitted(np.asarray(cells.adata.obsm[cells.dataset.truth]))


def fit_pca(cells, epochs, rate):
    return Fitted(cells.pca)


def fit_harmony(cells, epochs, rate):
    import harmonypy

    obs = cells.adata.obs[[cells.dataset.batch]].astype(str)
    corrected = harmonypy.run_harmony(
        cells.pca, obs, cells.dataset.batch, verbose=False, random_state=cells.seed, ncores=1
    ).Z_corr
    corrected = np.asarray(corrected)
    return Fitted(corrected if len(corrected) == len(obs) else corrected.T)


def scvi_like(cls, change=None, sampler=None, plan=None, **arguments):
    """``fit`` of a model of scvi-tools, or of ours; ``change`` may alter it before training."""
    plan = PLAN | (plan or {})

    def fit(cells, epochs, rate):
        adata = cells.adata
        cls.setup_anndata(adata, batch_key=cells.dataset.batch)
        model = cls(adata, gene_likelihood=LIKELIHOOD, use_observed_lib_size=True, **arguments)
        if change is not None:
            change(model)
        kwargs = {} if sampler is None else {"sampler": sampler()}
        return train(model, cells, epochs, rate, plan, model.get_latent_representation, **kwargs)

    return fit


def fit_sysvi(cells, epochs, rate):
    """Hrovatin 2023 with its VampPrior and cycle loss, on log-normalised values as it asks."""
    from scvi.external import SysVI

    adata = AnnData(cells.adata.layers["log"], obs=cells.adata.obs)
    SysVI.setup_anndata(adata, batch_key=cells.dataset.batch)
    model = SysVI(adata, prior="vamp")
    fitted = train(model, cells, epochs, rate, {}, lambda: model.get_latent_representation(adata))
    return replace(fitted, model=None)  # another likelihood: not to be compared in nats


def fit_recipe(cells, epochs, rate):
    adata = cells.adata
    batch = np.zeros(adata.n_obs, int)
    if cells.dataset.batch is not None:
        batch = adata.obs[cells.dataset.batch].astype("category").cat.codes.to_numpy()
    values = adata.layers["log"].toarray()
    embedding = recipe.fit(values, batch, cells.train, epochs, cells.seed)
    return Fitted(embedding, plan={"lr": recipe.RATE, "prior_lr": recipe.PRIOR_RATE})


def fit_drvi(cells, epochs, rate):
    return Fitted(outside.drvi_embedding(cells, epochs, rate), plan={"lr": rate})


def fit_concord(cells, epochs, rate):
    plan = {"n_epochs": outside.CONCORD_EPOCHS}
    return Fitted(outside.concord_embedding(cells), plan=plan)


def uncouple(model):
    """Hold the couplings at zero: bits that are independent under the prior, with free biases."""
    coupling = model.module.prior.coupling
    with torch.no_grad():
        coupling.zero_()
    coupling.register_hook(torch.zeros_like)


def freeze(model):
    """Hold the whole prior where it starts: fair coins."""
    uncouple(model)
    model.module.prior.requires_grad_(False)


def train(model, cells, epochs, rate, plan, embed, **kwargs):
    """Train a model of scvi-tools on the split of ``cells``."""
    plan = plan | ({} if rate is None else {"lr": rate})
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(
            max_epochs=epochs,
            plan_kwargs=dict(plan),
            datasplitter_kwargs={"external_indexing": [cells.train, cells.held_out]},
            check_val_every_n_epoch=max(1, epochs // 20),
            enable_progress_bar=False,
            **kwargs,
        )
    return Fitted(embed(), model, plan, late_gain(model.history, epochs))


def late_gain(history, epochs):
    """Held-out loss of the tenth of the epochs before the last less that of the last."""
    name = "elbo_validation" if "elbo_validation" in history else "validation_loss"
    curve = history[name].iloc[:, 0].dropna()
    last = curve[curve.index >= 0.9 * epochs]
    before = curve[(curve.index >= 0.8 * epochs) & (curve.index < 0.9 * epochs)]
    return float(before.mean() - last.mean())


UNSETTLED = {"settle": False}  # without the steps of the prior that end a training


SCVI, LDVAE = scvi.model.SCVI, scvi.model.LinearSCVI
# halves of 14 bits, which can be enumerated at each step
SMALL = {"n_latent": 28, "n_prior_hidden": 0, "plan": UNSETTLED}
CONTROLS = {"noise": Method(fit_noise), "truth": Method(fit_truth, needs_truth=True)}
RIVALS = {
    "PCA": Method(fit_pca),
    "Harmony": Method(fit_harmony, needs_batch=True),
    "SCVI-10": Method(scvi_like(SCVI, n_latent=10), RATES),
    "SCVI-30": Method(scvi_like(SCVI, n_latent=30), RATES),
    "SCVI-30+": Method(scvi_like(MixedSCVI, n_latent=30), RATES),
    "SCVI-30-mixture": Method(scvi_like(MixtureSCVI, n_latent=30), RATES),
    "SCVI-10x2": Method(scvi_like(SCVI, n_latent=10, n_layers=2), RATES),
    "SCVI-30x2": Method(scvi_like(SCVI, n_latent=30, n_layers=2), RATES),
    "LDVAE": Method(scvi_like(LDVAE, n_latent=10), RATES),
    "SysVI": Method(fit_sysvi, RATES, needs_batch=True),
    "DRVI": Method(fit_drvi, (1e-3,)),  # its default; an epoch takes many times scVI's
    "CONCORD": Method(fit_concord, needs_batch=True),
    "paper": Method(fit_recipe),
}
OURS = {
    "QBMVI": Method(scvi_like(QBMVI)),
    "QBMVI-normal": Method(scvi_like(QBMVI, latent_distribution="normal")),
    "QBMVI-unmixed": Method(scvi_like(QBMVI, batch_mixing=0.0)),
}
ABLATIONS = {
    "QBMVI-unsettled": Method(scvi_like(QBMVI, plan=UNSETTLED)),
    "QBMVI-uncoupled": Method(scvi_like(QBMVI, uncouple)),
    "QBMVI-frozen": Method(scvi_like(QBMVI, freeze)),
    "QBMVI-no-bonus": Method(scvi_like(QBMVI, entropy_bonus=0.0)),
    "QBMVI-no-dropouts": Method(scvi_like(QBMVI, input_dropout=0.0, decoder_dropout=0.0)),
    "QBMVI-constant-rate": Method(scvi_like(QBMVI, plan={"n_epochs_constant_lr": None})),
    "QBMVI-28-exact": Method(scvi_like(QBMVI, sampler=samplers.ExactSampler, **SMALL)),
    "QBMVI-28-gibbs": Method(scvi_like(QBMVI, sampler=samplers.GibbsSampler, **SMALL)),
    "QBMVI-28-annealer": Method(
        scvi_like(QBMVI, sampler=samplers.DimodSampler.simulated_annealing, **SMALL)
    ),
}
# no hidden units and no settling: the former default
FORMER = {"n_prior_hidden": 0, "plan": UNSETTLED}
HALVES = {
    "QBMVI-halves": Method(scvi_like(QBMVI, **FORMER)),
}
METHODS = CONTROLS | RIVALS | OURS | ABLATIONS | HALVES
