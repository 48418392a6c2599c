"""Priors over the latent code: what the loss and the negative phase know of them, and the RBM."""

from scqbm.prior._base import Prior
from scqbm.prior._rbm import RBMPrior

__all__ = ["Prior", "RBMPrior"]
