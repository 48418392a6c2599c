"""QBMVI: :class:`scvi.model.SCVI` with a Boltzmann prior."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from anndata import AnnData
from scipy.sparse import issparse
from scvi import REGISTRY_KEYS
from scvi.model import SCVI
from scvi.model.base import BaseModelClass
from torch import Tensor
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    Normal,
    StudentT,
)

from scqbm._prior_mixin import BoltzmannPriorMixin
from scqbm.module import (
    DEFAULT_HIDDEN,
    DEFAULT_LATENT,
    DEFAULT_MIXING,
    QBVAE,
    default_decoder_dropout,
    default_entropy_bonus,
    default_input_dropout,
)
from scqbm.negative_phase import SamplerError
from scqbm.posterior import BitPosterior, Relaxation
from scqbm.samplers import Sampler
from scqbm.training_plan import QBMTrainingPlan

if TYPE_CHECKING:
    import networkx as nx


class _WithoutData(BaseModelClass):
    """Lets a model be made before its data: the base class allows that by class name only."""

    def __init__(self, adata: AnnData | None = None, registry: dict | None = None):
        if adata is not None or registry is not None:
            super().__init__(adata, registry)
            return
        super().__init__(None, {"field_registries": {}})
        self._module_init_on_train = True
        del self.registry_, self.summary_stats


class QBMVI(BoltzmannPriorMixin, SCVI, _WithoutData):
    """scVI with a Boltzmann prior: a drop-in for :class:`scvi.model.SCVI`.

    The latent code follows a restricted Boltzmann machine (RBM) instead of N(0, I); everything
    else is SCVI. Only the parameters that differ are described.

    Parameters
    ----------
    adata
        As in SCVI, registered via :meth:`QBMVI.setup_anndata`.
    registry
        As in SCVI.
    n_hidden, n_layers, dropout_rate, dispersion, gene_likelihood, use_observed_lib_size
        As in SCVI.
    n_latent
        Units of the code: 128 bits by default, or SCVI's 10 real numbers with
        ``latent_distribution="normal"``.
    latent_distribution
        ``"bernoulli"``: bits with a factorial posterior. ``"normal"``: SCVI's Gaussian posterior
        under a Gaussian-Bernoulli RBM, which starts at SCVI's N(0, I) and learns away from it.
    n_prior_hidden
        Hidden bits of the RBM besides the code, summed out analytically. 0 lays the RBM over the
        two halves of the code. By default 0 for bits and 32 for ``"normal"``.
    relaxation
        How gradients pass the bits, see :class:`scqbm.posterior.BitEncoder`.
    batch_mixing
        How strongly the loss asks the codes of all batches to follow one distribution, see
        :class:`scqbm.module.QBVAE`: 50 by default for bits, 0 (the plain ELBO) for ``"normal"``.
    input_dropout
        Share of the genes that the encoder of bits does not see in a training step: by default
        .3 up to about 3,000 cells and ever less of more (1,000 / cells), which need it less.
    decoder_dropout
        Share of its hidden units that the decoder drops in a training step: by default .3 less
        .1 for each thousand cells with bits, so none from 3,000 cells on, and 0 with ``"normal"``.
    entropy_bonus
        What the loss gives for bits that stay undecided, see :class:`scqbm.module.QBVAE`: by
        default (1,000 / cells)², but at most .5 (up to 1,400 cells) and at least .1.
    prior_topology
        ``"zephyr"``, ``"pegasus"`` or the working graph of a chip: bits coupled as an annealer's
        qubits are, so that thousands fit without chains. By default all of one layer are coupled
        to all of the other.
    **kwargs
        Those of :class:`scqbm.module.QBVAE`.

    Examples
    --------
    >>> QBMVI.setup_anndata(adata, batch_key="batch")
    >>> model = QBMVI(adata)
    >>> model.train()
    >>> adata.obsm["X_qbmvi"] = model.get_latent_representation()
    """

    _module_cls = QBVAE
    _training_plan_cls = QBMTrainingPlan
    _LATENT_QZM_KEY = "qbmvi_latent_qzm"
    _LATENT_QZV_KEY = "qbmvi_latent_qzv"

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        n_hidden: int = 128,
        n_latent: int | None = None,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        dispersion: Literal["gene", "gene-batch", "gene-label", "gene-cell"] = "gene",
        gene_likelihood: Literal["zinb", "nb", "poisson", "normal"] = "zinb",
        use_observed_lib_size: bool = True,
        latent_distribution: Literal["bernoulli", "normal"] = "bernoulli",
        n_prior_hidden: int | None = None,
        relaxation: Relaxation = "reinmax",
        batch_mixing: float | None = None,
        input_dropout: float | None = None,
        decoder_dropout: float | None = None,
        entropy_bonus: float | None = None,
        prior_topology: Literal["zephyr", "pegasus"] | nx.Graph | None = None,
        **kwargs,
    ):
        if registry is not None:  # shipped datamodules sign theirs "SCVI", which load() rejects
            registry = {**registry, "model_name": type(self).__name__}
        if n_latent is None:
            n_latent = DEFAULT_LATENT.get(latent_distribution, 10)
        if n_prior_hidden is None:
            n_prior_hidden = DEFAULT_HIDDEN.get(latent_distribution, 0)
        if batch_mixing is None:
            batch_mixing = DEFAULT_MIXING.get(latent_distribution, 0.0)
        bits = latent_distribution == "bernoulli"
        # data too large for memory come without an AnnData
        n_cells = math.inf if adata is None else adata.n_obs
        if input_dropout is None:
            input_dropout = default_input_dropout(n_cells) if bits else 0.0
        if decoder_dropout is None:
            decoder_dropout = default_decoder_dropout(n_cells) if bits else 0.0
        if entropy_bonus is None:
            entropy_bonus = default_entropy_bonus(n_cells) if bits else 0.0
        super().__init__(
            adata,
            registry,
            n_hidden=n_hidden,
            n_latent=n_latent,
            n_layers=n_layers,
            dropout_rate=dropout_rate,
            dispersion=dispersion,
            gene_likelihood=gene_likelihood,
            use_observed_lib_size=use_observed_lib_size,
            latent_distribution=latent_distribution,
            n_prior_hidden=n_prior_hidden,
            relaxation=relaxation,
            batch_mixing=batch_mixing,
            input_dropout=input_dropout,
            decoder_dropout=decoder_dropout,
            entropy_bonus=entropy_bonus,
            prior_topology=prior_topology,
            **kwargs,
        )
        self._module_kwargs["use_observed_lib_size"] = use_observed_lib_size  # SCVI drops it
        if gene_likelihood != "normal" and self._adata is not None:
            _check_counts(self.adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY), "negative")
        self._model_summary_string = (
            self._model_summary_string.replace("SCVI", "QBMVI", 1).removesuffix(".")
            + f", n_prior_hidden: {n_prior_hidden}, relaxation: {relaxation}."
        )
        self.init_params_ = self._get_init_params(locals())

    @classmethod
    def setup_anndata(cls, adata: AnnData, *args, **kwargs) -> None:
        """Register ``adata`` as :meth:`scvi.model.SCVI.setup_anndata` does; refuses NaN counts."""
        super().setup_anndata(adata, *args, **kwargs)
        manager = cls._get_most_recent_anndata_manager(adata)
        _check_counts(manager.get_from_registry(REGISTRY_KEYS.X_KEY), "NaN or infinite")

    def train(
        self,
        max_epochs: int | None = None,
        *args,
        sampler: Sampler | None = None,
        sample_every: int | None = None,
        plan_kwargs: dict | None = None,
        **kwargs,
    ) -> None:
        """Train as :meth:`scvi.model.SCVI.train` does, with a sampler of the prior.

        Parameters
        ----------
        max_epochs
            As in SCVI.
        *args
            As in SCVI.
        sampler
            Where the negative phase comes from: any :class:`scqbm.samplers.Sampler`. By default
            persistent block Gibbs chains on the model's device.
        sample_every
            Query the sampler at every so many training steps (default 1).
        plan_kwargs
            Those of :class:`scqbm.training_plan.QBMTrainingPlan`.
        **kwargs
            As in SCVI.
        """
        given = {"sampler": sampler, "sample_every": sample_every}
        given = {name: value for name, value in given.items() if value is not None}
        if given:
            plan_kwargs = {**_as_dict(plan_kwargs), **given}
        try:
            super().train(max_epochs, *args, plan_kwargs=plan_kwargs, **kwargs)
        except SamplerError:
            self.module.eval()
            self.is_trained_ = True  # what was learnt up to that step can be used and saved
            raise

    # -- the latent space ----------------------------------------------------------------------

    def get_latent_representation(
        self,
        *args,
        representation: Literal["mean", "logits", "sample"] = "mean",
        **kwargs,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """The latent code of each cell; arguments as in SCVI.

        Parameters
        ----------
        *args
            As in SCVI.
        representation
            ``"mean"``: probabilities of the bits (or Gaussian means). ``"logits"``: log-odds of
            the bits. ``"sample"``: one draw of the code.
        **kwargs
            As in SCVI.
        """
        if representation not in ("mean", "logits", "sample"):
            raise ValueError(
                f"`representation` must be 'mean', 'logits' or 'sample', not {representation!r}."
            )
        if representation == "logits" and self.module.latent_distribution != "bernoulli":
            raise ValueError(
                "`representation='logits'` needs bits (latent_distribution='bernoulli'); a "
                "continuous code has 'mean' and 'sample'."
            )
        if representation == "sample":
            kwargs["give_mean"] = False
        latent = super().get_latent_representation(*args, **kwargs)
        if representation != "mean" and isinstance(latent, tuple):
            raise ValueError(
                f"`representation={representation!r}` cannot be combined with return_dist=True."
            )
        if representation == "logits":
            return BitPosterior(torch.from_numpy(latent), validate_args=False).logits.numpy()
        return latent

    @torch.inference_mode()
    def get_aggregated_posterior(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
        dof: float | None = 3.0,
    ) -> Distribution:
        """Mixture of the cells' posteriors.

        Parameters
        ----------
        adata, indices, batch_size
            As in SCVI.
        dof
            Continuous codes only: degrees of freedom of the Student components, Normal if
            ``None``. Bits mix their own posteriors.
        """
        self._check_if_trained(warn=False)
        adata = self._validate_anndata(adata)
        indices = np.arange(adata.n_obs) if indices is None or len(indices) == 0 else indices
        mean, variance = (
            torch.as_tensor(x, device=self.device)
            for x in self.get_latent_representation(
                adata, indices, batch_size=batch_size, return_dist=True
            )
        )
        if self.module.latent_distribution == "bernoulli":
            parts = BitPosterior(mean, validate_args=False)
        elif dof is None:
            parts = Normal(mean, variance.sqrt())
        else:
            parts = StudentT(dof, mean, variance.sqrt())
        equal = Categorical(logits=torch.zeros(len(mean), device=self.device))
        return MixtureSameFamily(equal, Independent(parts, 1))

    # -- scvi-tools hooks ----------------------------------------------------------------------

    @torch.inference_mode()
    def get_importance_weights(
        self,
        adata: AnnData | None,
        indices: Sequence[int],
        qz: Distribution,
        px: Distribution,
        zs: Tensor,
        max_cells: int = 1024,
        truncation: bool = False,
        n_mc_samples: int = 500,
        n_mc_samples_per_pass: int = 250,
        **data_loader_kwargs,
    ) -> np.ndarray:
        """Importance weights of ``zs`` under the RBM prior; arguments as in SCVI."""
        n = len(indices)
        anchors = np.arange(n)
        if n > max_cells:
            anchors = np.sort(np.random.choice(n, size=max_cells, replace=False))
        indices = np.asarray(indices)
        log_px = self.get_marginal_ll(
            adata,
            indices=indices[anchors],
            return_mean=False,
            n_mc_samples=n_mc_samples,
            n_mc_samples_per_pass=n_mc_samples_per_pass,
        )
        zs = zs.cpu()
        log_pz = self.module.prior.log_prob(zs.to(self.device)).cpu().reshape(-1, 1)
        cells = torch.from_numpy(anchors)
        anchored = type(qz)(
            **{k: getattr(qz, k).cpu()[cells] for k in qz.arg_constraints}, validate_args=False
        )
        log_qz = anchored.log_prob(zs.unsqueeze(-2)).sum(-1).reshape(-1, len(anchors))
        log_px_z = torch.cat(
            [
                _log_likelihood(px, tensors[REGISTRY_KEYS.X_KEY].cpu()).reshape(-1, 1)
                for tensors in self._make_data_loader(
                    adata=self._validate_anndata(adata),
                    indices=indices[anchors],
                    batch_size=1,
                    **data_loader_kwargs,
                )
            ],
            dim=1,
        )
        proposal = log_qz.logsumexp(1, keepdim=True)
        weights = (log_pz + log_px_z - torch.as_tensor(log_px) - proposal).logsumexp(1)
        if truncation:  # Ionides 2008: no weight above the mean times the root of their number
            mean = weights.logsumexp(0) - np.log(len(weights))
            weights = weights.clamp(max=mean + np.log(len(weights)) / 2)
        return weights.softmax(0).numpy()

    def _check_if_trained(self, warn: bool = True, message: str | None = None) -> None:
        # SCANVI.from_scvi_model announces itself by this message only, then would load our weights
        # into a Gaussian encoder without complaint
        if message is not None and message.startswith("Passed in scvi model"):
            raise TypeError(
                "SCANVI.from_scvi_model cannot start from QBMVI: SCANVI assumes Gaussian latents "
                "under N(0, I). Train scvi.model.SCVI for it, or classify cells from "
                "QBMVI.get_latent_representation()."
            )
        super()._check_if_trained(warn, **({} if message is None else {"message": message}))


def _log_likelihood(px: Distribution, x: Tensor) -> Tensor:
    """``log p(x | z)`` of one cell's counts under every decoded draw, at that cell's depth."""
    at_depth = copy.copy(px)
    for mean in ("mu", "rate"):  # negative binomials and Poisson; a Normal has no depth
        if mean in vars(px):
            setattr(at_depth, mean, px.scale * x.sum(-1))
    return at_depth.log_prob(x).sum(-1)


def _as_dict(kwargs) -> dict:
    if kwargs is None:
        return {}
    return dict(kwargs.to_kwargs() if hasattr(kwargs, "to_kwargs") else kwargs)


def _check_counts(x, what: Literal["NaN or infinite", "negative"]) -> None:
    """One pass over the counts; data on disk are left to the data loader."""
    values = x.data if issparse(x) else x
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fi":
        return
    bad = values.size and values.min() < 0 if what == "negative" else not np.isfinite(values).all()
    if bad:
        raise ValueError(
            f"`adata` holds {what} counts in X (or in the registered `layer`): QBMVI models raw "
            "counts; pass them with setup_anndata(layer=...) or drop the cells or genes concerned."
        )
