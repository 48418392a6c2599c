"""Training curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from scqbm.pl._axes import new_axes, plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLES = {"train": ":", "validation": "-"}
LABELS = {"elbo": "-ELBO, nats per cell"}


@plot
def training(
    models: Any, metric: str = "elbo", n_skipped: int | None = None, ax: Axes | None = None
) -> Axes:
    """Plot a loss of one or more models against the epochs of their training.

    Dotted lines are the training cells, solid lines the validation cells. If the solid line rises
    while the dotted one falls, the model overfits.

    Parameters
    ----------
    models
        A trained model or its ``history``, or a dict from a name to either.
    metric
        Which loss: ``"elbo"`` (which scvi-tools stores as a loss, with a minus), or another name
        in the history that comes with ``_train`` and ``_validation``, such as
        ``"reconstruction_loss"``.
    n_skipped
        Epochs to leave out at the start, since their steep fall hides the rest. By default a tenth
        of the epochs, and at most 3.
    ax
        Where to draw. By default the Axes of a new figure.

    Returns
    -------
    The Axes.

    Examples
    --------
    >>> model.train(check_val_every_n_epoch=1)
    >>> scqbm.pl.training(model)
    """
    keys = {split: f"{metric}_{split}" for split in STYLES}
    if not isinstance(models, Mapping) or any(hasattr(m, "iloc") for m in models.values()):
        models = {"": models}  # one model, or one history: a dict of tables
    histories: dict[str, Any] = {
        name: getattr(model, "history", model) for name, model in models.items()
    }
    for history in histories.values():
        if not isinstance(history, Mapping):
            what = type(history).__name__
            raise ValueError(f"`models` must be trained models or their history, not a {what}.")
        if not any(key in history for key in keys.values()):
            found = sorted(k.removesuffix("_train") for k in history if k.endswith("_train"))
            raise ValueError(f"`metric` must be one of {found}, not {metric!r}.")
    if ax is None:
        ax = new_axes(6, 4)
    for name, history in histories.items():
        color = None  # the next one of the Axes, the same for both lines of a model
        for split, style in STYLES.items():
            if keys[split] not in history:
                continue
            curve = history[keys[split]].iloc[:, 0].dropna().astype(float)
            skipped = min(3, (curve.index.max() + 1) // 10) if n_skipped is None else n_skipped
            curve = curve[curve.index >= skipped]
            dot = "." if len(curve) == 1 else None  # a line of one point would not be seen
            label = f"{name} {split}".strip()
            (line,) = ax.plot(
                curve.index, curve, linestyle=style, marker=dot, color=color, label=label
            )
            color = line.get_color()
    ax.locator_params(axis="x", integer=True)
    ax.set(xlabel="epoch", ylabel=LABELS.get(metric, metric))
    ax.legend(frameon=False)
    return ax
