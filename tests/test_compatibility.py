"""Nothing moves under the user: seeded runs give the numbers that they gave before.

The models in ``saved_models/`` were saved by commit 2620093 after exactly the training below, and
``SAVED`` holds what it said of them. ``SEEDED`` is of the first commit whose mixing penalty
follows the KL (bits) or of the first with fast likelihoods (continuous codes),
and ``"default"`` of the first with hidden units by default. All is of
scvi-tools 1.4.2 and torch 2.13.0 on one thread; other releases may differ in the last digits.
"""

from pathlib import Path

import numpy as np
import pytest
import scvi
import torch

from scqbm import QBMVI
from scqbm.data import simulate
from scqbm.samplers import GibbsSampler, TemperingSampler

MODELS = Path(__file__).parent / "saved_models"
ARGUMENTS = {
    "bits": {"n_latent": 10, "n_prior_hidden": 0},
    "hidden": {"n_latent": 9, "n_prior_hidden": 6},
    "normal": {"latent_distribution": "normal", "n_latent": 5, "n_prior_hidden": 4},
    "default": {},
    "zephyr": {"n_latent": 60, "prior_topology": "zephyr"},
}
# code of the first cell (first four units), log Z, sum of |couplings|
SAVED = {
    "bits": {
        "code": [0.03742394596338272, 0.8438006639480591, 0.3632458746433258, 0.472810298204422],
        "log_z": 6.93426513671875,
        "couplings": 0.20757819712162018,
    },
    "normal": {
        "code": [-1.248664140701294, 0.7224555015563965, -0.2222890555858612, -0.4291195571422577],
        "log_z": 7.369913101196289,
        "couplings": 0.23407822847366333,
    },
    "zephyr": {
        "code": [0.06898457556962967, 0.7566184997558594, 0.4734306037425995, 0.36029696464538574],
        "log_z": 41.5892448425293,
        "couplings": 3.231198787689209,
    },
}
# the same, and ELBO, sum of prior draws
SEEDED = {
    "bits": {
        "code": [0.056240067, 0.825282693, 0.425798565, 0.470644116],
        "log_z": 6.934848785,
        "couplings": 0.194636807,
        "elbo": -166.406982422,
        "draws": 260.0,
    },
    "hidden": {
        "code": [0.095800579, 0.801891923, 0.52052331, 0.321727604],
        "log_z": 10.406316757,
        "couplings": 0.397908568,
        "elbo": -165.660873413,
        "draws": 223.0,
    },
    "normal": {
        "code": [-1.248663783, 0.722454906, -0.222289249, -0.429118812],
        "log_z": 7.369913101,
        "couplings": 0.234078228,
        "elbo": -164.911590576,
        "draws": -29.026786804,
    },
    "default": {
        "code": [0.106100932, 0.745549321, 0.424446762, 0.463942111],
        "log_z": 133.120834351,
        "couplings": 67.042968750,
        "elbo": -178.893447876,
        "draws": 3208.0,
    },
    "zephyr": {
        "code": [0.098576494, 0.805091858, 0.494810283, 0.326318055],
        "log_z": 41.586585999,
        "couplings": 3.235508442,
        "elbo": -175.21182251,
        "draws": 1481.0,
    },
}


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def cells():
    return simulate(n_cells=240, n_genes=30, n_types=3, n_batches=2, seed=0)


def trained(name):
    adata = cells()
    scvi.settings.seed = 0
    QBMVI.setup_anndata(adata, batch_key="batch")
    model = QBMVI(adata, n_hidden=16, **ARGUMENTS[name])
    # five sweeps: the default of those days
    sampler = TemperingSampler(n_start=20) if name == "hidden" else GibbsSampler(5)
    quiet = {"accelerator": "cpu", "batch_size": 64, "enable_progress_bar": False}
    plan = {} if name == "default" else {"prior_lr": 1e-3}  # the rate of those days
    model.train(3, sampler=sampler, plan_kwargs=plan, **quiet)
    return model


def numbers(model):
    prior = model.module.prior
    return {
        "code": model.get_latent_representation()[0, :4].tolist(),
        "log_z": prior.log_z.item(),
        "couplings": prior.coupling.detach().abs().sum().item(),
        "elbo": float(model.get_elbo()),
        "draws": float(model.sample_prior(50, seed=1).sum()),
    }


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_seeded_run_gives_the_old_numbers(name, one_thread):
    now = numbers(trained(name))
    for key, then in SEEDED[name].items():
        np.testing.assert_allclose(now[key], then, rtol=1e-5, err_msg=key)


@pytest.mark.parametrize("name", SAVED)
def test_a_model_saved_by_the_old_code_loads(name, one_thread):
    model = QBMVI.load(MODELS / name, cells(), accelerator="cpu")
    now = numbers(model)
    for key, then in SAVED[name].items():
        np.testing.assert_allclose(now[key], then, rtol=1e-6, err_msg=key)
    assert np.isfinite(model.get_prior_energy()).all()
    model.train(1, accelerator="cpu", enable_progress_bar=False)
    assert model.is_trained
