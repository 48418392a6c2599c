"""How draws from a device with a temperature of its own are brought to temperature 1."""

_REACH = 4.0  # one query changes the scale by no more than this factor
_FAR = 1.5  # an error beyond this factor is corrected at once
_LEAST_RATE = 0.1  # weight of the last query's temperature after many queries


def rescaled(scale: float, beta: float, n_seen: int) -> tuple[float, int]:
    """Move towards the scale at which ``beta`` is 1: at once if far, else as a running average.

    Parameters
    ----------
    scale
        The present factor on fields and couplings.
    beta
        Inverse temperature that the draws show at this scale.
    n_seen
        Queries that the average holds.

    Returns
    -------
    The new scale, and the queries that its average holds.
    """
    change = min(max(beta, 1 / _REACH), _REACH)
    if not 1 / _FAR < change < _FAR:
        n_seen = 0  # the prior or the device has changed: start a new average
    return scale * change ** -max(_LEAST_RATE, 1 / (1 + n_seen)), n_seen + 1
