"""The wrapper that ``torch.compile`` puts around a module."""

from __future__ import annotations

from typing import Any

from torch import nn

_WRAPPER = "_orig_mod"


def inner(module: Any) -> nn.Module:
    """The module itself, compiled or not."""
    return getattr(module, _WRAPPER, module)


def plain_names(state: dict[str, Any]) -> dict[str, Any]:
    """A state whose names do not tell whether the module was compiled."""
    return {name.replace(f"{_WRAPPER}.", ""): value for name, value in state.items()}
