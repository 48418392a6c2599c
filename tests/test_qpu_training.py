"""The quantum annealer in training, on mock chips and on a real one if there is a token."""

import functools
import os
import warnings

import dwave.cloud.exceptions as cloud
import numpy as np
import pytest
from helpers import seeded
from qpu_helpers import (
    ACCESS,
    QUIET,
    MockChip,
    annealed,
    later,
    make_rbm,
    partial,
    shattered,
    shuffled,
    tiny_model,
)

from scqbm.samplers import QPUSampler

pytestmark = pytest.mark.usefixtures("kept_elsewhere")
FAMILIES = {
    "BITS": {},
    "NORMAL": {"latent_distribution": "normal", "n_latent": 4, "n_prior_hidden": 10},  # has chains
}


@functools.cache
def losses(family, fault=None):
    """Loss and reconstruction loss by epoch, what the sampler said, and how often it asked."""
    faults, kwargs = FAULTS.get(fault, ([], {}))
    chip = MockChip(faults=faults, **(annealed() if family == "NORMAL" else {}))
    sampler, model = QPUSampler(chip, retry_every=3, **kwargs), tiny_model(**FAMILIES[family])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.train(6, sampler=sampler, **QUIET)
    said = [str(w.message) for w in caught if w.filename.endswith("_qpu.py")]
    curves = [model.history[name].to_numpy(float)[:, 0] for name in CURVES]
    return curves, said, len(chip.asked)


CURVES = ("train_loss", "reconstruction_loss_train")


def from_the_seventh(fault):
    return [None] * 6 + [fault] * 1000


FAULTS = {
    "timeout": (from_the_seventh(TimeoutError()), {}),
    "5xx": (from_the_seventh(later(cloud.SolverError("busy", error_code=503))), {}),
    "partial": (from_the_seventh(partial), {"retries": 1}),
    "order": (from_the_seventh(shuffled), {}),
    "chains": (from_the_seventh(shattered), {}),
    "cap": ([], {"max_qpu_time": 8.5 * ACCESS}),
    "passing": ([None] * 6 + [TimeoutError()] * 2, {}),
}


@pytest.mark.parametrize(
    ("fault", "family", "message"),
    [
        ("timeout", "BITS", "does not answer"),
        ("5xx", "BITS", "does not answer"),
        ("partial", "BITS", "fewer reads than asked"),
        ("order", "BITS", None),
        ("chains", "NORMAL", "of the chains"),
        ("cap", "BITS", "max_qpu_time"),
        ("passing", "BITS", None),
    ],
)
def test_training_survives(fault, family, message):
    (loss, reconstruction), said, n_asked = losses(family, fault)
    assert len(said) == (message is not None) and all(message in text for text in said)
    assert n_asked > 6
    # the curve goes on as if nothing had happened
    (clean, _), nothing, _ = losses(family)
    assert not nothing and len(loss) == len(clean) == 6
    np.testing.assert_allclose(loss, clean, rtol=0.01)
    assert reconstruction[-1] < reconstruction[0]


# -- the same on a real processor ---------------------------------------------------------------


@pytest.fixture(
    scope="module", params=["mock", pytest.param("hardware", marks=pytest.mark.hardware)]
)
def processor(request):
    if request.param == "mock":
        return MockChip("zephyr", 6, **annealed())
    if not os.environ.get("DWAVE_API_TOKEN"):
        pytest.skip("no DWAVE_API_TOKEN")
    from dwave.system import DWaveSampler

    return DWaveSampler()


def test_processor_draws_near_temperature_one(processor):
    sampler = QPUSampler(processor, max_qpu_time=5.0)
    for rbm in (make_rbm(4, 4), make_rbm(16, 16, 0.3), make_rbm(3, 8, gaussian=True)):
        state = None
        for i in range(5):
            draws = sampler.sample(rbm, 200, state, seeded(i))
            state = draws.state
            assert draws.info["on_qpu"] == 1
        assert draws.info["beta"] == pytest.approx(1, abs=0.25)
        assert draws.info["chain_break_fraction"] < 0.1
        layers = (draws.visible, draws.hidden)
        assert all(((x == 0) | (x == 1)).all() for x in layers[rbm.gaussian :])


def test_processor_trains(processor):
    sampler, model = QPUSampler(processor, max_qpu_time=5.0), tiny_model()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*does not answer.*")
        model.train(2, sampler=sampler, **QUIET)
    assert sampler.qpu_seconds > 0
    assert np.isfinite(model.get_elbo())
