"""Models to train, and eyes on what training does."""

import scvi
import torch
from lightning.pytorch.callbacks import Callback

from scqbm import QBMVI
from scqbm.samplers import ExactSampler, Sampler

QUIET = {
    "accelerator": "cpu",
    "batch_size": 32,
    "enable_progress_bar": False,
    "train_size": 0.8,
    "validation_size": 0.2,
}
N_STEPS = 5  # an epoch of 160 training cells
FAMILIES = [
    {"latent_distribution": "bernoulli", "n_prior_hidden": 0},
    {"latent_distribution": "bernoulli", "n_prior_hidden": 5},
    {"latent_distribution": "normal", "n_prior_hidden": 5},
    {"latent_distribution": "bernoulli", "n_prior_hidden": 5, "prior": "quantum"},
]


def make(adata, seed=0, **kwargs):
    scvi.settings.seed = seed
    QBMVI.setup_anndata(adata, batch_key="batch")
    return QBMVI(adata, **{"n_latent": 8, "n_hidden": 16, **kwargs})


class Counting(Sampler):
    """Passes queries on, and remembers them."""

    def __init__(self, inner=None):
        self.inner = ExactSampler() if inner is None else inner
        self.couplings, self.states, self.draws = [], [], []

    def sample(self, rbm, n_draws, state=None, generator=None):
        self.couplings.append(rbm.W.clone())
        self.states.append(state)
        self.draws.append(self.inner.sample(rbm, n_draws, state, generator))
        return self.draws[-1]


class Watch(Callback):
    """Calls ``look(pl_module)`` at one hook and keeps the answers."""

    def __init__(self, hook, look):
        self.seen = []
        setattr(self, hook, lambda trainer, plan, *_: self.seen.append(look(plan)))


def coupling(model):
    return model.module.prior.coupling.detach().clone()


def state_of(model):
    return {k: v.clone() for k, v in model.module.state_dict().items()}


def assert_same_state(a, b):
    for key, value in a.items():
        assert torch.equal(value, b[key]), key
