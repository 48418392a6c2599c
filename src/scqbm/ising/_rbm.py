"""The machine itself; the package's docstring fixes its signs, units and temperature."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import softplus

from scqbm.ising import _transverse


@dataclass(frozen=True)
class RBM:
    """A restricted Boltzmann machine as plain numbers; samplers receive this and nothing else.

    Parameters
    ----------
    a
        Visible biases, shape ``(n_visible,)``.
    b
        Hidden biases, shape ``(n_hidden,)``.
    W
        Couplings, shape ``(n_visible, n_hidden)``.
    gaussian
        Whether the visible units are real numbers with unit variance given the hidden ones.
    gamma
        Transverse fields of the hidden units, shape ``(n_hidden,)``, in units of the temperature.
        Hidden draws are then numbers between 0 and 1. ``None`` for hidden bits.
    """

    a: Tensor
    b: Tensor
    W: Tensor
    gaussian: bool = False
    gamma: Tensor | None = None

    @property
    def n_visible(self) -> int:
        """Number of visible units."""
        return self.W.shape[0]

    @property
    def n_hidden(self) -> int:
        """Number of hidden units."""
        return self.W.shape[1]

    def _centre(self, v: Tensor) -> Tensor:
        return v if self.gaussian else v - 0.5

    def energy(self, v: Tensor, h: Tensor) -> Tensor:
        """``E(v, h)``; bilinear, so independent probabilities give the expected energy."""
        coupled = ((self._centre(v) @ self.W) * (h - 0.5)).sum(-1)
        return self._confinement(v) - v @ self.a - h @ self.b - coupled

    def free_energy(self, v: Tensor, field: Tensor | None = None) -> Tensor:
        """``F(v) = -log sum_h exp(-E(v, h))``; ``field`` is ``hidden_field(v)`` if at hand."""
        return self._confinement(v) + self.interaction(v, field)

    def interaction(self, v: Tensor, field: Tensor | None = None) -> Tensor:
        """Free energy less the Gaussian confinement ``|v|^2 / 2`` (equal to it for bits)."""
        x = self.hidden_field(v) if field is None else field
        # the centring of h adds half of all couplings of v, which needs no field: faster
        half = self.W.sum(1) / 2
        energy = v @ (half - self.a) - _transverse.log_sum(x, self.gamma).sum(-1)
        return energy if self.gaussian else energy - half.sum() / 2

    def hidden_free_energy(self, h: Tensor) -> Tensor:
        """``F(h)``: the same with the visible layer summed (or integrated) out; for bits ``h``."""
        self._need_bits("A free energy of the hidden layer")
        x = self.visible_field(h)
        if self.gaussian:
            return -(h @ self.b) - (x.square() / 2 + math.log(2 * math.pi) / 2).sum(-1)
        shift = ((h - 0.5) @ self.W.T).sum(-1) / 2
        return -(h @ self.b) + shift - softplus(x).sum(-1)

    def classical(self) -> RBM:
        """The machine without its transverse fields."""
        return replace(self, gamma=None)

    def _need_bits(self, what: str) -> None:
        if self.gamma is not None:
            raise ValueError(f"{what} needs hidden bits without a transverse field.")

    def _confinement(self, v: Tensor) -> Tensor | float:
        return v.square().sum(-1) / 2 if self.gaussian else 0.0

    def hidden_field(self, v: Tensor) -> Tensor:
        """Log-odds of the hidden bits given ``v``."""
        b = self.b if self.gaussian else self.b - self.W.sum(0) / 2  # centres v: faster
        return v @ self.W + b

    def visible_field(self, h: Tensor) -> Tensor:
        """Log-odds (bits) or means (Gaussian) of the visible units given ``h``."""
        return h @ self.W.T + (self.a - self.W.sum(1) / 2)

    def hidden_mean(self, v: Tensor) -> Tensor:
        """Means of the hidden units given ``v``."""
        return _transverse.mean(self.hidden_field(v), self.gamma)

    def hidden_variance(self, v: Tensor) -> Tensor:
        """Variances of the hidden units given ``v``."""
        return _transverse.variance(self.hidden_field(v), self.gamma)

    def draw_hidden(self, v: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Hidden units given ``v``: bits, or numbers between 0 and 1 in a transverse field."""
        return _transverse.draw(self.hidden_field(v), self.gamma, generator)

    def draw_visible(self, h: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Visible units given ``h``."""
        return draw_units(self.visible_field(h), self.gaussian, generator)

    def scaled(self, factor: float | Tensor) -> RBM:
        """The same biases with the couplings multiplied by ``factor`` (0: independent units)."""
        return replace(self, W=self.W * factor)

    def shifted(self, visible: Tensor, hidden: Tensor | None = None) -> RBM:
        """The same couplings with fields added to the biases."""
        return replace(self, a=self.a + visible, b=self.b if hidden is None else self.b + hidden)

    def held(self, visible: Tensor, hidden: Tensor) -> RBM:
        """The machine of the other units, given the values of some.

        It has as many units, so that it fits the same samplers. A held unit is left without bias
        and couplings: its draws mean nothing, and the caller puts its value in their place.

        Parameters
        ----------
        visible, hidden
            Values of the held units, NaN for the others.
        """
        v_held, h_held = ~visible.isnan(), ~hidden.isnan()
        v = torch.where(v_held, self._centre(visible), 0.0)
        h = torch.where(h_held, hidden - 0.5, 0.0)
        return replace(
            self,
            a=(self.a + self.W @ h).masked_fill(v_held, 0.0),
            b=(self.b + v @ self.W).masked_fill(h_held, 0.0),
            W=self.W.masked_fill(v_held.unsqueeze(1) | h_held, 0.0),
        )

    def log_z_uncoupled(self) -> Tensor:
        """Log partition function of the same biases without couplings."""
        if self.gaussian:
            visible = (self.a.square() / 2 + math.log(2 * math.pi) / 2).sum()
        else:
            visible = softplus(self.a).sum()
        return visible + _transverse.log_sum(self.b, self.gamma).sum()

    def transposed(self) -> RBM:
        """Swap the layers (bits only)."""
        if self.gaussian:
            raise ValueError("A Gaussian layer cannot become the hidden layer.")
        self._need_bits("An exchange of the layers")
        return RBM(a=self.b, b=self.a, W=self.W.T)

    def to(self, *args, **kwargs) -> RBM:
        """Move or cast the tensors as :meth:`torch.Tensor.to` does."""
        return RBM(
            self.a.to(*args, **kwargs),
            self.b.to(*args, **kwargs),
            self.W.to(*args, **kwargs),
            self.gaussian,
            None if self.gamma is None else self.gamma.to(*args, **kwargs),
        )

    def to_ising(self) -> tuple[Tensor, Tensor, Tensor]:
        """Fields, couplings and offset of the spin dialect that annealers minimise.

        Returns
        -------
        ``h`` of shape ``(n_visible + n_hidden,)``, ``J`` of shape ``(n_visible, n_hidden)`` and a
        scalar ``offset`` with ``E = h.s + s_v' J s_h + offset`` equal to :meth:`energy`.
        """
        if self.gaussian:
            raise ValueError("Integrate the Gaussian layer out before asking for spins.")
        self._need_bits("An Ising model")
        fields = -torch.cat([self.a, self.b]) / 2
        return fields, -self.W / 4, fields.sum()

    def hidden_ising(self) -> tuple[Tensor, Tensor, Tensor]:
        """The same with a Gaussian layer integrated out: a dense Ising model of the hidden bits.

        Returns
        -------
        ``h`` of shape ``(n_hidden,)``, ``J`` as a strict upper triangle and a scalar ``offset``,
        equal to :meth:`hidden_free_energy`.
        """
        if not self.gaussian:
            raise ValueError("Only a Gaussian layer integrates to an Ising model.")
        self._need_bits("An Ising model")
        fields = -(self.b + self.W.T @ self.a) / 2
        gram = self.W.T @ self.W
        constant = (self.a.square() / 2 + math.log(2 * math.pi) / 2).sum() + gram.trace() / 8
        return fields, -gram.triu(1) / 4, -self.b.sum() / 2 - constant


def draw_units(
    field: Tensor,
    gaussian: bool = False,
    generator: torch.Generator | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Bits given their log-odds, or Gaussian units given their means.

    With ``out`` nothing is allocated: it receives the units, and ``field`` is used up.
    """
    if not gaussian:
        return _transverse.draw(field, None, generator, out)
    if out is None:
        out = torch.empty_like(field)
    return out.normal_(generator=generator).add_(field)


def bits_to_spins(bits: Tensor) -> Tensor:
    """{0, 1} to {-1, +1}."""
    return 2 * bits - 1


def spins_to_bits(spins: Tensor) -> Tensor:
    """{-1, +1} to {0, 1}."""
    return (spins + 1) / 2
