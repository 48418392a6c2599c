"""The one door to samplers: it takes valid draws only, and it shows no secret."""

import numpy as np
import pytest
import torch
from helpers import assert_hidden, assert_one_sentence, assert_same, seeded, tiny_rbm

from scqbm.samplers import Draws, ExactSampler, Sampler, SamplerError, ask, check_sampler

N = 16
SECRET = "correct-horse-battery"


class Answering(Sampler):
    """Exact draws that were changed by hand, or another answer, or an error."""

    def __init__(self, change):
        self.change = change

    def sample(self, rbm, n_draws, state=None, generator=None):
        return self.change(ExactSampler().sample(rbm, n_draws, state, generator))

    def secrets(self):
        return [f" {SECRET}\n", None]


def changed(**parts):
    """Replaces parts of the draws."""

    def change(draws):
        for name, part in parts.items():
            setattr(draws, name, part(getattr(draws, name)) if callable(part) else part)
        return draws

    return change


def raising(error, cause=None, context=None):
    def change(draws):
        try:
            if context is not None:
                raise context
        except Exception:
            raise error from cause
        raise error from cause

    return change


WRONG = {
    "nothing": (lambda draws: None, "NoneType instead of scqbm.samplers.Draws"),
    "a class": (lambda draws: Draws, "type instead of scqbm.samplers.Draws"),
    "a pair": (lambda d: (d.visible, d.hidden), "tuple instead of scqbm.samplers.Draws"),
    "no visible": (changed(visible=None), "visible draws of type NoneType instead"),
    "no hidden": (changed(hidden=None), "hidden draws of type NoneType instead of"),
    "list": (changed(hidden=lambda h: h.tolist()), "hidden draws of type list instead"),
    "numpy": (changed(hidden=lambda h: h.numpy()), "hidden draws of type ndarray"),
    "a row": (changed(hidden=lambda h: h[0]), r"hidden draws of shape \(2,\) instead of"),
    "narrow": (
        changed(hidden=lambda h: h[:, 1:]),
        r"hidden draws of shape \(16, 1\) instead of \(n_draws, 2\)",
    ),
    "wide": (
        changed(visible=lambda v: v.repeat(1, 2)),
        r"visible draws of shape \(16, 6\) instead",
    ),
    "swapped": (lambda d: Draws(d.hidden, d.visible), r"visible draws of shape \(16, 2\)"),
    "empty": (changed(hidden=lambda h: h[:0]), r"hidden draws of shape \(0, 2\)"),
    "fewer": (changed(hidden=lambda h: h[1:]), "15 hidden draws beside 16 visible ones"),
    "nan": (changed(hidden=lambda h: h.log().sqrt() - h.log().sqrt()), "NaN or infinite"),
    "infinite": (changed(hidden=lambda h: h / 0), "NaN or infinite values"),
    "spins": (changed(hidden=lambda h: 2 * h - 1), "values other than 0 and 1"),
    "twos": (changed(hidden=lambda h: (2 * h).int()), "values other than 0 and 1"),
    "complex": (changed(hidden=lambda h: h + 0j), "hidden draws that are complex"),
    "numpy weights": (changed(weights=np.ones(N)), "weights of type ndarray instead"),
    "list weights": (changed(weights=[1.0] * N), "weights of type list instead of"),
    "few weights": (changed(weights=torch.ones(3)), r"weights of shape \(3,\) for 16 draws"),
    "table": (changed(weights=torch.ones(N, 1)), r"weights of shape \(16, 1\) for 16 draws"),
    "one weight": (changed(weights=torch.tensor(1.0)), r"weights of shape \(\) for 16 draws"),
    "no weight": (changed(weights=torch.zeros(N)), "weights that are negative, not finite or all"),
    "negative": (changed(weights=-torch.ones(N)), "weights that are negative, not finite or all"),
    "nan weights": (
        changed(weights=torch.full((N,), torch.nan)),
        "weights that are negative, not finite or all",
    ),
    "complex weights": (changed(weights=torch.ones(N) + 0j), "weights that are complex"),
    "no state": (changed(state=None), "state of type NoneType instead of dict"),
    "state": (changed(state=lambda s: torch.ones(3)), "state of type Tensor instead of"),
    "no info": (changed(info=None), "info of type NoneType instead of dict"),
    "info": (changed(info=[1.0]), "info of type list instead of dict"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_answer_is_one_sentence(wrong):
    change, message = WRONG[wrong]
    with pytest.raises(SamplerError, match=f"^`sampler` Answering returned {message}") as caught:
        ask(Answering(change), tiny_rbm("bits"), N, None, seeded(0), " at step 3")
    assert "at step 3" in str(caught.value)
    assert_one_sentence(caught.value)
    assert caught.value.__cause__ is None


def test_gaussian_units_may_be_any_number_but_their_bits_may_not():
    rbm = tiny_rbm("gaussian")
    ask(Answering(changed(visible=lambda v: 10 * v)), rbm, N)
    for change in (changed(visible=lambda v: v / 0), changed(hidden=lambda h: h - 0.5)):
        with pytest.raises(SamplerError, match="returned NaN or infinite|other than 0 and 1"):
            ask(Answering(change), rbm, N)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float16, torch.float64])
def test_draws_come_in_the_precision_of_the_rbm(dtype):
    rbm = tiny_rbm("bits")
    plain = ask(ExactSampler(), rbm, N, None, seeded(0))
    weights = torch.arange(N) % 2
    change = changed(
        visible=lambda v: v.to(dtype), hidden=lambda h: h.to(dtype), weights=weights.to(dtype)
    )
    draws = ask(Answering(change), rbm, N, None, seeded(0))
    assert_same(draws, plain)
    parts = (draws.visible, draws.hidden, draws.weights)
    assert all(part.dtype == rbm.W.dtype for part in parts)
    torch.testing.assert_close(draws.weights / draws.weights.sum(), weights / weights.sum())


def test_small_weights_survive_a_change_of_precision():
    weights = torch.full((N,), 1e-200, dtype=torch.float64)  # zero in single precision
    draws = ask(Answering(changed(weights=weights)), tiny_rbm("bits"), N)
    torch.testing.assert_close(draws.weights, torch.full((N,), 1 / N))


def test_the_sampler_cannot_change_the_rbm():
    rbm = tiny_rbm("bits")
    before = rbm.W.clone()

    class Vandal(Sampler):
        def sample(self, rbm, n_draws, state=None, generator=None):
            rbm.W.zero_()
            return ExactSampler().sample(rbm, n_draws, state, generator)

    ask(Vandal(), rbm, N)
    assert torch.equal(rbm.W, before)


# -- errors and secrets --------------------------------------------------------------------------


def test_the_cause_is_the_samplers_own_error():
    own = ValueError("the lab is closed.")
    with pytest.raises(
        SamplerError, match="^`sampler` Answering failed: the lab is closed.$"
    ) as e:
        ask(Answering(raising(own)), tiny_rbm("bits"), N)
    assert e.value.__cause__ is own
    with pytest.raises(SamplerError, match="^`sampler` Answering failed: KeyError.$"):
        ask(Answering(raising(KeyError())), tiny_rbm("bits"), N)


def noted(error):
    error.add_note(f"sent with {SECRET}")
    return error


LEAKS = {
    "text": raising(ValueError(f"header {SECRET} refused")),
    "two arguments": raising(ValueError("header", SECRET)),
    "cause": raising(ValueError("refused"), OSError(f"header {SECRET}")),
    "context": raising(ValueError("refused"), context=OSError(f"header {SECRET}")),
    "context beside a cause": raising(
        ValueError("refused"), OSError("harmless"), OSError(f"header {SECRET}")
    ),
    "note": raising(noted(ValueError("refused"))),
    "group": raising(ExceptionGroup("several", [OSError(f"header {SECRET}")])),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_no_secret_leaves_with_an_error(leak):
    with pytest.raises(SamplerError, match="^`sampler` Answering failed: ") as caught:
        ask(Answering(LEAKS[leak]), tiny_rbm("bits"), N)
    assert_hidden(caught.value, SECRET)


def test_secrets_of_the_environment_and_whatever_looks_like_a_token(monkeypatch):
    monkeypatch.setenv("DWAVE_API_TOKEN", f"{SECRET}-2\n")
    monkeypatch.setenv("KAIWU_USER_ID", "me")
    text = f"{SECRET}-2 and DEV-0123456789abcdef0123 of me, the same"
    with pytest.raises(SamplerError) as caught:
        ask(Answering(raising(ValueError(text))), tiny_rbm("bits"), N)
    said = str(caught.value).partition("failed: ")[2]
    # a short secret may be part of a word, which stays
    assert said == "[token] and [token] of [token], the same."


@pytest.mark.parametrize("name", ["sampler", "fallback"])
def test_a_class_is_not_a_sampler(name):
    with pytest.raises(TypeError, match=rf"^`{name}` must be an instance, ExactSampler\(\)") as e:
        check_sampler(ExactSampler, name)
    assert_one_sentence(e.value)
    with pytest.raises(TypeError, match=f"^`{name}` must have a method sample.*int has none"):
        check_sampler(3, name)
