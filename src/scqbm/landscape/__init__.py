"""The energy landscape of a machine as plain numbers: its states, barriers and merge tree.

It knows neither the model nor samplers. :meth:`scqbm.QBMVI.get_landscape` brings in the cells.
"""

from scqbm.landscape._bits import PairEnergy
from scqbm.landscape._paths import barriers
from scqbm.landscape._tree import MergeTree, merge_tree

__all__ = ["MergeTree", "PairEnergy", "barriers", "merge_tree"]
