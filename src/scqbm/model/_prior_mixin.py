"""What a model says about its prior: energies and log Z; new cells come from the base class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import torch
from anndata import AnnData
from torch import Tensor

from scqbm._checks import one_of, which_cells, whole
from scqbm.ising import LogPartition
from scqbm.model._conditions import most_probable
from scqbm.model._new_cells_mixin import NewCellsMixin


class BoltzmannPriorMixin(NewCellsMixin):
    """Methods of a model whose module has a :class:`~scqbm.prior.Prior` as ``prior``."""

    def get_log_partition(
        self, n_chains: int = 2000, n_steps: int = 1000, seed: int = 0
    ) -> LogPartition:
        """``log Z`` of the prior and its standard error.

        Exact (error 0) if the RBM's smaller layer of bits has at most 20 units, else by annealed
        importance sampling.

        Parameters
        ----------
        n_chains
            Chains of the annealed estimate, at least 2.
        n_steps
            Steps of each chain, at least 1.
        seed
            Seed of the estimate.
        """
        whole("n_chains", n_chains, 2)
        whole("n_steps", n_steps, 1)
        prior = self._prior()
        generator = torch.Generator(device=prior.log_z.device).manual_seed(seed)
        return prior.log_partition(n_chains, n_steps, generator)

    @torch.inference_mode()
    def get_prior_energy(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        batch_size: int | None = None,
        dataloader: Iterable[dict[str, Tensor]] | None = None,
        *,
        n_samples: int = 100,
        relative: bool = False,
        kind: Literal["energy", "csp"] = "energy",
        return_error: bool = False,
        seed: int = 0,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Expected energy of each cell's code under the prior: low where such codes are common.

        Exact for bits whose two halves are the layers of the RBM, else an average
        over draws of each cell's code. An energy has no zero of its own: only differences between
        cells of one model mean something, unless ``relative=True``.

        Parameters
        ----------
        adata
            The cells, with the genes of the training data; the training data by default.
        indices
            Positions of the cells, or a Boolean mask; all by default.
        batch_size
            Cells at a time; ``scvi.settings.batch_size`` by default.
        dataloader
            Minibatches in the place of ``adata``, as dictionaries of tensors.
        n_samples
            Draws of each cell's code, where the expectation is not exact.
        relative
            Return the expected ``log p(z)`` instead: minus the energy, less ``log Z`` of
            :meth:`get_log_partition`. High where such codes are common, and comparable between
            models with the same kind of code.
        kind
            ``"energy"``, or ``"csp"``: the energy of each cell's most probable code, in the place
            of the expectation. The authors of the QBM-VAE (arXiv 2508.11190) call it the cellular
            system potential.
        return_error
            Also return the standard error of each energy, which is 0 where they are exact.
        seed
            Seed of the draws.
        """
        whole("n_samples", n_samples, 2 if return_error else 1)
        one_of("kind", kind, ("energy", "csp"))
        self._check_if_trained(warn=False)
        energies, errors = [], []
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for tensors in self._minibatches(adata, indices, batch_size, dataloader):
                outputs = self.module.inference(**self.module._get_inference_input(tensors))
                if kind == "csp":
                    of_batch = self.module.prior.energy(most_probable(outputs["qz"]))
                    its_error = torch.zeros_like(of_batch)
                else:
                    of_batch, its_error = self._expected_energy(outputs, n_samples)
                energies.append(of_batch.cpu())
                errors.append(its_error.cpu())
        energy, error = torch.cat(energies).numpy(), torch.cat(errors).numpy()
        if relative:
            log_z = self.get_log_partition(seed=seed)
            energy, error = -energy - log_z.value, np.hypot(error, log_z.error)
        return (energy, error) if return_error else energy

    def _expected_energy(self, outputs: dict, n_samples: int) -> tuple[Tensor, Tensor]:
        qz, prior = outputs["qz"], self.module.prior
        if prior.expectation_is_exact:
            energy = prior.expected_energy(qz, outputs["z"])
            return energy, torch.zeros_like(energy)
        draws = torch.stack([prior.energy(qz.sample()) for _ in range(n_samples)])
        return draws.mean(0), draws.std(0, correction=min(1, n_samples - 1)) / n_samples**0.5

    def _minibatches(
        self,
        adata: AnnData | None,
        indices: Sequence[int] | np.ndarray | None,
        batch_size: int | None,
        dataloader: Iterable[dict[str, Tensor]] | None,
    ) -> Iterable[dict[str, Tensor]]:
        """The cells that a method was asked for, by whichever way."""
        if dataloader is not None:
            if adata is not None or indices is not None:
                raise ValueError("`dataloader` stands for all cells: leave `adata` and `indices`.")
            return dataloader
        self._need_cells("dataloader")
        adata = self._validate_anndata(adata)
        cells = None if indices is None else which_cells(adata.n_obs, indices)
        return self._make_data_loader(adata=adata, indices=cells, batch_size=batch_size)
