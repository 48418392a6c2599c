"""Logging that costs little: Lightning hears once an epoch what it reports once an epoch."""

from __future__ import annotations

import numbers
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor
from torchmetrics import Metric

if TYPE_CHECKING:  # what the mixin is mixed into
    from scvi.train import TrainingPlan as _Plan
else:
    _Plan = object


class Mean(Metric):
    """Mean weighted by cells.

    torchmetrics' own leaves NaN out by default, and all weights if told not to.
    """

    full_state_update = False
    total: Tensor
    n: Tensor

    def __init__(self):
        super().__init__()
        self.add_state("total", default=torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("n", default=torch.zeros(()), dist_reduce_fx="sum")

    def update(self, value: Tensor, n: int) -> None:
        """Add the mean over ``n`` cells."""
        self.total += n * value
        self.n += n

    def compute(self) -> Tensor:
        """The mean so far."""
        return self.total / self.n


class EpochMeansMixin(_Plan):
    """A plan of scvi-tools whose numbers reach Lightning once an epoch where that is enough.

    Each number that is logged costs time in Lightning. Here a mean over an epoch is kept by a
    :class:`Mean`, a metric is handed over at its first step, and a number that stays the same is
    logged at its first step too. What the history shows is the same.
    """

    _n_cells: int | None = None  # of the minibatch, during a step

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._known: dict[str, Any] = {}  # what Lightning was told in this epoch

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """The plan's."""
        return self._step(super().training_step, batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        """The plan's."""
        return self._step(super().validation_step, batch, batch_idx)

    def _step(self, step: Any, batch: Any, batch_idx: int) -> Any:
        self._n_cells = _n_cells(batch)
        try:
            return step(batch, batch_idx)
        finally:
            self._n_cells = None

    def on_train_epoch_start(self) -> None:
        """Begin anew."""
        super().on_train_epoch_start()
        self._known.clear()

    def on_validation_epoch_start(self) -> None:
        """Begin anew."""
        super().on_validation_epoch_start()
        self._known.clear()

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """Lightning's, but not at every step where once an epoch is enough."""
        on_step, on_epoch = kwargs.get("on_step"), kwargs.get("on_epoch")
        is_mean = not args and kwargs.get("reduce_fx", "mean") == "mean"
        if self._n_cells is None or not is_mean:
            super().log(name, value, *args, **kwargs)
        elif on_epoch and not on_step:
            if isinstance(value, Tensor):
                attribute = f"mean_of_{name}".replace(".", "_")
                if not hasattr(self, attribute):
                    setattr(self, attribute, Mean().to(value.device))
                mean = getattr(self, attribute)
                mean.update(value.detach(), kwargs.get("batch_size") or self._n_cells)
                value, kwargs["metric_attribute"] = mean, attribute
            if not isinstance(value, Metric) or name not in self._known:
                super().log(name, value, **kwargs)
                self._known[name] = None
        else:
            number = _number(value)
            if number is None or self._known.get(name) != number:
                super().log(name, value, **kwargs)
                self._known[name] = number


def _number(value: Any) -> Any:
    """A value as a number, if it takes no wait for a device."""
    if isinstance(value, Tensor) and value.device.type == "cpu" and value.numel() == 1:
        return value.item()
    return value if isinstance(value, numbers.Number) else None


def _n_cells(batch: Any) -> int:
    """Cells of a minibatch; of two, the first is that of all cells."""
    if isinstance(batch, list | tuple) and batch and isinstance(batch[0], dict):
        batch = batch[0]
    if isinstance(batch, dict):  # found at once, without a warning about tensors of other lengths
        for value in batch.values():
            if isinstance(value, Tensor):
                return len(value)
    return extract_batch_size(batch)
