"""The code of docs/extending.md runs as it stands."""

import re
from pathlib import Path

import numpy as np
import pytest
import scvi

from scqbm.data import simulate

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


@pytest.mark.skipif(not PAGE.exists(), reason="docs/ is not part of the source distribution")
def test_another_prior_and_another_module():
    scvi.settings.seed = 0
    names = {"adata": simulate(n_cells=100, n_genes=20, n_types=2, seed=0)}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S):
        exec(compile(block.replace("max_epochs=5", "max_epochs=1"), str(PAGE), "exec"), names)
    for model in (names["model"], names["linear"]):
        assert np.isfinite(model.get_prior_energy()).all()
        assert model.sample_cells(7).shape == (7, 20)
        assert model.get_log_partition().error < 0.1
    assert names["model"].module.prior.left.grad is not None
