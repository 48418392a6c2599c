"""Priors over the latent code: what the loss and the negative phase know of them, RBMs."""

from scqbm.prior._base import Prior
from scqbm.prior._labelled import LabelledPrior
from scqbm.prior._rbm import RBMPrior
from scqbm.prior._transverse import TransverseFieldPrior

__all__ = ["LabelledPrior", "Prior", "RBMPrior", "TransverseFieldPrior"]
