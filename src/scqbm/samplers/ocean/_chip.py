"""A structured Ocean sampler, a processor as a rule, and all that can go wrong on the way."""

from __future__ import annotations

import math
import os
import re
import time
from functools import cache, cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import dimod
    import networkx as nx

TOKEN_VARIABLE = "DWAVE_API_TOKEN"
_NO_LIMIT = 1e6  # where arithmetic must stay finite
_TOKEN = re.compile(r"\b[A-Za-z0-9]+-[0-9a-fA-F]{16,}\b")  # what D-Wave's tokens look like


class Outage(RuntimeError):
    """The chip gave no usable answer."""


class BudgetSpent(Outage):
    """The chip may not be asked any more."""


class BadAnswer(Exception):
    """An answer that lacks qubits or holds something other than spins."""


class Chip:
    """Asks for reads until they are there: batches, retries, short answers, time and budget.

    Parameters
    ----------
    child
        A structured dimod sampler: ``DWaveSampler``, ``MockDWaveSampler``.
    parameters
        Passed to ``child.sample``.
    retries
        How often a question that failed is asked again.
    backoff
        Seconds before the first retry; doubled for each further one.
    timeout
        Seconds to wait for an answer.
    max_seconds
        Most seconds of processor time, or ``None``.
    """

    def __init__(
        self,
        child: dimod.Structured,
        parameters: dict,
        retries: int,
        backoff: float,
        timeout: float,
        max_seconds: float | None,
    ):
        self.child = child
        self.retries = retries
        self.backoff = backoff
        self.timeout = timeout
        self.max_seconds = math.inf if max_seconds is None else max_seconds
        self.seconds = 0.0  # of processor time that the child has reported
        self._longest = 0.0  # of its answers
        # as programmed and read one by one, if the child knows these words
        ours = {"auto_scale": False, "answer_mode": "raw"}
        self.parameters = {k: v for k, v in ours.items() if k in child.parameters} | parameters

    @property
    def name(self) -> str:
        """Which chip it is."""
        return str(self.child.properties.get("chip_id", type(self.child).__name__))

    @cached_property
    def graph(self) -> nx.Graph:
        """Working qubits and couplers."""
        topology = self.child.properties.get("topology")
        if topology:
            from dwave.system import qpu_graph

            nodes, edges = self.child.nodelist, self.child.edgelist
            return qpu_graph(topology["type"], topology["shape"], nodes, edges)
        import networkx as nx

        graph = nx.Graph(self.child.edgelist)
        graph.add_nodes_from(self.child.nodelist)
        return graph

    def _range(self, *names: str) -> tuple[float, float]:
        """The first of these ranges that the chip's properties state, as sizes; else no limit."""
        stated = [self.child.properties[name] for name in names if name in self.child.properties]
        low, high = stated[0] if stated else (-math.inf, math.inf)
        return -float(low), float(high)

    @cached_property
    def strongest_chain(self) -> float:
        """The strongest coupling within a chain."""
        return min(self._range("extended_j_range", "j_range")[0], _NO_LIMIT)

    def possible_scale(
        self, bias: float, coupler: float, load: np.ndarray, chain_neighbours: np.ndarray
    ) -> float:
        """Largest factor on biases and couplers within all ranges, whatever their signs.

        Parameters
        ----------
        bias
            Size of the largest bias.
        coupler
            Size of the largest coupler outside chains.
        load
            Of each qubit, the summed sizes of these.
        chain_neighbours
            Of each qubit, how many couplers hold it in its chain.
        """
        low, high = self._range("per_qubit_coupling_range")
        room = np.minimum(low - chain_neighbours * self.strongest_chain, high)
        needs = [(min(self._range("h_range")), bias), (min(self._range("j_range")), coupler)]
        return min(
            *(limit / size if size > 0 else math.inf for limit, size in needs),
            float((room / np.maximum(load, 1e-30)).min()),
        )

    @cached_property
    def most_reads(self) -> int:
        """Reads that one question may ask for."""
        solver = getattr(self.child, "solver", None)
        if callable(getattr(solver, "max_num_reads", None)):  # knows the limit on duration as well
            return int(solver.max_num_reads(**self.parameters))
        return int(self.child.properties.get("num_reads_range", (1, 10_000))[1])

    def ask(
        self,
        qubits: np.ndarray,
        biases: np.ndarray,
        couplers: tuple[np.ndarray, np.ndarray, np.ndarray],
        n_reads: int,
        seed: int,
    ) -> np.ndarray:
        """Spins of the qubits, ``n_reads`` rows or, after many short answers, fewer.

        Parameters
        ----------
        qubits
            Labels.
        biases
            One a qubit.
        couplers
            Positions of both ends in ``qubits``, and values.
        n_reads
            How many reads.
        seed
            For children that take one.
        """
        import dimod

        model = dimod.BQM.from_numpy_vectors(
            biases, couplers, 0.0, "SPIN", variable_order=qubits.tolist()
        )
        reads, missing, failures = [], n_reads, 0
        while missing > 0 and failures <= self.retries:
            wanted = min(missing, self.most_reads)
            try:
                got = self._once(model, qubits, wanted, (seed + len(reads) + failures) % 2**31)
            except BudgetSpent:
                if not reads:
                    raise
                break
            except _faults() as error:
                failures = self.retries + 1 if _is_hopeless(error) else failures + 1
                if failures <= self.retries:
                    time.sleep(self.backoff * 2 ** (failures - 1))
                elif not reads:
                    raise Outage(self.redacted(error)) from None
                continue
            failures += len(got) < wanted
            reads.append(got[:wanted])
            missing -= len(reads[-1])
        return np.concatenate(reads)

    def _once(self, model: dimod.BQM, qubits: np.ndarray, n_reads: int, seed: int) -> np.ndarray:
        if self.seconds + self._expected(len(qubits), n_reads) > self.max_seconds:
            raise BudgetSpent(
                f"{self.seconds:.3g} s of the {self.max_seconds:.3g} s of processor time that "
                "`max_qpu_time` allows are spent"
            )
        given = {"num_reads": n_reads, **self.parameters}
        if "seed" in self.child.parameters:
            given.setdefault("seed", seed)
        answer = self.child.sample(model, **given)
        self._wait_for(answer)
        used = answer.info.get("timing", {}).get("qpu_access_time", 0.0) / 1e6
        self.seconds += used
        self._longest = max(self._longest, used)
        return _in_order(answer, qubits)

    def _expected(self, n_qubits: int, n_reads: int) -> float:
        """Processor time of a question, so that the budget is not overdrawn by the last one."""
        if self.max_seconds == math.inf:
            return 0.0
        try:
            estimate = self.child.solver.estimate_qpu_access_time
            return estimate(n_qubits, n_reads, **self.parameters) / 1e6
        except (AttributeError, KeyError, TypeError, ValueError):
            return self._longest

    def _wait_for(self, answer: dimod.SampleSet) -> None:
        end, pause = time.monotonic() + self.timeout, 1e-4
        while not answer.done():
            if time.monotonic() > end:
                raise TimeoutError(f"no answer within {self.timeout} s")
            time.sleep(pause)
            pause = min(2 * pause, 0.02)
        answer.resolve()

    def redacted(self, error: Exception) -> str:
        """What an error says, without any token."""
        text = str(error) or type(error).__name__
        client = getattr(self.child, "client", None)
        secrets = [os.environ.get(TOKEN_VARIABLE), getattr(client, "token", None)]
        secrets.append(getattr(getattr(client, "config", None), "token", None))
        return redacted(text, *secrets)


def redacted(text: str, *secrets: str | None) -> str:
    """A text without these tokens, nor anything that looks like one."""
    for secret in secrets:
        if isinstance(secret, str) and secret:
            text = text.replace(secret, "[token]")
    return _TOKEN.sub("[token]", text).strip().rstrip(".")


def _in_order(answer: dimod.SampleSet, qubits: np.ndarray) -> np.ndarray:
    """Reads as spins in the order of ``qubits``, whatever the answer's order."""
    labels, spins = np.array(list(answer.variables)), answer.record.sample
    if not np.array_equal(labels, qubits):
        order = np.argsort(labels)
        place = np.searchsorted(labels, qubits, sorter=order)
        place = order[np.minimum(place, len(labels) - 1)] if len(labels) else place
        if len(labels) == 0 or (labels[place] != qubits).any():
            raise BadAnswer("the answer lacks qubits that were asked for")
        spins = spins[:, place]
    if len(spins) == 0:
        raise BadAnswer("the answer is empty")
    if (np.abs(spins) != 1).any():
        raise BadAnswer("the answer holds values other than -1 and +1")
    times = answer.record.num_occurrences
    return spins if (times == 1).all() else np.repeat(spins, times, axis=0)


@cache
def _faults() -> tuple[type[Exception], ...]:
    """What can happen between here and a processor; other errors are the caller's own."""
    from dwave.cloud import exceptions as cloud
    from dwave.system.exceptions import FailoverCondition, RetryCondition
    from requests.exceptions import RequestException  # of which the solver API's errors are

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


def _is_hopeless(error: Exception) -> bool:
    """Whether asking again cannot mend it: refused, or not understood."""
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
        isinstance(code, int) and 400 <= code < 500 and code not in (408, 429)  # late, too many
    )
