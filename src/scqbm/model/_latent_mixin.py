"""Codes of cells, their mixture, and their importance weights under the prior."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS
from torch import Tensor
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    Normal,
    StudentT,
)

from scqbm._checks import which_cells
from scqbm.module import BitPosterior

if TYPE_CHECKING:  # what the mixin is mixed into
    from scvi.model import SCVI as _Model
else:
    _Model = object


class LatentMixin(_Model):
    """What SCVI's methods about the code need to know of bits and of a Boltzmann prior."""

    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        give_mean: bool = True,
        mc_samples: int = 5000,
        batch_size: int | None = None,
        return_dist: bool = False,
        dataloader: Iterator[dict[str, Tensor | None]] | None = None,
        *,
        representation: Literal["mean", "logits", "sample"] = "mean",
        **data_loader_kwargs,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """The latent code of each cell.

        Parameters
        ----------
        adata
            The cells, with the genes of the training data; the training data by default.
        indices
            Positions of the cells, or a Boolean mask; all by default.
        give_mean
            ``False`` returns one draw of the code in the place of its mean.
        mc_samples
            Not used: the mean of every code is exact. SCVI needs it for its logistic normal.
        batch_size
            Cells at a time; ``scvi.settings.batch_size`` by default.
        return_dist
            Return the mean and the variance of each code in the place of the mean only.
        dataloader
            Minibatches in the place of ``adata``, as dictionaries of tensors.
        representation
            ``"mean"``: probabilities of the bits (or Gaussian means). ``"logits"``: log-odds of
            the bits. ``"sample"``: one draw of the code.
        **data_loader_kwargs
            Passed to the data loader.

        Returns
        -------
        An array of shape ``(n_cells, n_latent)``, or two if ``return_dist``.
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
        cells: np.ndarray | None = None
        if indices is not None:
            cells = which_cells(self._validate_anndata(adata).n_obs, indices)
        latent = super().get_latent_representation(
            adata,
            cells,
            give_mean=give_mean and representation != "sample",
            mc_samples=mc_samples,
            batch_size=batch_size,
            return_dist=return_dist,
            dataloader=dataloader,
            **data_loader_kwargs,
        )
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
        indices: Sequence[int] | np.ndarray | None = None,
        batch_size: int | None = None,
        dof: float | None = 3.0,
    ) -> Distribution:
        """Mixture of the cells' posteriors.

        Parameters
        ----------
        adata
            The cells, with the genes of the training data; the training data by default.
        indices
            Positions of the cells, or a Boolean mask; all by default.
        batch_size
            Cells at a time; ``scvi.settings.batch_size`` by default.
        dof
            Continuous codes only: degrees of freedom of the Student components, Normal if
            ``None``. Bits mix their own posteriors.
        """
        self._check_if_trained(warn=False)
        adata = self._validate_anndata(adata)
        empty = indices is None or len(indices) == 0
        cells = np.arange(adata.n_obs) if empty else which_cells(adata.n_obs, indices)
        mean, variance = (
            torch.as_tensor(x, device=self.device)
            for x in self.get_latent_representation(
                adata, cells, batch_size=batch_size, return_dist=True
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
        """Importance weights of ``zs`` under the prior; arguments as in RNASeqMixin."""
        n = len(indices)
        anchors = np.arange(n)
        if n > max_cells:
            anchors = np.sort(np.random.choice(n, size=max_cells, replace=False))
        anchor_cells = np.asarray(indices)[anchors]
        log_px = self.get_marginal_ll(
            adata,
            indices=anchor_cells,
            return_mean=False,
            n_mc_samples=n_mc_samples,
            n_mc_samples_per_pass=n_mc_samples_per_pass,
        )
        zs = zs.cpu()
        log_pz = self.module.prior.log_prob(zs.to(self.device)).cpu().reshape(-1, 1)
        rows = torch.from_numpy(anchors)
        anchored = type(qz)(
            **{k: getattr(qz, k).cpu()[rows] for k in qz.arg_constraints}, validate_args=False
        )
        log_qz = anchored.log_prob(zs.unsqueeze(-2)).sum(-1).reshape(-1, len(anchors))
        log_px_z = torch.cat(
            [
                _log_likelihood(px, tensors[REGISTRY_KEYS.X_KEY].cpu()).reshape(-1, 1)
                for tensors in self._make_data_loader(
                    adata=self._validate_anndata(adata),
                    indices=anchor_cells,
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


def _log_likelihood(px: Distribution, x: Tensor) -> Tensor:
    """``log p(x | z)`` of one cell's counts under every decoded draw, at that cell's depth."""
    at_depth = copy.copy(px)
    for mean in ("mu", "rate"):  # negative binomials and Poisson; a Normal has no depth
        if mean in vars(px):
            setattr(at_depth, mean, px.scale * x.sum(-1))
    return at_depth.log_prob(x).sum(-1)
