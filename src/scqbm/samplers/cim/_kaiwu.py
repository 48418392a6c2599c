"""QBoson's coherent Ising machine, driven through its SDK in another Python process.

The ``kaiwu`` SDK is closed, runs on Python 3.10 only and needs the user's licence. So it runs in a
process of its own. This module starts that process and exchanges JSON with it, one object a line.

Request, on the process's standard input::

    {"id": 7, "n_reads": 256, "matrix": [[0, -12, 127], ...], "seed": 1234,
     "machine": "cim", "options": {}}

``matrix`` is the Ising matrix as the SDK takes it: symmetric, the auxiliary spin last, signed
integers (floats if ``bits=None``), and a *minus* before the sum, ``H(s) = -s' matrix s`` [1]_.
Both triangles count, so an entry is half a coupling. ``seed`` is for solvers that take a seed.

Answer, on its standard output, one of::

    {"id": 7, "spins": [[1, -1, 1], ...]}
    {"id": 7, "error": "what went wrong"}

with one row of -1 and 1 per read-out, the auxiliary spin in the last column. Lines that are not an
answer to the request are ignored, so the SDK may print what it likes. The process ends when its
standard input does. ``_kaiwu_worker.py`` implements this protocol for the SDK; any other program
may do so too.

.. [1] ``kaiwu.common.hamiltonian`` and ``kaiwu.core.qubo_matrix_to_ising_matrix`` of QBoson's
   kaiwu_community, https://github.com/qboson/kaiwu_community.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from scqbm._checks import positive
from scqbm.samplers._redact import redacted
from scqbm.samplers.cim._machine import IsingMachineSampler, max_level
from scqbm.samplers.cim._process import Ended, LineProcess

_WORKER = Path(__file__).with_name("_kaiwu_worker.py")
_LICENCE = ("KAIWU_USER_ID", "KAIWU_SDK_CODE")  # environment variables; also in the worker
_SECRET = {"user_id", "sdk_code", "access_key", "secret_key", "user_name", "password", "token"}
_LEAST_SHARE = 1 / 16  # of the machine's range, to which `adapt` may shrink the couplings


class KaiwuSampler(IsingMachineSampler):
    """QBoson's coherent Ising machine, or the simulated annealing of its SDK, as a sampler.

    The SDK (``kaiwu``) needs a Python and a licence of its own, so it runs in a process of its
    own, which starts at the first query and ends with this object. If the process dies during a
    query, it is started once more and asked again. A query that times out is not repeated, because
    the machine may still work on it. Copies and pickles of the sampler start their own process.

    Only that process reads the licence, from the environment variables ``KAIWU_USER_ID`` and
    ``KAIWU_SDK_CODE``. The SDK's printed output is discarded. To see it, run
    ``python _kaiwu_worker.py`` by hand and type a request.

    The matrix is rounded to ``bits``, its size may follow the measured temperature (``adapt``),
    and each read-out starts a short Gibbs chain of the prior (``n_sweeps``).

    This sampler has not been tested with the SDK or the machine, only with programs that imitate
    the SDK's published interface.

    ``info`` holds ``beta`` (effective inverse temperature of the read-outs, before the sweeps),
    ``energy_read`` and ``energy`` (mean over the read-outs and over the draws), ``scale``,
    ``rounding`` (relative error of the rounded matrix) and ``seconds``.

    Parameters
    ----------
    command
        Path of the Python that has ``kaiwu``, or a full command that implements the protocol in
        ``scqbm/samplers/cim/_kaiwu.py``.
    machine
        ``"cim"`` for the machine, ``"sa"`` for the SDK's simulated annealing, an optimiser.
    n_sweeps
        Block Gibbs sweeps on each read-out; 0 returns the read-outs as they are.
    adapt
        Whether the size of the couplings follows the measured temperature. If not, the couplings
        fill the machine's range, as after the SDK's own rounding. If so, they shrink while the
        read-outs are too cold, down to a sixteenth of the range. That helps only if the machine's
        temperature depends on their size, which is not known for QBoson's machine.
    bits
        Bits of each coupling, including the sign; ``None`` sends floats.
    timeout
        Seconds to wait for an answer.
    **options
        Passed to the SDK's optimizer, for example ``project_no``.
    """

    asked_once = True  # a paid machine

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
        self._process: LineProcess | None = None
        self._n_asked = 0

    def _kept(self) -> dict[str, object]:
        # the rest of a command line may hold secrets
        return {**vars(self), "command": [self.command[0], ...]}

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_process": None}

    def close(self) -> None:
        """End the process; the next query starts another."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def scales(self, K: Tensor) -> tuple[float, float, float]:
        """Factors on the energy, up to the one that fills the machine's range."""
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
            # drawn on the generator's own device, so that the same generator gives the same reads
            "seed": int(torch.randint(2**31, (), generator=generator, device=K.device)),
            "machine": self.machine,
            "options": self.options,
        }
        answer = self._ask(request)
        if "error" in answer:
            said = redacted(str(answer["error"]), mask="***")
            raise RuntimeError(f"The Kaiwu worker reports: {said}")
        spins = _checked(answer.get("spins"), len(K)).to(K)
        if len(spins) < n_reads:
            warnings.warn(
                f"The Kaiwu worker answered {len(spins)} read-outs where {n_reads} were asked "
                "for: each is used several times, and only the sweeps make the copies different.",
                UserWarning,
                stacklevel=2,
            )
        return spins[torch.arange(n_reads, device=K.device) % len(spins)], 2 * matrix

    def _ask(self, request: dict) -> dict:
        n_ended = 0
        while True:
            if self._process is None:
                self._process = LineProcess(self.command)
            try:
                return self._process.ask(request, self.timeout)
            except Ended as ended:
                self.close()
                n_ended += 1
                if n_ended == 2:
                    raise RuntimeError(
                        f"The Kaiwu worker ended with exit status {ended.status} before it "
                        f"answered, twice in a row; check `command` ({self.command[0]}) by hand."
                    ) from None
            except BaseException:  # a time-out or Ctrl-C: a late answer must not meet a new query
                self.close()
                raise


def _checked(spins: object, n_spins: int) -> Tensor:
    """The spins as a tensor, or a RuntimeError if they are not a table of spins."""
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
