"""densemble: from a density map to the conformations that made it."""

from importlib.metadata import version

from densemble.atoms import Ensemble, Region, Topology
from densemble.grid import DensityMap, Grid

__all__ = ["DensityMap", "Ensemble", "Grid", "Region", "Topology"]
__version__ = version("densemble")
