"""A small protein in two conformations and a map of the second, for the tests of the cryo-EM pipeline."""

from dataclasses import dataclass
from pathlib import Path

import gemmi
import numpy as np
import torch
from scipy.spatial.transform import Rotation

import densemble
from densemble.em.inputs import StateSettings
from densemble.forward.molmap import MolmapDensity
from densemble.grid import DensityMap, Grid
from densemble.io.maps import write_map
from densemble.io.models import read_model
from densemble.likelihood.blur import gaussian_blur

EXAMPLE = Path(densemble.__file__).parent / "data" / "7rin" / "model.cif"
RESOLUTION = 4.0
RESIDUES = range(60, 110)
HINGE = 85
RECIPE = """name = "small"
source = "few steps"
[sampling]
steps = 30
churn = 0.3
[trust]
domains = 3.0
local = 0.5
[target]
blur_per_sigma = 0.25
blur_limit = 5.0
[[stages]]
term = "density"
high = 100.0
low = 0.03
weight = 30.0
weight_end = 2.0
mode = "score"
limit = 4.0
[finish]
evaluations = 12
data_per_atom = 20.0
"""


@dataclass(frozen=True)
class SmallState:
    """Files; ``placed`` is the start superposed on the first half of the truth, ``start`` is anywhere."""

    truth: Path
    placed: Path
    start: Path
    map: Path
    half1: Path
    half2: Path
    recipe: Path

    def settings(self, **changes) -> StateSettings:
        values = {
            "map": self.map,
            "model": self.placed,
            "resolution": RESOLUTION,
            "placed": True,
            "members": 2,
            "recipe": str(self.recipe),
        }
        return StateSettings(**values | changes)


def _write(structure: gemmi.Structure, coords: np.ndarray, path: Path) -> None:
    structure = structure.clone()
    atoms = (atom for chain in structure[0] for residue in chain for atom in residue)
    for atom, position in zip(atoms, coords, strict=True):
        atom.pos.fromlist(position.tolist())
        atom.aniso = gemmi.SMat33f(0, 0, 0, 0, 0, 0)
    structure.make_mmcif_document().write_file(str(path))


def write_state(folder: Path, *, degrees: float = 20.0) -> SmallState:
    """Fifty residues of PTP1B; in the truth the second half is turned about the hinge."""
    structure = gemmi.read_structure(str(EXAMPLE))
    for chain in structure[0]:
        for r in reversed(range(len(chain))):
            if chain[r].seqid.num not in RESIDUES or chain.name != "A" or chain[r].is_water():
                del chain[r]
    structure.remove_empty_chains()
    structure.make_mmcif_document().write_file(str(folder / "first.cif"))
    model = read_model(folder / "first.cif")
    coords = model.coords - model.coords.mean(0) + 30.0
    number = np.array([model.topology.residues[r].id.number for r in model.topology.residue_index])
    pivot = coords[(number == HINGE) & (np.array(model.topology.names) == "CA")][0]
    bent = coords.copy()
    turn = Rotation.from_rotvec(np.deg2rad([0.0, degrees, 0.0])).as_matrix()
    bent[number > HINGE] = (coords[number > HINGE] - pivot) @ turn.T + pivot
    files = {name: folder / f"{name}.cif" for name in ("truth", "placed", "start")}
    _write(model.structure, bent, files["truth"])
    _write(model.structure, coords, files["placed"])
    away = Rotation.from_rotvec([1.0, -2.0, 0.5]).as_matrix()
    _write(model.structure, coords @ away.T + [20.0, -70.0, 10.0], files["start"])
    grid = Grid.around(bent, margin=9.0, spacing=1.3)
    clean = MolmapDensity(grid, model.topology.elements, resolution=RESOLUTION).members(
        torch.from_numpy(bent).float()[None]
    )[0]
    generator = torch.Generator().manual_seed(0)
    maps = {"map": 0.0, "half1": 0.1, "half2": 0.1}
    for name, level in maps.items():
        noise = gaussian_blur(torch.randn(clean.shape, generator=generator), grid, 1.0)
        files[name] = folder / f"{name}.ccp4"
        write_map(files[name], DensityMap(grid, clean + level * clean.std() * noise / noise.std()))
    files["recipe"] = folder / "small.toml"
    files["recipe"].write_text(RECIPE, encoding="utf-8")
    return SmallState(**files)
