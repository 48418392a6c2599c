"""One thread for each test process: the models are small, and two threads wait for each other."""

import os

# before torch and numba are imported; numba (scanpy) would otherwise raise torch's number again
for variable in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
