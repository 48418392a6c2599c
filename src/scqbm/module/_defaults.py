"""What an argument that is left out means, by kind of code and number of cells."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from scqbm._checks import amount

LATENT_DISTRIBUTIONS = ("bernoulli", "normal")


@dataclass(frozen=True)
class Defaults:
    """Values of the arguments of :class:`~scqbm.module.QBVAE` that depend on data or on others.

    Parameters
    ----------
    n_latent
        Units of the code.
    n_prior_hidden
        Hidden bits of the prior besides the code.
    batch_mixing
        Weight of the penalty on codes that differ between batches.
    input_dropout
        Share of the genes that the encoder does not see in a training step.
    decoder_dropout
        Share of its hidden units that the decoder drops in a training step.
    entropy_bonus
        Weight of the bonus for uncertain bits.
    """

    n_latent: int
    n_prior_hidden: int
    batch_mixing: float
    input_dropout: float
    decoder_dropout: float
    entropy_bonus: float

    @classmethod
    def for_cells(
        cls,
        n_cells: float | None = None,
        latent_distribution: Literal["bernoulli", "normal"] = "bernoulli",
        native: bool = False,
    ) -> Defaults:
        """Defaults for so many cells; ``None`` where their number is not known: for very many.

        Bits need more regularisation the fewer cells there are. ``"normal"`` begins as SCVI, whose
        loss and dropout it keeps. A prior that is ``native`` to a chip has no hidden bits, so that
        all qubits belong to the code.
        """
        if latent_distribution == "normal":
            return cls(10, 32, 0.0, 0.0, 0.0, 0.0)
        n = math.inf if n_cells is None else max(n_cells, 1)
        return cls(
            n_latent=128,
            n_prior_hidden=0 if native else 64,
            batch_mixing=50.0,
            input_dropout=min(0.3, 1000 / n),  # less from about 3,000 cells on
            decoder_dropout=max(0.0, 0.3 - n / 10_000),  # none from 3,000 cells on
            entropy_bonus=min(0.5, max(0.1, (1000 / n) ** 2)),  # least from about 3,000 cells on
        )

    def with_given(self, **given: Any) -> Defaults:
        """The same with the arguments that are not ``None``."""
        return replace(self, **{name: value for name, value in given.items() if value is not None})

    def check(self, latent_distribution: str) -> None:
        """Raise a ValueError that names the first value that cannot be."""
        bits = latent_distribution == "bernoulli"
        amount("n_prior_hidden", self.n_prior_hidden)
        if not bits and self.n_prior_hidden == 0:
            raise ValueError(
                "`n_prior_hidden` must be at least 1 with latent_distribution='normal': two "
                "Gaussian halves would only make another Gaussian."
            )
        least = 1 if self.n_prior_hidden else 2
        if self.n_latent < least:
            reason = "" if self.n_prior_hidden else " because its two halves are the RBM's layers"
            raise ValueError(f"`n_latent` must be at least {least}, not {self.n_latent}{reason}.")
        amount("batch_mixing", self.batch_mixing)
        amount("input_dropout", self.input_dropout, below=1)
        amount("decoder_dropout", self.decoder_dropout, below=1)
        amount("entropy_bonus", self.entropy_bonus)
        for name, its in (("input_dropout", "encoder"), ("entropy_bonus", "posterior")):
            if not bits and getattr(self, name) > 0:
                raise ValueError(
                    f"`{name}` is for bits: latent_distribution='normal' has SCVI's {its}."
                )

    def __str__(self) -> str:
        return ", ".join(f"{name}: {_short(value)}" for name, value in asdict(self).items())


def check_family(latent_distribution: str) -> None:
    """Raise a ValueError unless there is such a kind of code."""
    if latent_distribution not in LATENT_DISTRIBUTIONS:
        hint = " (a logistic normal has no RBM prior)" if latent_distribution == "ln" else ""
        raise ValueError(
            f"`latent_distribution` must be 'bernoulli' or 'normal', not "
            f"{latent_distribution!r}{hint}."
        )


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
