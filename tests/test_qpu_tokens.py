"""The quantum annealer: access tokens, which nobody may see."""

import copy
import pickle
import warnings

import dimod
import dwave.cloud.exceptions as cloud
import pytest
from helpers import assert_hidden, assert_one_sentence, seeded
from qpu_helpers import (
    QUIET,
    MockChip,
    make_rbm,
    tiny_model,
)

from scqbm.samplers import DimodSampler, QPUSampler, SamplerError, ask
from scqbm.samplers.ocean import _chip

pytestmark = pytest.mark.usefixtures("kept_elsewhere")
TOKEN = "DEV-0123456789abcdef0123456789abcdef01234567"


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


SECRET = "plain-words-as-a-token"  # which no pattern can tell from other words


def leaky(error, n_good=0, **kwargs):
    """A sampler with a token in its client, and an error that shows it at some question."""
    chip = MockChip(faults=[None] * n_good + [error] * 99)
    chip.client = Client(f" {SECRET}\n")
    return QPUSampler(chip, retries=0, adapt=False, **kwargs)


def from_another(error):
    error.__cause__ = OSError(f"header {SECRET}")
    return error


ERRORS = {
    "not D-Wave's": lambda: ValueError(f"X-Auth-Token: {SECRET}"),
    "D-Wave's": lambda: cloud.SolverError(f"X-Auth-Token: {SECRET}"),
    "its cause": lambda: from_another(ValueError("refused")),
    "a fault's cause": lambda: from_another(ConnectionError("refused")),
}


@pytest.mark.parametrize("error", ERRORS)
def test_no_token_leaves_with_an_error(error):
    made = ERRORS[error]()
    with pytest.raises(SamplerError, match="^`sampler` QPUSampler failed at step 0: ") as caught:
        ask(leaky(made, fallback="raise"), make_rbm(2, 2), 5, None, seeded(0), " at step 0")
    assert_hidden(caught.value, SECRET)
    assert_one_sentence(caught.value)
    with pytest.raises(Exception, match="token|refused") as caught:  # not through the door
        leaky(made, fallback="raise").sample(make_rbm(2, 2), 5, None, seeded(0))
    assert_hidden(caught.value, SECRET)


@pytest.mark.parametrize("error", ERRORS)
def test_no_token_leaves_a_training(error):
    sampler = leaky(ERRORS[error](), n_good=3, fallback="raise")
    with pytest.raises(SamplerError, match="failed at step 3: .*keeps its training") as caught:
        tiny_model().train(2, sampler=sampler, **QUIET)
    assert_hidden(caught.value, SECRET)


def test_no_token_leaves_with_another_oceans_sampler():
    sampler = DimodSampler(dimod.StructureComposite(leaky_child(), [0, 1], [(0, 1)]))
    assert SECRET in {str(secret).strip() for secret in sampler.secrets()}
    with pytest.raises(SamplerError, match=r"\[token\]") as caught:
        ask(sampler, make_rbm(1, 1), 5)
    assert_hidden(caught.value, SECRET)


def leaky_child():
    chip = MockChip(faults=[ValueError(f"X-Auth-Token: {SECRET}")])
    chip.client = Config(SECRET)
    return chip


class Config:
    """The present client, whose token is part of its configuration."""

    def __init__(self, token):
        self.config = Client(token)


def test_the_fallbacks_secrets_are_secrets_too():
    inner = QPUSampler(leaky_child())
    outer = QPUSampler(MockChip(faults=[TimeoutError()] * 9), fallback=inner, retries=0)
    assert SECRET in outer.secrets()
    with pytest.warns(UserWarning), pytest.raises(SamplerError, match=r"\[token\]") as caught:
        ask(outer, make_rbm(2, 2), 5)
    assert_hidden(caught.value, SECRET)


@pytest.mark.parametrize(
    "token", [f" {SECRET}\n", f"{SECRET}\r\n", SECRET], ids=["spaces", "newline", "bare"]
)
def test_a_failed_connection_does_not_show_a_token_from_a_file(monkeypatch, token):
    def refuse(**config):
        try:
            raise OSError(f"header {config['token']!r}")
        except OSError as error:
            raise cloud.SolverAuthenticationError(f"invalid: {config['token'].strip()}") from error

    monkeypatch.setattr("dwave.system.DWaveSampler", refuse)
    with pytest.raises(ConnectionError, match=r"connect \(invalid: \[token\]\)") as caught:
        QPUSampler.from_cloud(token=token)
    assert_hidden(caught.value, SECRET)
    assert caught.value.__context__ is None


def test_an_outage_keeps_nothing_of_the_clients_error():
    sampler = leaky(ConnectionError(f"X-Auth-Token: {SECRET}"), fallback="raise")
    with pytest.raises(_chip.Outage, match=r"\[token\]") as caught:
        sampler.sample(make_rbm(2, 2), 5, None, seeded(0))
    assert_hidden(caught.value, SECRET)
    assert caught.value.__context__ is None
