"""Restricted Boltzmann machines as plain numbers: energies, enumeration, annealing, health.

The one place where signs, units and temperature are fixed. Every Boltzmann distribution in scqbm
is a restricted Boltzmann machine at temperature 1, ``p(v, h) = exp(-E(v, h)) / Z``, over a visible
layer ``v`` and a hidden layer ``h``:

* bits ``v, h`` in {0, 1}:
  ``E = -(a.v + b.h + (v - 1/2)' W (h - 1/2))``
* Gaussian visible units ``v`` in R, bits ``h``:
  ``E = |v|^2 / 2 - (a.v + b.h + v' W (h - 1/2))``

Couplings act on bits centred at one half, that is on half a spin: to exchange the two values of a
bit only changes signs, and with ``W = 0`` the biases are log-odds (or Gaussian means).

Hidden units may be spins in a transverse field ``gamma`` (a quantum Boltzmann machine with a
diagonal visible layer): ``exp(-H) / tr exp(-H)`` with the same energy in the place of ``H`` and
``-gamma X`` for each hidden spin, in units of the temperature. :mod:`scqbm.ising._transverse` has
their formulas.

A label unit ``y`` (:class:`scqbm.prior.LabelledPrior`) adds ``-(c_y + U_y.z)`` to the energy of a
code ``z``. To fix ``y`` only adds fields to the biases, so that samplers see bits only.

Annealers use another convention: spins ``s = 2 * bit - 1`` and a *plus* before the sums,
``E = sum_i h_i s_i + sum_ij J_ij s_i s_j + offset``. Only :meth:`RBM.to_ising`,
:meth:`RBM.hidden_ising`, :func:`bits_to_spins` and :func:`spins_to_bits` translate.
"""

from scqbm.ising._annealing import LogPartition, anneal, annealed_log_partition, log_partition
from scqbm.ising._exact import (
    MAX_EXACT_UNITS,
    all_states,
    can_enumerate,
    enumerate_hidden,
    enumerate_visible,
    exact_log_partition,
    smaller_hidden,
    smaller_side,
    states,
)
from scqbm.ising._health import autocorrelation, effective_beta, effective_number
from scqbm.ising._rbm import RBM, bits_to_spins, draw_units, spins_to_bits
from scqbm.ising._topology import TOPOLOGIES, Layout, ideal_graph, native_layout
from scqbm.ising._transverse import draw as draw_hidden

__all__ = [
    "MAX_EXACT_UNITS",
    "RBM",
    "TOPOLOGIES",
    "Layout",
    "LogPartition",
    "all_states",
    "anneal",
    "annealed_log_partition",
    "autocorrelation",
    "bits_to_spins",
    "can_enumerate",
    "draw_hidden",
    "draw_units",
    "effective_beta",
    "effective_number",
    "enumerate_hidden",
    "enumerate_visible",
    "exact_log_partition",
    "ideal_graph",
    "log_partition",
    "native_layout",
    "smaller_hidden",
    "smaller_side",
    "spins_to_bits",
    "states",
]
