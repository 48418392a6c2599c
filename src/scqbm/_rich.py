"""scvi-tools 1.4.2 uses ``rich.pretty`` without importing it, which rich 15 no longer allows."""

from __future__ import annotations

import importlib.util
import sys


def provide_pretty() -> None:
    """Make ``rich.pretty`` known, to be loaded at its first use: by itself it takes 12 ms."""
    name = "rich.pretty"
    if name in sys.modules:
        return
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        return
    loader = importlib.util.LazyLoader(spec.loader)
    spec.loader = loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    loader.exec_module(module)
    vars(sys.modules["rich"])["pretty"] = module
