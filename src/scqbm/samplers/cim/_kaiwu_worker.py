"""Answers the requests of KaiwuSampler, in the Python that has QBoson's ``kaiwu``.

This is a script and not a part of the package: it runs on Python 3.10 and imports only kaiwu and
numpy. The docstring of ``_kaiwu.py`` states the protocol.
"""

import json
import os
import signal
import sys
import tempfile

LICENCE = ("KAIWU_USER_ID", "KAIWU_SDK_CODE")  # environment variables; also in _kaiwu.py


def main():
    """Answer the lines of standard input one by one."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # the SDK's prints must not mix with the answers
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that the folder below is removed
    sys.path.pop(0)  # the folder of this script: import nothing from there
    with tempfile.TemporaryDirectory() as folder:
        kaiwu = None
        for line in sys.stdin:
            request = json.loads(line)
            try:
                kaiwu = kaiwu or start(folder)
                answer = {"spins": solve(kaiwu, **request)}
            except Exception as error:
                answer = {"error": without_licence(f"{type(error).__name__}: {error}")}
            answers.write(json.dumps({"id": request["id"], **answer}) + "\n")
            answers.flush()


def start(folder):
    """Import the SDK and give it the licence, if there is one."""
    import kaiwu

    if all(os.environ.get(name) for name in LICENCE):
        kaiwu.license.init(*(os.environ[name] for name in LICENCE))
    kaiwu.common.CheckpointManager.save_dir = folder  # the SDK's tasks write files
    return kaiwu


def solve(kaiwu, id, n_reads, matrix, seed, machine, options):
    """Read-outs for one Ising matrix."""
    import numpy as np

    if machine == "cim":
        defaults = {
            "task_name": f"scqbm-{os.getpid()}-{id}",
            "wait": True,
            "task_mode": "quota",
            "sample_number": n_reads,
        }
        optimizer = kaiwu.cim.CIMOptimizer(**{**defaults, **options})
    else:
        defaults = {"size_limit": n_reads, "rand_seed": seed}
        optimizer = kaiwu.classical.SimulatedAnnealingOptimizer(**{**defaults, **options})
    spins = optimizer.solve(np.array(matrix, dtype=float))
    return np.sign(np.asarray(spins)).astype(int).tolist()


def without_licence(text):
    """The text without the licence."""
    for name in LICENCE:
        if os.environ.get(name):
            text = text.replace(os.environ[name], "***")
    return text


if __name__ == "__main__":
    main()
