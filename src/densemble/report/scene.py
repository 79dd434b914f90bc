"""What is shown in three dimensions: the conformations of a run, what surrounds them, and the map."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import gemmi
import numpy as np
from jaxtyping import Float
from scipy.spatial import cKDTree

from densemble.atoms import Region, ResidueId
from densemble.errors import InputError
from densemble.io.model_results import ALTERNATIVE_FILE, MODEL_FILE, Part
from densemble.io.models import read_model
from densemble.io.naming import NO_ALTLOC, residue_id
from densemble.io.output import MAP_FILE
from densemble.io.results import ENSEMBLE_FILE, Result
from densemble.io.state_results import MODELS_FILE, START_FILE
from densemble.report.folder import RunFolder

PALETTE = ("#1f6fb4", "#d5572c", "#2f8a57", "#8b5fa8", "#b07d12", "#0f8f9c", "#b8457f", "#6b6f2a")
"""Of states, in order; told apart also with the common deficiencies of colour vision."""
GREY, WATER, MAP_COLOUR = "#cdd2d9", "#9bb8cc", "#8194a6"
FRONT = 20.0
"""Å; the rest of the model so near to the states must not be in front of them."""
WATERS_WITHIN = 6.0
"""Å from the states, of the waters that are shown."""
MOST = 8
"""At most so many models of a fit to a cryo-EM map are shown."""


@dataclass(frozen=True, eq=False)
class Conformation:
    """One state as it is drawn.

    Attributes:
        name: as the user meets it everywhere, for example ``A`` or ``model 1``.
        part: residues that it is of, as the record writes them; empty where it is of the whole model.
        stretches: the same in the numbers of the file, first and last of each.
        altloc: its letter in the file; empty without altlocs.
        model: its number among the models of the file, from 1.
        occupancy: None where it is not one of several that make up the map together.
        colour: ``#rrggbb``.
        structure: its atoms alone, with a residue on either side to join it to the rest.
        coords: Å, those of its own residues, shape=(n, 3).
        shown: at first.
    """

    name: str
    part: str
    stretches: tuple[tuple[ResidueId, ResidueId], ...]
    altloc: str
    model: int
    occupancy: float | None
    colour: str
    structure: gemmi.Structure
    coords: Float[np.ndarray, "n 3"]
    shown: bool = True


@dataclass(frozen=True, eq=False)
class Scene:
    """Conformations of one model file in their map.

    Attributes:
        file: the model file, in the folder.
        conformations: the states, part by part.
        around: what has one state, of the waters those near the states; None where whole models are shown.
        map_file: in the folder; None where there is none.
    """

    file: str
    conformations: tuple[Conformation, ...]
    around: gemmi.Structure | None
    map_file: str | None

    @property
    def points(self) -> Float[np.ndarray, "n 3"]:
        """Å, all atoms that have several places."""
        return np.concatenate([c.coords for c in self.conformations])


@dataclass(frozen=True, eq=False)
class Camera:
    """A place from which the states are seen side by side.

    Attributes:
        target: Å, the middle of the picture, shape=(3,).
        right, up, towards: unit vectors of the picture and out of it, right-handed, shape=(3,).
        reach: Å, of the states from the target to the right, up and towards the viewer, shape=(3,).
    """

    target: Float[np.ndarray, " 3"]
    right: Float[np.ndarray, " 3"]
    up: Float[np.ndarray, " 3"]
    towards: Float[np.ndarray, " 3"]
    reach: Float[np.ndarray, " 3"]

    @classmethod
    def of(cls, scene: Scene) -> Camera:
        """Along the direction in which the states are thinnest, with the rest of the model behind them."""
        points = scene.points
        target = (points.min(axis=0) + points.max(axis=0)) / 2
        _, _, axes = np.linalg.svd(points - points.mean(axis=0), full_matrices=False)
        right, towards = axes[0], axes[2]
        if scene.around is not None and len(rest := _coords(scene.around)):
            near = rest[np.linalg.norm(rest - target, axis=1) < FRONT]
            if len(near) and (near.mean(axis=0) - target) @ towards > 0:
                towards = -towards
        up = np.cross(towards, right)
        reach = np.abs((points - target) @ np.column_stack([right, up, towards])).max(axis=0)
        return cls(target, right, up, towards, reach)

    def project(self, coords: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        """Å to the right, up and towards the viewer."""
        return (coords - self.target) @ np.column_stack([self.right, self.up, self.towards])


def scene_of(run: RunFolder) -> Scene | None:
    """The scene of a run; None where its folder has no model.

    The refined model of states is shown where there is one, else the ensemble as sampled, else the models
    of a fit to a cryo-EM map.

    Raises:
        InputError: a model file cannot be read, or lacks the region.
    """
    result, folder = run.result, run.path
    map_file = MAP_FILE if (folder / MAP_FILE).is_file() else None
    region: str | None
    if isinstance(result, Result):
        region, final = result.region, result.model
    elif result.region is not None:
        region, final = result.region.region, result.region.model
    else:
        region, final = None, None
    parts: list[tuple[str, Part | None]] = [] if region is None else [(region, None)]
    file = ENSEMBLE_FILE
    if final is not None:
        of_states = MODEL_FILE if final.advised else ALTERNATIVE_FILE
        if (folder / of_states).is_file():
            file, parts = of_states, [(part.region, part) for part in final.states.parts] or parts
    if parts and (folder / file).is_file():
        return _of_altlocs(folder, file, parts, map_file)
    if (folder / MODELS_FILE).is_file():
        return _of_models(folder, map_file)
    return None


def _of_altlocs(folder: Path, file: str, parts: list[tuple[str, Part | None]], map_file: str | None) -> Scene:
    """States of parts of one model, by altloc."""
    structure = _read(folder / file)
    topology = read_model(folder / file).topology
    conformations: list[Conformation] = []
    several: set[ResidueId] = set()
    for region, part in parts:
        resolved = Region.parse(region).resolve(topology)
        indices = [r for stretch in resolved for r in stretch]
        ends = tuple((topology.residues[s[0]].id, topology.residues[s[-1]].id) for s in resolved)
        own = {topology.residues[r].id for r in indices}
        beside = {r + step for r in indices for step in (-1, 1)} & set(range(len(topology.residues)))
        near = {topology.residues[r].id for r in beside} | own
        several |= own
        stated = {s.label: s.occupancy for s in part.states} if part is not None else {}
        found = _letters(structure, own)
        for letter in sorted(found, key=lambda x: (-stated.get(x, 0.0), x)):
            kept = _only(structure, near, letter)
            conformations.append(
                Conformation(
                    name=letter or "one state",
                    part=region,
                    stretches=ends,
                    altloc=letter,
                    model=1,
                    occupancy=stated.get(letter, found[letter]),
                    colour=PALETTE[_rank(letter) % len(PALETTE)],
                    structure=kept,
                    coords=_coords(_only(structure, own, letter)),
                )
            )
    everything = {residue_id(chain, residue) for chain in structure[0] for residue in chain}
    around = _only(structure, everything - several, None)
    _remove_far_waters(around, np.concatenate([c.coords for c in conformations]))
    return Scene(file, tuple(conformations), around, map_file)


def _of_models(folder: Path, map_file: str | None) -> Scene:
    """Whole models, the best first and alone at first; then the start as it was docked."""
    structure = _read(folder / MODELS_FILE)
    found = []
    for k in range(min(len(structure), MOST)):
        alone = _model(structure, k)
        found.append(
            Conformation(f"model {k + 1}", "", (), "", k + 1, None, PALETTE[k], alone, _coords(alone), k == 0)
        )
    if (folder / START_FILE).is_file():
        start = _read(folder / START_FILE)
        found.append(Conformation("start", "", (), "", 0, None, GREY, start, _coords(start), False))
    return Scene(MODELS_FILE, tuple(found), None, map_file)


def _remove_far_waters(structure: gemmi.Structure, points: Float[np.ndarray, "n 3"]) -> None:
    """Waters that are not near any of some points only clutter the view; in place."""
    tree = cKDTree(points)
    for chain in structure[0]:
        for r in reversed(range(len(chain))):
            if chain[r].is_water() and tree.query(_coords_of(chain[r]))[0].min() > WATERS_WITHIN:
                del chain[r]
    structure.remove_empty_chains()


def _coords_of(residue: gemmi.Residue) -> np.ndarray:
    return np.array([atom.pos.tolist() for atom in residue])


def _read(path: Path) -> gemmi.Structure:
    try:
        structure = gemmi.read_structure(str(path))
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a model ({error})") from error
    if len(structure) == 0:
        raise InputError(f"{path}: has no model in it")
    return structure


def _model(structure: gemmi.Structure, k: int) -> gemmi.Structure:
    """One of the models of a structure, alone."""
    alone = structure.clone()
    for i in reversed(range(len(alone))):
        if i != k:
            del alone[i]
    return alone


def _letters(structure: gemmi.Structure, own: Iterable[ResidueId]) -> dict[str, float]:
    """Altlocs of some residues, with their mean occupancies; one without a name where there are none."""
    ids, found = set(own), dict[str, list[float]]()
    for chain in structure[0]:
        for residue in chain:
            if residue_id(chain, residue) in ids:
                for atom in residue:
                    if atom.altloc != NO_ALTLOC:
                        found.setdefault(atom.altloc, []).append(atom.occ)
    return {letter: float(np.mean(found[letter])) for letter in sorted(found)} or {"": 1.0}


def _rank(letter: str) -> int:
    return 0 if not letter else max(ord(letter) - ord("A"), 0)


def _only(structure: gemmi.Structure, ids: set[ResidueId], letter: str | None) -> gemmi.Structure:
    """Some residues in one altloc, as if there were no others; in all of them where the letter is None."""
    kept = structure.clone()
    for chain in kept[0]:
        for r in reversed(range(len(chain))):
            residue = chain[r]
            if residue_id(chain, residue) not in ids:
                del chain[r]
                continue
            for i in reversed(range(len(residue))):
                if letter is not None and residue[i].altloc not in (NO_ALTLOC, letter):
                    del residue[i]
                elif letter is not None:
                    residue[i].altloc = NO_ALTLOC
    kept.remove_empty_chains()
    return kept


def _coords(structure: gemmi.Structure) -> np.ndarray:
    return np.array([site.atom.pos.tolist() for site in structure[0].all()]).reshape(-1, 3)
