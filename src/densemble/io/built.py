"""Models that no file had: a topology with coordinates, as gemmi's structure."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import gemmi
import numpy as np
from jaxtyping import Float

from densemble.atoms import Topology
from densemble.io.models import Model

_POLYMER = ("protein", "nucleic")


def built_model(
    topology: Topology,
    coords: Float[np.ndarray, "n 3"],
    b_iso: Float[np.ndarray, " n"],
    *,
    source: Path,
    messages: tuple[str, ...] = (),
) -> Model:
    """A model of full occupancy.

    Entities follow from the residues, and the sequence of a polymer is that of its residues here. A chain may
    come in parts, as where its ligands follow all polymers.

    Args:
        topology: the N atoms.
        coords: Å.
        b_iso: Å^2.
        source: what messages name as its origin.
        messages: what the user should know of it.
    """
    structure = gemmi.Structure()
    structure.name = source.stem
    model = gemmi.Model("1")
    runs = groupby(range(len(topology.residues)), key=lambda i: topology.residues[i].id.chain)
    for name, residues in runs:
        chain = gemmi.Chain(name)
        for i in residues:
            chain.add_residue(_residue(topology, i, coords, b_iso))
        model.add_chain(chain)
    structure.add_model(model)
    structure.setup_entities()
    for entity in structure.entities:
        if entity.entity_type == gemmi.EntityType.Polymer:
            part = next(s for c in structure[0] for s in c.subchains() if s.subchain_id() in entity.subchains)
            entity.full_sequence = [residue.name for residue in part]
    structure.assign_label_seq_id(True)
    occupancy = np.ones(len(topology))
    return Model(source, structure, topology, np.array(coords), np.array(b_iso), occupancy, messages)


def _residue(topology: Topology, i: int, coords: np.ndarray, b_iso: np.ndarray) -> gemmi.Residue:
    known = topology.residues[i]
    residue = gemmi.Residue()
    residue.name = known.name
    residue.seqid = gemmi.SeqId(known.id.number, known.id.icode or " ")
    residue.het_flag = "A" if known.kind in _POLYMER else "H"
    residue.entity_type = gemmi.EntityType.Polymer if known.kind in _POLYMER else gemmi.EntityType.NonPolymer
    for j in np.flatnonzero(topology.residue_index == i):
        atom = gemmi.Atom()
        atom.name, atom.element = topology.names[j], gemmi.Element(topology.elements[j])
        atom.pos, atom.b_iso, atom.occ = gemmi.Position(*coords[j].tolist()), float(b_iso[j]), 1.0
        residue.add_atom(atom)
    return residue
