"""The quantum annealer: its budget of processor time, and access tokens that nobody may see."""

import copy
import pickle
import warnings

import dwave.cloud.exceptions as cloud
import pytest
import torch
from helpers import seeded
from qpu_helpers import (
    ACCESS,
    QUIET,
    MockChip,
    kept_elsewhere,  # noqa: F401  (a fixture)
    make_rbm,
    tiny_model,
)

from scqbm.samplers import QPUSampler

pytestmark = pytest.mark.usefixtures("kept_elsewhere")
TOKEN = "DEV-0123456789abcdef0123456789abcdef01234567"


# -- budget -------------------------------------------------------------------------------------


def test_the_budget_is_kept_and_survives_a_resume():
    rbm, cap = make_rbm(2, 2), 5.5 * ACCESS
    chip = MockChip()
    sampler = QPUSampler(chip, max_qpu_time=cap, adapt=False)
    state, where = None, []
    with pytest.warns(UserWarning, match="max_qpu_time.*GibbsSampler draws from now on") as said:
        for i in range(60):
            draws = sampler.sample(rbm, 16, state, seeded(i))
            state = draws.state
            where.append(draws.info["on_qpu"])
    assert len(said) == 1
    assert where == [1] * 5 + [0] * 55 and len(chip.asked) == 5
    assert sampler.qpu_seconds == pytest.approx(5 * ACCESS)
    assert state["qpu_seconds"].item() == sampler.qpu_seconds
    resumed = QPUSampler(MockChip(), max_qpu_time=cap, adapt=False)
    with pytest.warns(UserWarning, match="max_qpu_time"):
        resumed.sample(rbm, 16, {**state, "rest": 0, "qpu_seconds": torch.tensor(cap)}, seeded(0))
    assert not resumed._chip.child.asked


# -- tokens -------------------------------------------------------------------------------------


class Client:
    def __init__(self, token):
        self.token = token


def cloud_sampler(monkeypatch, **kwargs):
    def connect(token=None, **config):
        chip = MockChip(**kwargs)
        chip.client = Client(token)
        return chip

    monkeypatch.setattr("dwave.system.DWaveSampler", connect)
    return QPUSampler.from_cloud(solver="Advantage2", token=TOKEN, retries=0)


def test_tokens_are_nowhere(monkeypatch, tmp_path):
    error = ConnectionError(f"403 for header X-Auth-Token: {TOKEN}")
    sampler = cloud_sampler(monkeypatch, faults=[None, None, None, error] + [error] * 99)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = tiny_model()
        model.train(
            2, sampler=sampler, enable_checkpointing=True, default_root_dir=tmp_path, **QUIET
        )
    said = [str(w.message) for w in caught]
    assert any("[token]" in text for text in said)
    places = [repr(sampler), str(vars(sampler)), *said, str(model), str(model.init_params_)]
    secret = TOKEN.split("-")[1]
    assert not any(secret in place for place in places)
    for copied in (copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))):
        assert secret.encode() not in pickle.dumps(copied)
        with pytest.raises(RuntimeError, match="must not carry access tokens"):
            copied.sample(make_rbm(2, 2), 5)
    model.save(tmp_path / "model")
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) > 1
    assert not any(secret.encode() in file.read_bytes() for file in files)


def test_a_failed_connection_does_not_show_the_token(monkeypatch):
    def refuse(**config):
        raise cloud.SolverAuthenticationError(f"invalid token {config['token']}")

    monkeypatch.setattr("dwave.system.DWaveSampler", refuse)
    with pytest.raises(ConnectionError, match=r"invalid token \[token\]") as caught:
        QPUSampler.from_cloud(token="secret")
    assert "secret" not in str(caught.value) and caught.value.__cause__ is None
    assert caught.value.__suppress_context__
