"""Speaks the protocol of KaiwuSampler: draws by brute force, or misbehaves as it is told.

Arguments: how to behave, the temperature of H, and a file that remembers a first life.
"""

import json
import os
import sys
import time

behaviour = sys.argv[1] if len(sys.argv) > 1 else "well"
temperature = float(sys.argv[2]) if len(sys.argv) > 2 else 1.0
memory = sys.argv[3] if len(sys.argv) > 3 else None


def draw(matrix, n_reads, seed):
    import numpy as np  # here, so that failing is quick

    rng = np.random.default_rng(seed)
    n = len(matrix)
    states = 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1) - 1
    energy = -np.einsum("si,ij,sj->s", states, np.array(matrix, dtype=float), states)
    weight = np.exp((energy.min() - energy) / temperature)
    return states[rng.choice(len(states), size=n_reads, p=weight / weight.sum())].astype(int)


if behaviour == "ends at once":
    sys.exit(3)
for line in sys.stdin:
    request = json.loads(line)
    if memory and not os.path.exists(memory):
        with open(memory, "w") as file:
            file.write(line)
        if behaviour == "dies once":
            os._exit(4)
    if behaviour == "dies":
        os._exit(4)
    if behaviour == "hangs":
        time.sleep(60)
    if behaviour in ("chats", "only chats"):
        print("Welcome to the SDK!\n{not json\n[1, 2]\nnull", flush=True)
        print(json.dumps({"id": -1, "spins": [[1]]}), flush=True)
        if behaviour == "only chats":
            continue
    answer = {"id": request["id"]}
    if behaviour == "reports":
        answer["error"] = f"no quota left for {os.environ.get('KAIWU_SDK_CODE')}"
    elif behaviour == "ragged":
        answer["spins"] = [[1, -1], [1]]
    elif behaviour == "empty":
        answer["spins"] = []
    elif behaviour == "silent":
        pass
    else:
        spins = draw(request["matrix"], request["n_reads"], request["seed"])
        if behaviour == "narrow":
            spins = spins[:, 1:]
        elif behaviour == "bits":
            spins = (spins + 1) // 2
        elif behaviour == "few":
            spins = spins[:3]
        answer["spins"] = spins.tolist()
    print(json.dumps(answer), flush=True)
