"""Fixtures of several files, and one thread for each test process.

The models are small, and two threads would wait for each other on a busy machine.
"""

import os
import sys

import pytest

# before torch is imported, and numba (scanpy), which would raise torch's number again
os.environ.setdefault("OMP_NUM_THREADS", "1")
if "numba" in sys.modules:  # by a plug-in of pytest: its number may no longer come from outside
    sys.modules["numba"].set_num_threads(1)
else:
    os.environ.setdefault("NUMBA_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def adata():
    """200 cells in two batches, for trainings of five steps an epoch."""
    import scvi
    from scvi.data import synthetic_iid

    scvi.settings.seed = 0
    return synthetic_iid(batch_size=100, n_genes=40)


@pytest.fixture
def kept_elsewhere(tmp_path, monkeypatch):
    """Embeddings go to a folder of the test, and nobody waits between retries."""
    monkeypatch.setenv("SCQBM_CACHE", str(tmp_path))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
