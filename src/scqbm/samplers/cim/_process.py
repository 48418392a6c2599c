"""A process that is asked and answers in lines of JSON, with time-outs."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import threading
import time
import weakref


class Ended(Exception):
    """The process ended before it answered."""

    def __init__(self, status: int | None):
        super().__init__(status)
        self.status = status


class LineProcess:
    """A running worker of :class:`~scqbm.samplers.KaiwuSampler`, which ends with this object.

    Parameters
    ----------
    command
        Program and arguments.
    """

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
        # a thread, as pipes have no time-out; it must not keep this object alive
        threading.Thread(
            target=_pump, args=(self._process.stdout, self._lines), daemon=True
        ).start()
        self._stop = weakref.finalize(self, _stop, self._process)

    def ask(self, request: dict, timeout: float) -> dict:
        """Send a request and wait for the answer with its id."""
        text = json.dumps(request) + "\n"
        # a thread again: if the process does not read, a full pipe must not block this one
        threading.Thread(target=_write, args=(self._process.stdin, text), daemon=True).start()
        deadline = time.monotonic() + timeout
        n_ignored = 0
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise TimeoutError(
                    f"The Kaiwu worker gave no answer within {timeout:g} s ({n_ignored} lines "
                    "were not an answer): raise `timeout`, or check `command` by hand."
                ) from None
            if line is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(1)  # for its own exit status, before it is terminated
                self.close()
                raise Ended(self._process.returncode)
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
    with contextlib.suppress(OSError, ValueError):  # it has ended, which the reader will report
        stream.write(text)
        stream.flush()


def _stop(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdin is not None:
        with contextlib.suppress(OSError):  # a request that was not sent
            process.stdin.close()
