"""Small crystals of scattered atoms, and their structure factors summed directly in double precision."""

import gemmi
import numpy as np

from densemble.atoms import ResidueId
from densemble.io.naming import residue_id
from densemble.io.reflections import Reflections

CELLS = {
    "P 1": (21, 24, 27, 78, 96, 103),
    "P 1 21 1": (21, 26, 24, 90, 108, 90),
    "C 1 2 1": (34, 22, 25, 90, 101, 90),
    "P 21 21 21": (22, 25, 29, 90, 90, 90),
    "P 31 2 1": (26, 26, 31, 90, 90, 120),
    "P 43 21 2": (25, 25, 33, 90, 90, 90),
    "I 2 3": (33, 33, 33, 90, 90, 90),
}


def crystal(group="P 21 21 21", residues=8, seed=0, anisotropic=True):
    """A structure of one chain; residue i is a clump of five atoms, its B factors between 10 and 30 Å^2."""
    rng = np.random.default_rng(seed)
    structure = gemmi.Structure()
    structure.cell, structure.spacegroup_hm = gemmi.UnitCell(*CELLS[group]), group
    chain = gemmi.Chain("A")
    for number in range(1, residues + 1):
        residue = gemmi.Residue()
        residue.name, residue.seqid = "ALA", gemmi.SeqId(str(number))
        centre = np.array(structure.cell.orthogonalize(gemmi.Fractional(*rng.uniform(0, 1, 3))).tolist())
        for name, element in (("N", "N"), ("CA", "C"), ("C", "C"), ("O", "O"), ("CB", "S")):
            atom = gemmi.Atom()
            atom.name, atom.element = name, gemmi.Element(element)
            atom.pos = gemmi.Position(*(centre + rng.normal(size=3)))
            atom.b_iso = rng.uniform(10, 30)
            if anisotropic and name == "CB":
                atom.aniso = gemmi.SMat33f(0.30, 0.20, 0.25, 0.05, -0.04, 0.06)
            residue.add_atom(atom)
        chain.add_residue(residue)
    structure.add_model(gemmi.Model("1"))
    structure[0].add_chain(chain)
    structure.setup_cell_images()
    return structure


def ids(*numbers):
    return [ResidueId("A", n) for n in numbers]


def positions_of(structure, residues):
    """Positions of all atoms of some residues, every altloc, shape=(n, 3)."""
    return np.array(
        [
            atom.pos.tolist()
            for chain in structure[0]
            for residue in chain
            if residue_id(chain, residue) in residues
            for atom in residue
        ]
    )


def direct_factors(structure, hkl):
    """Structure factors by the textbook's sum over atoms and operators, shape=(n,)."""
    cell, ops = structure.cell, list(structure.find_spacegroup().operations())
    fractionalize = np.array(cell.fractionalization_matrix.tolist())
    hkl = np.asarray(hkl, dtype=float)
    stol2 = np.asarray(cell.calculate_1_d2_array(hkl.astype(np.int32))) / 4
    total = np.zeros(len(hkl), dtype=complex)
    for site in structure[0].all():
        atom = site.atom
        table = atom.element.it92
        form = table.c + sum(a * np.exp(-b * stol2) for a, b in zip(table.a, table.b, strict=True))
        x = fractionalize @ atom.pos.tolist()
        U = np.array(atom.aniso.as_mat33().tolist()) if atom.aniso.nonzero() else np.eye(3) * 0
        for op in ops:
            R, t = np.array(op.rot) / op.DEN, np.array(op.tran) / op.DEN
            reciprocal = hkl @ R @ fractionalize  # of the unmoved atom, in Å^-1
            if atom.aniso.nonzero():
                fall_off = np.exp(-2 * np.pi**2 * np.einsum("ni,ij,nj->n", reciprocal, U, reciprocal))
            else:
                fall_off = np.exp(-atom.b_iso * stol2)
            total += atom.occ * form * fall_off * np.exp(2j * np.pi * hkl @ (R @ x + t))
    return total


def unique_hkl(structure, d_min):
    return np.asarray(
        gemmi.make_miller_array(structure.cell, structure.find_spacegroup(), d_min), dtype=np.int32
    )


def reflections(structure, f, hkl, free_every=12):
    """Amplitudes as data."""
    free = np.arange(len(hkl)) % free_every == 5
    f = np.asarray(f, dtype=np.float64)
    return Reflections(
        hkl, f, np.full(len(f), 0.02 * f.mean()), free, structure.cell, structure.find_spacegroup()
    )
