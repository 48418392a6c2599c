"""The bits' factorial posterior and the encoder that draws differentiable bits from it."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

_EPS = 1e-6  # keeps log-probabilities of saturated bits finite: at most 13.8 nats a bit

Relaxation = Literal["reinmax", "straight-through", "gumbel", "concrete", "exponential"]
RELAXATIONS = get_args(Relaxation)


class BitPosterior(Distribution):
    """Independent bits with probabilities ``probs``; element-wise, like ``Normal``.

    scvi-tools reads ``loc`` and ``scale`` off a posterior, rebuilds it from ``arg_constraints``
    and expects ``log_prob`` of the sample's shape; torch's ``Bernoulli`` offers none of these.
    Parameterised by ``probs`` so that ``loc`` survives storage bit for bit.
    """

    arg_constraints = {"probs": constraints.unit_interval}
    support = constraints.unit_interval

    def __init__(self, probs: Tensor, validate_args: bool | None = None):
        self.probs = probs
        super().__init__(probs.shape, validate_args=validate_args)

    @property
    def loc(self) -> Tensor:
        """Probability that the bit is 1."""
        return self.probs

    mean = loc

    @property
    def variance(self) -> Tensor:
        """``p (1 - p)``."""
        return self.probs * (1 - self.probs)

    @property
    def scale(self) -> Tensor:
        """Standard deviation."""
        return self.variance.sqrt()

    @property
    def logits(self) -> Tensor:
        """Log-odds, finite for saturated bits."""
        p = self.probs.clamp(_EPS, 1 - _EPS)
        return p.log() - (-p).log1p()

    def sample(self, sample_shape: torch.Size = ()) -> Tensor:
        """Hard bits."""
        with torch.no_grad():
            uniform = torch.rand(
                self._extended_shape(torch.Size(sample_shape)),
                dtype=self.probs.dtype,
                device=self.probs.device,
            )
            return (uniform < self.probs).to(self.probs.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        """Element-wise log-probability; for probabilities as ``value``, its expectation."""
        if self._validate_args:
            self._validate_sample(value)
        p = self.probs.clamp(_EPS, 1 - _EPS)
        return value * p.log() + (1 - value) * (-p).log1p()

    def entropy(self) -> Tensor:
        """Element-wise entropy in nats."""
        p = self.probs.clamp(_EPS, 1 - _EPS)
        return -(p * p.log() + (1 - p) * (-p).log1p())

    def expand(self, batch_shape: torch.Size, _instance=None) -> BitPosterior:
        """The same bits broadcast to ``batch_shape``."""
        return BitPosterior(self.probs.expand(batch_shape), validate_args=False)


class BitEncoder(nn.Module):
    """SCVI's encoder with its mean head read as log-odds of bits.

    Without a gradient the code is hard bits. A gradient needs a surrogate:

    ``"reinmax"``
        hard bits; the slope of the decoder at both ends weighs the gradient (second-order
        accurate; Liu et al. 2023, for two classes);
    ``"straight-through"``
        hard bits; the gradient of the probability;
    ``"gumbel"``
        hard bits; the gradient of the binary concrete draw;
    ``"concrete"``
        the binary concrete draw itself (Maddison et al. 2017);
    ``"exponential"``
        overlapping exponentials around 0 and 1 (Vahdat et al. 2018).

    Parameters
    ----------
    encoder
        The trunk, ``scvi.nn.FCLayers``.
    mean_encoder
        Linear head, one output a bit.
    relaxation
        One of the above.
    temperature
        Temperature of ``"gumbel"`` and ``"concrete"``; inverse rate of ``"exponential"``.
    """

    def __init__(
        self,
        encoder: nn.Module,
        mean_encoder: nn.Linear,
        relaxation: Relaxation,
        temperature: float,
    ):
        super().__init__()
        self.encoder = encoder
        self.mean_encoder = mean_encoder
        self.relaxation = relaxation
        self.temperature = temperature

    @staticmethod
    def z_transformation(z: Tensor) -> Tensor:
        """Bits need none."""
        return z

    def forward(self, x: Tensor, *cat_list: Tensor) -> tuple[BitPosterior, Tensor]:
        """Posterior and one draw (relaxed where a gradient is asked for, else hard bits)."""
        head = self.mean_encoder(self.encoder(x, *cat_list))
        logits = head if head.dtype == torch.float64 else head.float()
        qz = BitPosterior(logits.sigmoid(), validate_args=False)
        # not self.training: scvi-tools trains queries and trained models in evaluation mode
        surrogate = logits.requires_grad
        z = relax(logits, qz, self.relaxation, self.temperature) if surrogate else qz.sample()
        return qz, z.to(head.dtype)


def relax(logits: Tensor, qz: BitPosterior, relaxation: Relaxation, temperature: float) -> Tensor:
    """A draw of the bits that lets a gradient through to ``logits``."""
    if relaxation in ("reinmax", "straight-through"):
        bits, p = qz.sample(), qz.probs
        slope = (bits - p).abs() / 2 if relaxation == "reinmax" else p * (1 - p)
        slope = slope.detach()
        return bits + slope * (logits - logits.detach())
    u = torch.rand_like(logits).clamp(_EPS, 1 - _EPS)
    if relaxation == "exponential":
        return _overlapping_exponentials(qz.probs, u, 1 / temperature)
    soft = ((logits + u.log() - (-u).log1p()) / temperature).sigmoid()
    if relaxation == "concrete":
        return soft
    return (soft > 0.5).to(soft.dtype) + soft - soft.detach()


def _overlapping_exponentials(p: Tensor, u: Tensor, rate: float) -> Tensor:
    """Inverse CDF at ``u`` of ``(1-p) rate e^{-rate x} + p rate e^{rate (x-1)}`` on [0, 1]."""
    tail = torch.exp(torch.tensor(-rate, dtype=p.dtype, device=p.device))
    p = p.clamp(_EPS, 1 - _EPS)
    # with m = exp(-rate x): (1-p) m^2 + half m - p tail = 0
    half = u * (1 - tail) - (1 - p) + p * tail
    root = (half.square() + 4 * (1 - p) * p * tail).sqrt()
    # two forms of the same root: each loses digits (and its gradient) where the other does not
    positive = half > 0
    stable = 2 * p * tail / torch.where(positive, half + root, 1.0)
    m = torch.where(positive, stable, (root - half) / (2 * (1 - p)))
    return (-m.clamp(min=torch.finfo(p.dtype).tiny).log() / rate).clamp(0, 1)
