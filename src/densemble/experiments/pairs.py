"""Two conformations given as backbones, made into a start and an answer with all atoms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from densemble.atoms import BACKBONE, Ensemble
from densemble.io.altlocs import build_structure
from densemble.io.models import Model, read_model
from densemble.io.results import write_structure
from densemble.sidechains.packing import SideChains
from densemble.sidechains.residues import complete_topology


def common(first: Model, second: Model) -> tuple[Model, Model]:
    """The residues that both have, by their numbers, with whole backbones."""

    def whole(model: Model) -> set[int]:
        index = model.topology.atom_index
        return {
            r.id.number
            for i, r in enumerate(model.topology.residues)
            if all((i, name) in index for name in BACKBONE)
        }

    both = whole(first) & whole(second)
    return _only(first, both), _only(second, both)


def _only(model: Model, numbers: set[int]) -> Model:
    return model.only(
        [r for r, residue in enumerate(model.topology.residues) if residue.id.number in numbers]
    )


def with_side_chains(model: Model, path: Path, seed: int) -> Model:
    """The model with the side chains that it lacks, by rotamer frequency and contacts; written and read."""
    topology, source = complete_topology(model.topology)
    coords = np.full((len(topology), 3), np.nan)
    coords[source >= 0] = model.coords[source[source >= 0]]
    residues = list(range(len(topology.residues)))
    side_chains = SideChains(topology, coords, residues, members=1)
    backbone = torch.from_numpy(coords[topology.backbone(residues)]).float()[None]
    side_chains.pack(backbone, generator=torch.Generator().manual_seed(seed), temperature=0.0, sweeps=2)
    atoms = side_chains.complete(backbone)
    b_iso = torch.full(atoms.shape[:2], 30.0)
    ensemble = Ensemble(side_chains.topology, atoms, torch.ones(1), b_iso)
    write_structure(path, build_structure(model, ensemble, np.arange(len(model.topology))))
    return read_model(path)


def moved_at_random(model: Model, path: Path, seed: int) -> None:
    """Write a model turned and moved by up to 60 Å along each axis."""
    generator = np.random.default_rng(seed)
    turn = Rotation.random(random_state=seed).as_matrix()
    coords = (model.coords - model.coords.mean(0)) @ turn.T + generator.uniform(-60, 60, 3)
    structure = model.structure.clone()
    atoms = (atom for chain in structure[0] for residue in chain for atom in residue)
    for atom, position in zip(atoms, coords, strict=True):
        atom.pos.fromlist(position.tolist())
    write_structure(path, structure)
