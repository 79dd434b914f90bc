"""All atoms of a model with their altlocs and occupancies: what makes its density."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gemmi
import numpy as np
from jaxtyping import Float

from densemble.atoms import ResidueId
from densemble.errors import InputError
from densemble.io.models import Model, read_model
from densemble.io.naming import residue_id


@dataclass(frozen=True, eq=False)
class Sites:
    """The n atom sites of a model; hydrogens and atoms of unknown element are left out.

    Attributes:
        model: the same file as one conformation.
        structure: gemmi's view of the sites.
        residues: of each site.
        residue_names: name of the residue of each site.
        names: of each site.
        elements: of each site.
        coords: Å, shape=(n, 3).
        occupancy: shape=(n,).
        b_iso: Å^2, the equivalent isotropic B where the file has ANISOU records, shape=(n,).
    """

    model: Model
    structure: gemmi.Structure
    residues: tuple[ResidueId, ...]
    residue_names: tuple[str, ...]
    names: tuple[str, ...]
    elements: tuple[str, ...]
    coords: Float[np.ndarray, "n 3"]
    occupancy: Float[np.ndarray, " n"]
    b_iso: Float[np.ndarray, " n"]

    @classmethod
    def read(cls, path: str | Path) -> Sites:
        """Read a model file (mmCIF or PDB, also gzipped) with all its altlocs.

        Raises:
            InputError: as for ``read_model``; or a site of any altloc is not a number.
        """
        model = read_model(path)  # says what is wrong with a file
        structure = gemmi.read_structure(str(path))
        del structure[1:]
        for chain in structure[0]:
            for residue in chain:
                for i in reversed(range(len(residue))):
                    if residue[i].is_hydrogen() or residue[i].element.atomic_number == 0:
                        del residue[i]
        structure.remove_empty_chains()
        sites = list(structure[0].all())
        atoms = [site.atom for site in sites]
        coords = np.array([atom.pos.tolist() for atom in atoms], dtype=np.float64)
        b_iso = np.array([atom.b_eq() if atom.aniso.nonzero() else atom.b_iso for atom in atoms])
        occupancy = np.array([atom.occ for atom in atoms], dtype=np.float64)
        if not np.isfinite(np.column_stack([coords, b_iso, occupancy])).all():
            raise InputError(
                f"model {path}: an altloc has coordinates, B factors or occupancies that are not numbers; "
                "complete or remove it"
            )
        return cls(
            model=model,
            structure=structure,
            residues=tuple(residue_id(site.chain, site.residue) for site in sites),
            residue_names=tuple(site.residue.name for site in sites),
            names=tuple(atom.name for atom in atoms),
            elements=tuple(atom.element.name for atom in atoms),
            coords=coords,
            occupancy=occupancy,
            b_iso=b_iso,
        )
