"""D-Wave's cloud client: how to connect, the tokens it holds, its errors, its pending answers."""

from __future__ import annotations

import contextlib
from functools import cache
from typing import TYPE_CHECKING

from scqbm.samplers._redact import reason

if TYPE_CHECKING:
    import dimod


class BadAnswer(Exception):
    """An answer that lacks qubits or holds something other than spins."""


def connect(token: str | None, **config) -> dimod.Structured:
    """A processor, or a ConnectionError that does not show the token."""
    from dwave.system import DWaveSampler

    given = {"token": token, **config}
    try:
        return DWaveSampler(**{k: v for k, v in given.items() if v is not None})
    except Exception as error:
        said = reason(error, [token])
    # raised here, because inside `except` the client's error, with its token, would be the context
    raise ConnectionError(
        f"D-Wave's client could not connect ({said}): check `solver`, `region` and the token in "
        "DWAVE_API_TOKEN."
    ) from None


def tokens(sampler: object) -> list[str | None]:
    """Access tokens that an Ocean sampler, or one inside it, holds in its cloud client."""
    found, seen = [], set()
    with contextlib.suppress(Exception):  # attributes of foreign objects may raise anything
        while sampler is not None and id(sampler) not in seen:
            seen.add(id(sampler))
            client = getattr(sampler, "client", None)
            found.append(getattr(client, "token", None))
            found.append(getattr(getattr(client, "config", None), "token", None))
            sampler = getattr(sampler, "child", None)  # a composite's
    return found


def cancel(answer: dimod.SampleSet) -> None:
    """Take a pending question back; a processor that already works on it may still finish it."""
    stop = getattr(_future(answer), "cancel", None)
    if callable(stop):
        with contextlib.suppress(Exception):  # the failed question is the error to report
            stop()


def may_have_run(answer: dimod.SampleSet | None, error: BaseException) -> bool:
    """Whether a failed question may have taken processor time.

    Parameters
    ----------
    answer
        The pending answer, or ``None`` if the call to the sampler failed itself.
    error
        How it failed.
    """
    if answer is None:  # D-Wave's client returns at once: other samplers wait for the processor
        return isinstance(error, _waits())
    # D-Wave's client gives a question its id once the processor's queue has taken it
    return not (is_hopeless(error) or getattr(_future(answer), "id", "unknown") is None)


def _future(answer: dimod.SampleSet) -> object | None:
    """What a pending answer waits for; dimod has no public name for it."""
    return getattr(answer, "_future", None)


@cache
def _waits() -> tuple[type[Exception], ...]:
    """Errors of a question that was sent, but whose answer did not come in time."""
    from dwave.cloud.exceptions import PollingTimeout
    from requests.exceptions import ReadTimeout

    return TimeoutError, PollingTimeout, ReadTimeout


@cache
def faults() -> tuple[type[Exception], ...]:
    """Errors of the connection and of the processor; all others are errors of the caller."""
    from dwave.cloud import exceptions as cloud
    from dwave.system.exceptions import FailoverCondition, RetryCondition
    from requests.exceptions import RequestException  # the solver API's errors derive from it

    return (
        BadAnswer,
        ConnectionError,
        RequestException,
        TimeoutError,
        cloud.CanceledFutureError,
        cloud.PollingTimeout,
        cloud.ProblemUploadError,
        cloud.UseAfterCloseError,
        FailoverCondition,
        RetryCondition,
    )


def is_hopeless(error: BaseException) -> bool:
    """Whether the same question would fail again: it was refused or not understood."""
    from dwave.cloud import exceptions as cloud
    from dwave.cloud.api import exceptions as api

    code = getattr(error, "error_code", None)
    refused = (
        api.ResourceAccessForbiddenError,
        api.ResourceAuthenticationError,
        api.ResourceBadRequestError,
        cloud.UseAfterCloseError,
    )
    return isinstance(error, refused) or (
        isinstance(code, int)
        and 400 <= code < 500
        and code not in (408, 429)  # late, or too many at once
    )
