"""A D-Wave quantum annealer as a sampler (long: the class docstring is the manual)."""

from __future__ import annotations

import math
import time
import warnings
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from scqbm._checks import at_least, one_of, positive
from scqbm.ising import RBM, effective_beta, spins_to_bits
from scqbm.samplers._adapt import rescaled
from scqbm.samplers._ask import check_sampler
from scqbm.samplers._base import Draws, Sampler, State
from scqbm.samplers._gibbs import GibbsSampler
from scqbm.samplers._redact import reason, reveals
from scqbm.samplers.ocean._chip import BudgetSpent, Chip, Outage
from scqbm.samplers.ocean._cloud import connect
from scqbm.samplers.ocean._embedding import Embedding
from scqbm.samplers.ocean._placing import Placement, placed
from scqbm.samplers.ocean._problem import IsingProblem
from scqbm.samplers.ocean._reading import CHAIN_BREAKS, read

if TYPE_CHECKING:
    import dimod
    import networkx as nx

_PILOTS = 2  # rounds before the first query, to find the temperature
_PILOT_READS = 128
_FRAYED = 0.25  # fraction of broken chains worth a warning
_PREFIX = "fallback."


class QPUSampler(Sampler):
    """Draws from the prior on a D-Wave processor, or on any other structured Ocean sampler.

    A processor has a temperature of its own, a limited range of couplings, few neighbours for
    each qubit, and a connection that may fail. This sampler takes care of all four:

    * *Embedding*: each unit becomes a chain of qubits. The chains are found once for each chip and
      size, stored on disk (in ``$SCQBM_CACHE`` or the platform's cache folder) and reused while
      the couplings change. A prior on the chip's own graph (``prior_topology``) needs one qubit
      for each unit. A Gaussian layer is integrated out, which couples all hidden bits to each
      other, and is drawn afterwards given these bits.
    * *Temperature*: each query measures the effective inverse temperature of its reads (by maximum
      pseudolikelihood of the units' problem). The next query is programmed at a corrected scale,
      so that the draws follow temperature 1 as closely as the chip's ranges allow.
    * *Faults*: a failed question is asked again, and a short answer is topped up. If the processor
      does not answer, or its time is spent, ``fallback`` draws instead and one warning says so.

    Access tokens stay within ``child``. Pickles and copies leave ``child`` out, and error messages
    and warnings show ``[token]`` instead.

    ``info`` holds ``beta`` (effective inverse temperature of the draws), ``scale`` (of the
    programmed problem), ``chain_break_fraction``, ``energy`` (mean), ``qpu_seconds`` (processor
    time so far), ``on_qpu`` (1, or 0 if the fallback drew) and ``seconds``.

    Parameters
    ----------
    child
        A ``dwave.system.DWaveSampler``, a ``MockDWaveSampler`` or another structured sampler with
        integer labels. :meth:`from_cloud` makes the first.
    beta
        Inverse temperature of the chip at the start, in units of its couplings. With ``adapt``
        it is then learnt from the reads.
    adapt
        Whether to learn the inverse temperature.
    chain_strength
        Coupling within chains, in units of the temperature at which draws are wanted. By default
        the larger of 1.5 and Ocean's uniform torque compensation with prefactor 1. That is weaker
        than for optimisation. Some chains break, but stronger chains freeze early in the anneal,
        and their draws are further from the prior.
    chain_breaks
        What to do with reads whose chains disagree: ``"vote"`` takes the majority of each chain
        (ties at random); ``"discard"`` drops the read and asks for more; ``"minimize"`` sets the
        broken units one by one to their best value, which is colder than the prior.
    n_gauges
        Spin-reversal transforms per query, each drawn anew; 0 for none.
    max_qpu_time
        Seconds of processor access time that this sampler may use in total; at 0 it never asks
        the processor. Processor time that is not reported is estimated: of answers without timing,
        and of questions without an answer, unless the processor did not accept them. The estimate
        is that of D-Wave's client if it has one, else the longest answer so far, else 20 ms plus,
        for each read, 0.2 ms and the annealing time.
    retries
        How many times a question that failed is asked again.
    backoff
        Seconds before the first retry, doubled for each further one.
    timeout
        Seconds to wait for an answer, which is then cancelled.
    fallback
        Sampler that draws if the processor cannot; by default
        :class:`~scqbm.samplers.GibbsSampler`. With ``"raise"`` the query fails instead.
    retry_every
        Number of queries that the fallback answers after an outage before the processor is tried
        again.
    **parameters
        Passed to ``child.sample`` at each query, for example ``annealing_time=100``.
    """

    asked_once = True  # a paid machine

    def __init__(
        self,
        child: dimod.Structured,
        beta: float = 4.0,
        adapt: bool = True,
        chain_strength: float | None = None,
        chain_breaks: Literal["vote", "discard", "minimize"] = "vote",
        n_gauges: int = 1,
        max_qpu_time: float | None = None,
        retries: int = 3,
        backoff: float = 1.0,
        timeout: float = 600.0,
        fallback: Sampler | Literal["raise"] | None = None,
        retry_every: int = 20,
        **parameters,
    ):
        if not all(hasattr(child, name) for name in ("sample", "nodelist", "edgelist")):
            raise TypeError(
                f"`child` must be a structured dimod sampler such as DWaveSampler, which "
                f"{type(child).__name__} is not: give it to DimodSampler."
            )
        one_of("chain_breaks", chain_breaks, CHAIN_BREAKS)
        at_least("n_gauges", n_gauges, 0)
        at_least("retries", retries, 0)
        at_least("backoff", backoff, 0)
        at_least("retry_every", retry_every, 1)
        if max_qpu_time is not None:
            at_least("max_qpu_time", max_qpu_time, 0)
        positive("beta", beta)
        positive("timeout", timeout)
        if chain_strength is not None:
            positive("chain_strength", chain_strength)
        for name in ("num_reads", "auto_scale", "seed"):
            if name in parameters:
                raise ValueError(f"`{name}` is set by QPUSampler itself: leave it out.")
        fallback = GibbsSampler() if fallback is None else fallback
        if isinstance(fallback, type):
            check_sampler(fallback, "fallback")  # which tells an instance from its class
        if fallback != "raise" and not callable(getattr(fallback, "sample", None)):
            raise TypeError(f"`fallback` must be a sampler or 'raise', not {fallback!r}.")
        self.beta = beta
        self.adapt = adapt
        self.chain_strength = chain_strength
        self.chain_breaks = chain_breaks
        self.n_gauges = n_gauges
        self.fallback: Any = fallback
        self.retry_every = retry_every
        of_chip: dict[str, Any] = {
            "retries": retries,
            "backoff": backoff,
            "timeout": timeout,
            "max_qpu_time": max_qpu_time,
            "parameters": parameters,
        }
        self._chip: Chip | None = Chip(child, **of_chip)
        self._of_chip = of_chip  # which `repr` shows, also of a copy, which has no chip
        self._name = self._chip.name
        self._placed: Placement | None = None
        self._said: set[str] = set()

    @classmethod
    def from_cloud(
        cls,
        solver: str | dict | None = None,
        token: str | None = None,
        region: str | None = None,
        endpoint: str | None = None,
        **kwargs,
    ) -> QPUSampler:
        """A sampler on one of D-Wave's processors.

        Parameters
        ----------
        solver
            Name or features, as :class:`dwave.system.DWaveSampler` takes them; by default the
            processor with most qubits.
        token
            Access token, passed to D-Wave's client and stored nowhere else. It is better to leave
            it out and to set ``DWAVE_API_TOKEN`` or Ocean's configuration file.
        region, endpoint
            As :class:`dwave.system.DWaveSampler` takes them.
        **kwargs
            Other arguments of :class:`QPUSampler`.
        """
        return cls(connect(token, solver=solver, region=region, endpoint=endpoint), **kwargs)

    def _kept(self) -> dict[str, object]:
        return {**vars(self), **self._of_chip, "child": self._name}

    def __getstate__(self) -> dict:
        """Everything but the connection to the processor, which holds the token."""
        return {**self.__dict__, "_chip": None}

    def secrets(self) -> list[str | None]:
        """The tokens in D-Wave's client, and those of the fallback."""
        chip = [] if self._chip is None else self._chip.secrets()
        return chip + (self.fallback.secrets() if isinstance(self.fallback, Sampler) else [])

    @property
    def graph(self) -> nx.Graph:
        """The chip's working graph; as ``prior_topology`` it avoids the missing qubits."""
        return self._connected().graph

    @property
    def qpu_seconds(self) -> float:
        """Processor access time so far; includes estimates if ``max_qpu_time`` is set."""
        return self._connected().seconds

    @property
    def embedding(self) -> dict[int, list[int]] | None:
        """Qubits of each unit in the last query, visible units first; ``None`` before a query."""
        return None if self._placed is None else dict(enumerate(self._placed.embedding.chains))

    @torch.no_grad()
    def sample(
        self,
        rbm: RBM,
        n_draws: int,
        state: State | None = None,
        generator: torch.Generator | None = None,
    ) -> Draws:
        """Query the processor, or the fallback in its absence; see :meth:`Sampler.sample`."""
        try:
            return self._sample(self._connected(), rbm, n_draws, state or {}, generator)
        except Exception as error:
            secrets = self.secrets()
            if not reveals(error, secrets):
                raise
            said = reason(error, secrets)
        # raised here, because inside `except` the error with the token would be its context
        raise RuntimeError(said)

    # -- one query -----------------------------------------------------------------------------

    def _sample(
        self, chip: Chip, rbm: RBM, n_draws: int, state: dict, generator: torch.Generator | None
    ) -> Draws:
        """A query's draws from the processor or the fallback, and the state for the next query."""
        began = time.perf_counter()
        # other fits with this sampler, and runs that end and resume, share one budget
        chip.seconds = max(chip.seconds, float(state.get("qpu_seconds", 0.0)))
        kept = {k: state[k] for k in ("scale", "n_seen") if k in state}
        rest = int(state.get("rest", 0))
        if rest == 0:
            try:
                draws = self._query(chip, rbm, n_draws, kept, generator)
            except Outage as error:
                self._report(error)
                rest = self.retry_every
        if rest > 0:
            theirs = {
                k.removeprefix(_PREFIX): v for k, v in state.items() if k.startswith(_PREFIX)
            }
            draws = self.fallback.sample(rbm, n_draws, theirs or None, generator)
            draws.state = {_PREFIX + k: v for k, v in draws.state.items()} | kept
            draws.state["rest"] = rest - 1
            draws.info["energy"] = rbm.energy(draws.visible, draws.hidden).mean().item()
        if not chip.reports_time and chip.max_qpu_time < math.inf:
            self._say(
                "time",
                f"{self._name} does not report its processor time, so `max_qpu_time` counts an "
                "estimate.",
            )
        draws.state["qpu_seconds"] = torch.tensor(chip.seconds, dtype=torch.float64)
        draws.info |= {
            "on_qpu": float(rest == 0),
            "qpu_seconds": chip.seconds,
            "seconds": time.perf_counter() - began,
        }
        return draws

    def _query(
        self, chip: Chip, rbm: RBM, n_draws: int, kept: dict, generator: torch.Generator | None
    ) -> Draws:
        """Draws from the processor, after some reads to find its temperature if it is unknown."""
        # one number from the generator, on its own device, seeds everything but Gaussian units
        seed = torch.randint(2**62, (), generator=generator, device=rbm.W.device)
        rng = np.random.default_rng(int(seed))
        embedding, problem = self._embed(chip, rbm)
        scale, n_seen = float(kept.get("scale", 1 / self.beta)), int(kept.get("n_seen", 0))
        pilots = _PILOTS if self.adapt and not kept else 0
        how = self.chain_strength, self.chain_breaks, self.n_gauges
        for n_reads in [max(n_draws, _PILOT_READS)] * pilots + [n_draws]:
            reads = read(chip, embedding, problem, scale, n_reads, rng, *how)
            for topic, text in reads.remarks:
                self._say(topic, text)
            bits = spins_to_bits(torch.from_numpy(reads.spins.astype(np.float64))).to(rbm.W)
            layers = (bits, bits) if rbm.gaussian else bits.tensor_split([rbm.n_visible], 1)
            beta = effective_beta(rbm, *layers)  # does not look at Gaussian units
            if self.adapt:  # at the wanted scale, beta would have been larger in proportion
                scale, n_seen = rescaled(scale, beta * scale / reads.scale, n_seen)
        visible, hidden = layers
        if rbm.gaussian:
            visible = rbm.draw_visible(hidden, generator)
        if reads.broken > _FRAYED:
            self._say(
                "breaks",
                f"{reads.broken:.0%} of the chains on {self._name} broke, so its draws are "
                "doubtful: raise `chain_strength`, or avoid chains (bits with prior_topology).",
            )
        info = {
            "beta": beta,
            "scale": reads.scale,
            "chain_break_fraction": reads.broken,
            "energy": rbm.energy(visible, hidden).mean().item(),
        }
        learnt = {"scale": torch.tensor(scale, dtype=torch.float64), "n_seen": n_seen}
        return Draws(visible, hidden, learnt, info=info)

    def _embed(self, chip: Chip, rbm: RBM) -> tuple[Embedding, IsingProblem]:
        """Chains for this prior: those of the last query if its couplings still lie on them."""
        self._placed, problem = placed(rbm, chip.graph, self._name, self._placed)
        if self._placed.sparse and not self._placed.native:
            self._say(
                "chains",
                f"The prior's couplings do not lie on {self._name} as they are, so its units "
                "become chains of qubits. To avoid chains, make the model with "
                "prior_topology=sampler.graph.",
            )
        return self._placed.embedding, problem

    # -- warnings and errors -------------------------------------------------------------------

    def _connected(self) -> Chip:
        if self._chip is None:
            raise RuntimeError(
                "This QPUSampler is a copy and has no connection to its processor, since copies "
                "must not carry access tokens: make a new one."
            )
        return self._chip

    def _report(self, error: Outage) -> None:
        if self.fallback == "raise":
            raise error
        name = type(self.fallback).__name__
        if isinstance(error, BudgetSpent):
            self._say("budget", f"{error}, so {name} draws from now on.")
        else:
            self._say(
                "outage",
                f"{self._name} does not answer ({error}), so {name} draws instead; the processor "
                f"is tried again every {self.retry_every} queries.",
            )

    def _say(self, topic: str, text: str) -> None:
        """Warn, once for each topic."""
        if topic not in self._said:
            self._said.add(topic)
            warnings.warn(text, UserWarning, stacklevel=2)
