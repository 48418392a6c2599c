"""What all plots share: the Axes of a new figure, and arguments that scanpy's plots have."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

_ARGUMENTS = (
    ("show", "bool", False),
    ("save", "str | Path | None", None),
    ("return_fig", "bool", False),
)
_DESCRIPTIONS = """
    show
        Show the figure at once. By default a notebook shows it at the end of the cell.
    save
        Path of a file to save the figure to, such as ``"energy.pdf"``.
    return_fig
        Whether to return the figure in the place of the Axes.

    Returns
"""


def new_axes(width: float, height: float, n: int = 1):
    """One Axes, or an array of ``n`` side by side, in a figure of this size in inches."""
    import matplotlib.pyplot as plt  # here, so that pyplot loads only with the first plot

    return plt.subplots(1, n, figsize=(width, height), layout="constrained")[1]


def plot(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Give a function that returns Axes the arguments ``show``, ``save`` and ``return_fig``."""

    @wraps(draw)
    def wrapper(
        *args: Any,
        show: bool = False,
        save: str | Path | None = None,
        return_fig: bool = False,
        **kwargs: Any,
    ) -> Any:
        axes = draw(*args, **kwargs)
        figure = (axes[0] if isinstance(axes, list) else axes).figure
        if save is not None:
            figure.savefig(save, bbox_inches="tight")
        if show:
            import matplotlib.pyplot as plt

            plt.show()
        return figure if return_fig else axes

    own = inspect.signature(draw)
    extra = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, kind, default in _ARGUMENTS
    ]
    # for help() and the pages
    signature = own.replace(parameters=[*own.parameters.values(), *extra])
    vars(wrapper)["__signature__"] = signature
    wrapper.__annotations__ = draw.__annotations__ | {name: kind for name, kind, _ in _ARGUMENTS}
    wrapper.__doc__ = (draw.__doc__ or "").replace("\n\n    Returns\n", _DESCRIPTIONS, 1)
    return wrapper
