"""What QBMVI says about its prior: energies, log Z, draws of codes and of cells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from anndata import AnnData

from scqbm.decoding import decode, random_cells
from scqbm.partition import LogPartition, log_partition
from scqbm.samplers import ExactSampler, GibbsSampler, Sampler


class BoltzmannPriorMixin:
    """Methods of a model whose module has a :class:`~scqbm.prior.RBMPrior` as ``prior``."""

    def get_log_partition(
        self, n_chains: int = 2000, n_steps: int = 1000, seed: int = 0
    ) -> LogPartition:
        """``log Z`` of the prior and its standard error.

        Exact (error 0) if the RBM's smaller layer of bits has at most 20 units, else by annealed
        importance sampling.

        Parameters
        ----------
        n_chains, n_steps
            Size of the annealed estimate.
        seed
            Seed of the estimate.
        """
        rbm = self._rbm()
        generator = torch.Generator(device=rbm.W.device).manual_seed(seed)
        return log_partition(rbm, n_chains, n_steps, max_exact_units=20, generator=generator)

    @torch.inference_mode()
    def get_prior_energy(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> np.ndarray:
        """Expected energy of each cell's code under the prior: low where the prior is dense.

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`get_latent_representation`.
        """
        self._check_if_trained(warn=False)
        adata = self._validate_anndata(adata)
        loader = self._make_data_loader(adata=adata, indices=indices, batch_size=batch_size)
        energies = []
        for tensors in loader:
            outputs = self.module.inference(**self.module._get_inference_input(tensors))
            energies.append(self.module.prior.expected_energy(outputs["qz"], outputs["z"]).cpu())
        return torch.cat(energies).numpy()

    @torch.no_grad()
    def sample_prior(
        self, n_samples: int = 1000, sampler: Sampler | None = None, seed: int = 0
    ) -> np.ndarray:
        """Codes drawn from the prior, shape ``(n_samples, n_latent)``.

        Parameters
        ----------
        n_samples
            How many.
        sampler
            By default exact where the prior is small enough, else annealed block Gibbs chains.
        seed
            Seed of the draws.
        """
        if n_samples < 1:
            raise ValueError(f"`n_samples` must be at least 1, not {n_samples}.")
        rbm = self._rbm()
        if sampler is None:
            small = min(rbm.n_hidden, rbm.n_hidden if rbm.gaussian else rbm.n_visible) <= 16
            sampler = ExactSampler() if small else GibbsSampler(n_sweeps=1000, n_anneal=1000)
        generator = torch.Generator(device=rbm.W.device).manual_seed(seed)
        draws = sampler.sample(rbm, n_samples, None, generator)
        code = [draws.visible, draws.hidden] if self.module.prior.in_halves else [draws.visible]
        code = torch.cat(code, -1)
        weights = draws.weights
        if weights is not None and not torch.allclose(weights, weights.mean()):
            code = code[torch.multinomial(weights, n_samples, True, generator=generator)]
        return code.cpu().numpy()

    def sample_cells(
        self,
        n_samples: int = 1000,
        *,
        batch: str | None = None,
        library_size: float | None = None,
        sampler: Sampler | None = None,
        seed: int = 0,
    ) -> AnnData:
        """Cells that exist nowhere: codes drawn from the prior, counts from the decoder.

        Parameters
        ----------
        n_samples
            How many.
        batch
            Category of the batch of all cells. By default the batch, with the depth and any
            covariates, of random training cells.
        library_size
            Total count that all cells are drawn at, by default those of the same cells.
        sampler
            Where the codes come from, see :meth:`sample_prior`.
        seed
            Seed of the draws.

        Returns
        -------
        Counts in ``X``, codes in ``obsm["code"]``.
        """
        self._check_if_trained(warn=False)
        codes = self.sample_prior(n_samples, sampler, seed)
        like = random_cells(self, n_samples, seed)
        return decode(self, codes, like, batch=batch, library_size=library_size, seed=seed)

    def _rbm(self):
        if self.module is None:
            raise RuntimeError("The model has no prior yet: call train(datamodule=...) first.")
        return self.module.prior.rbm()
