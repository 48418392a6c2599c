"""Axes of a new figure."""

from __future__ import annotations


def new_axes(width: float, height: float, n: int = 1):
    """One Axes, or an array of ``n`` side by side, in a figure of this size in inches."""
    import matplotlib.pyplot as plt  # here, so that pyplot loads only with the first plot

    return plt.subplots(1, n, figsize=(width, height), layout="constrained")[1]
