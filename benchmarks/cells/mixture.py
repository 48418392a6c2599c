"""SCVI with a Gaussian mixture on its codes: what a prior that is fitted after training gives."""

import numpy as np
from scvi.model import SCVI
from sklearn.mixture import GaussianMixture

from scqbm.model import decode, random_cells

COMPONENTS = (10, 20, 40)  # the best by the Bayesian information criterion


class MixtureSCVI(SCVI):
    """New cells come from the mixture instead of N(0, I); all else is SCVI."""

    def sample_cells(self, n, seed=0):
        mean, variance = self.get_latent_representation(
            indices=self.train_indices, return_dist=True
        )
        rng = np.random.default_rng(seed)
        codes = mean + np.sqrt(variance) * rng.standard_normal(mean.shape)
        fits = [
            GaussianMixture(k, covariance_type=kind, reg_covar=1e-4, random_state=seed).fit(codes)
            for k in COMPONENTS
            for kind in ("full", "diag")
        ]
        best = min(fits, key=lambda fit: fit.bic(codes))
        drawn, _ = best.sample(n)
        return decode(self, rng.permutation(drawn), random_cells(self, n, seed), seed=seed)
