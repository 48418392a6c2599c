"""How a machine with a temperature of its own is brought to temperature 1."""

_REACH = 4.0  # one query corrects the scale by no more than this factor
_FAR = 1.5  # beyond this factor it does not wait for an average
_LEAST_RATE = 0.1  # how much of the last query's temperature enters, in the long run


def rescaled(scale: float, beta: float, n_seen: int) -> tuple[float, int]:
    """Move towards the scale at which ``beta`` is 1: at once if far, else averaging over time."""
    change = min(max(beta, 1 / _REACH), _REACH)
    if not 1 / _FAR < change < _FAR:
        n_seen = 0  # what was learnt holds no longer
    return scale * change ** -max(_LEAST_RATE, 1 / (1 + n_seen)), n_seen + 1
