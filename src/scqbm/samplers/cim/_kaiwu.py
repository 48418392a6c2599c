"""QBoson's coherent Ising machine, driven through its SDK in another Python process.

The ``kaiwu`` SDK is closed, runs on Python 3.10 only and needs the user's licence, so it stays in
a process of its own, which this module starts and talks to in JSON, one object a line.

Request, on the process's standard input::

    {"id": 7, "n_reads": 256, "matrix": [[0, -12, 127], ...], "seed": 1234,
     "machine": "cim", "options": {}}

``matrix`` is the Ising matrix as the SDK takes it: symmetric, the auxiliary spin last, signed
integers (floats if ``bits=None``), and a *minus* before the sum, ``H(s) = -s' matrix s`` [1]_.
Both triangles count, so an entry is half a coupling. ``seed`` is for solvers that take one.

Answer, on its standard output, either of::

    {"id": 7, "spins": [[1, -1, 1], ...]}
    {"id": 7, "error": "what went wrong"}

with one row of +-1 a read-out, the auxiliary spin in the last column. Lines that are not an answer
to the request are ignored, so a chatty SDK does no harm. The process ends when its standard input
does. ``_kaiwu_worker.py`` speaks this protocol for the SDK; any other program may.

.. [1] ``kaiwu.common.hamiltonian`` and ``kaiwu.core.qubo_matrix_to_ising_matrix`` of QBoson's
   kaiwu_community, https://github.com/qboson/kaiwu_community.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import threading
import time
import warnings
import weakref
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from scqbm._checks import positive
from scqbm.samplers.cim._machine import IsingMachineSampler, max_level

_WORKER = Path(__file__).with_name("_kaiwu_worker.py")
_LICENCE = ("KAIWU_USER_ID", "KAIWU_SDK_CODE")  # environment variables; also in the worker
_SECRET = {"user_id", "sdk_code", "access_key", "secret_key", "user_name", "password", "token"}
_LEAST_SHARE = 1 / 16  # of the machine's range that adaptation may shrink the couplings to


class KaiwuSampler(IsingMachineSampler):
    """QBoson's coherent Ising machine, or the SDK's simulated annealing, as a sampler.

    The process starts at the first query and ends with this object. If it dies in the middle of a
    query it is started once more and asked again; a time-out is not repeated, as the machine may
    be at work on it. Copies and pickles of the sampler start a process of their own.

    The licence is read by that process from the environment variables ``KAIWU_USER_ID`` and
    ``KAIWU_SDK_CODE``, and by nothing else. What the SDK prints is discarded; to see it, run
    ``python _kaiwu_worker.py`` by hand and type a request.

    Not tested against the SDK or the machine, only against stand-ins that speak its interface as
    published.

    Parameters
    ----------
    command
        Path of the Python that has kaiwu, or a full command that speaks the protocol of
        ``scqbm/samplers/cim/_kaiwu.py``.
    machine
        ``"cim"`` for the machine, ``"sa"`` for the SDK's simulated annealing, an optimiser.
    n_sweeps
        Block Gibbs sweeps on each read-out; 0 returns the read-outs as they are.
    adapt
        Whether the size of the couplings follows the measured temperature. Off, they fill the
        machine's range, as the SDK's own rounding does. On, they shrink while read-outs are too
        cold, down to a sixteenth of the range; that helps only a machine whose temperature
        depends on their size, which is not known of QBoson's.
    bits
        Bits of a coupling, one of them the sign; ``None`` sends floats.
    timeout
        Seconds to wait for an answer.
    **options
        Passed to the SDK's optimizer, for example ``project_no``.
    """

    def __init__(
        self,
        command: str | os.PathLike | Sequence[str],
        machine: str = "cim",
        n_sweeps: int = 10,
        adapt: bool = False,
        bits: int | None = 8,
        timeout: float = 600.0,
        **options,
    ):
        super().__init__(n_sweeps, adapt, bits)
        if machine not in ("cim", "sa"):
            raise ValueError(f'`machine` must be "cim" or "sa", not {machine!r}.')
        positive("timeout", timeout)
        if secret := _SECRET & set(options):
            raise ValueError(
                f"`{min(secret)}` must not be an option, where it could end up in a file: set the "
                f"environment variables {' and '.join(_LICENCE)} instead."
            )
        if isinstance(command, str | os.PathLike):
            command = [os.fspath(command), str(_WORKER)]
        self.command = [os.fspath(part) for part in command]
        if not self.command:
            raise ValueError("`command` must name at least a program.")
        self.machine = machine
        self.timeout = timeout
        self.options = options
        self._process: _LineProcess | None = None
        self._n_asked = 0

    def __repr__(self) -> str:
        return f"KaiwuSampler(machine={self.machine!r})"  # a command line may hold secrets

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_process": None}

    def close(self) -> None:
        """End the process; the next query starts another."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def scales(self, K: Tensor) -> tuple[float, float, float]:
        """Factors on the energy: up to the one that fills the machine's range."""
        if self.bits is None:
            return 0.0, 1.0, float("inf")
        largest = K.abs().max().item() / 2
        full = max_level(self.bits) / largest if largest > 0 else 1.0
        return full * _LEAST_SHARE, full, full

    def read(
        self, K: Tensor, n_reads: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Ask the process for ``n_reads`` read-outs."""
        matrix = K / 2  # H counts both triangles
        if self.bits is not None:
            matrix = matrix.round().clamp(-max_level(self.bits), max_level(self.bits))
        self._n_asked += 1
        request = {
            "id": self._n_asked,
            "n_reads": n_reads,
            "matrix": (matrix if self.bits is None else matrix.long()).tolist(),
            # drawn on the generator's own device: the same generator gives the same reads
            "seed": int(torch.randint(2**31, (), generator=generator, device=K.device)),
            "machine": self.machine,
            "options": self.options,
        }
        answer = self._ask(request)
        if "error" in answer:
            raise RuntimeError(f"The Kaiwu worker reports: {_without_licence(answer['error'])}")
        spins = _checked(answer.get("spins"), len(K)).to(K)
        if len(spins) < n_reads:
            warnings.warn(
                f"The Kaiwu worker answered {len(spins)} read-outs where {n_reads} were asked "
                "for: they are used in turn, and only the sweeps set their copies apart.",
                UserWarning,
                stacklevel=2,
            )
        return spins[torch.arange(n_reads, device=K.device) % len(spins)], 2 * matrix

    def _ask(self, request: dict) -> dict:
        for attempt in (1, 2):
            if self._process is None:
                self._process = _LineProcess(self.command)
            try:
                return self._process.ask(request, self.timeout)
            except _Ended as ended:
                self.close()
                if attempt == 2:
                    raise RuntimeError(
                        f"The Kaiwu worker ended with exit status {ended.status} before it "
                        f"answered, twice in a row; check `command` ({self.command[0]}) by hand."
                    ) from None
            except BaseException:  # a time-out, or the user's Ctrl-C: its answer would come late
                self.close()
                raise


def _checked(spins: object, n_spins: int) -> Tensor:
    """The spins as a tensor, if they are spins."""
    try:
        spins = torch.tensor(spins, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise RuntimeError(
            f"The Kaiwu worker answered without a table of spins {n_spins} columns wide."
        ) from None
    if spins.dim() != 2 or len(spins) == 0 or spins.shape[1] != n_spins:
        raise RuntimeError(
            f"The Kaiwu worker answered with spins of shape {tuple(spins.shape)} instead of "
            f"(n_reads, {n_spins})."
        )
    if not bool((spins.abs() == 1).all()):
        raise RuntimeError("The Kaiwu worker answered with spins other than -1 and 1.")
    return spins


def _without_licence(text: object) -> str:
    """The text with the licence blotted out, should a worker have let it slip."""
    text = str(text)
    for name in _LICENCE:
        if os.environ.get(name):
            text = text.replace(os.environ[name], "***")
    return text


class _Ended(Exception):
    """The process ended before it answered."""

    def __init__(self, status: int | None):
        super().__init__(status)
        self.status = status


class _LineProcess:
    """A process that is asked and answers in lines of JSON."""

    def __init__(self, command: list[str]):
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # an SDK may print the licence there
                encoding="utf-8",
                errors="replace",
            )
        except OSError as error:
            raise RuntimeError(
                f"The Kaiwu worker could not be started ({error.strerror}): check `command`, "
                f"whose program is {command[0]}."
            ) from None
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        # a thread, since pipes know no time-out; it must not hold on to this object
        threading.Thread(
            target=_pump, args=(self._process.stdout, self._lines), daemon=True
        ).start()
        self._stop = weakref.finalize(self, _stop, self._process)

    def ask(self, request: dict, timeout: float) -> dict:
        """Send a request and wait for the answer with its id."""
        text = json.dumps(request) + "\n"
        # a thread again: a process that does not listen must not stop us once the pipe is full
        threading.Thread(target=_write, args=(self._process.stdin, text), daemon=True).start()
        deadline = time.monotonic() + timeout
        n_ignored = 0
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise TimeoutError(
                    f"The Kaiwu worker gave no answer within {timeout:g} s ({n_ignored} lines "
                    "were not one): raise `timeout`, or check `command` by hand."
                ) from None
            if line is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(1)  # for its own status, before it is made to end
                self.close()
                raise _Ended(self._process.returncode)
            try:
                answer = json.loads(line)
            except ValueError:
                answer = None
            if isinstance(answer, dict) and answer.get("id") == request["id"]:
                return answer
            n_ignored += 1

    def close(self) -> None:
        """End the process."""
        self._stop()


def _pump(stream, lines: queue.SimpleQueue) -> None:
    with stream:
        for line in stream:
            lines.put(line)
    lines.put(None)


def _write(stream, text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # it has ended, which the reader will say
        stream.write(text)
        stream.flush()


def _stop(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    with contextlib.suppress(OSError):  # an unsent request
        process.stdin.close()
