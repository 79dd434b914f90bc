"""Small models with known geometry, for the tests of validation."""

import gemmi
import numpy as np

from densemble.geometry import targets
from densemble.sidechains.residues import placements


def atom(name, residue, number, xyz, *, altloc="", element=None, chain="A", occupancy=1.0):
    """One atom, as ``structure`` takes it."""
    return name, residue, number, tuple(map(float, xyz)), altloc, element or name[0], chain, occupancy


def structure(*atoms):
    """A structure of the atoms given, residues in order."""
    found, model = gemmi.Structure(), gemmi.Model("1")
    for name, residue, number, xyz, altloc, element, chain, occupancy in atoms:
        if len(model) == 0 or model[len(model) - 1].name != chain:
            model.add_chain(gemmi.Chain(chain))
        own = model[len(model) - 1]
        if len(own) == 0 or (own[len(own) - 1].seqid.num, own[len(own) - 1].name) != (number, residue):
            new = gemmi.Residue()
            new.name, new.seqid = residue, gemmi.SeqId(str(number))
            own.add_residue(new)
        one = gemmi.Atom()
        one.name, one.pos, one.element = name, gemmi.Position(*xyz), gemmi.Element(element)
        one.altloc, one.occ = altloc or "\0", occupancy
        own[len(own) - 1].add_atom(one)
    found.add_model(model)
    found.setup_entities()
    return found


def placed(a, b, c, length, angle, dihedral):
    """The point at a length from c, an angle b-c-point and a dihedral a-b-c-point, in degrees."""
    along = (c - b) / np.linalg.norm(c - b)
    normal = np.cross(b - a, along)
    normal /= np.linalg.norm(normal)
    bend, turn = np.radians(angle), np.radians(dihedral)
    across = np.cos(turn) * np.cross(normal, along) + np.sin(turn) * normal
    return c + length * (-np.cos(bend) * along + np.sin(bend) * across)


def _value(terms, *names):
    return next(t.mean for t in terms if t.atoms in (names, names[::-1]))


def peptide(sequence, *, phi=-60.0, psi=-45.0, omega=180.0, chi=None, first=1):
    """Atoms of a chain with ideal bonds and angles, all residues at the same phi and psi, chi by index."""
    atoms, before, n, ca = [], None, np.array([1.46, 0.0, 0.0]), np.zeros(3)
    for i, name in enumerate(sequence):
        length, bend = targets.bond_length(name, "CA", "C"), targets.bond_angle(name, "N", "CA", "C")
        turn, start = (0.0, np.array([2.0, 1.0, 0.0])) if before is None else (phi, before)
        own = {"N": n, "CA": ca, "C": placed(start, n, ca, length, bend, turn)}
        bend = targets.bond_angle(name, "CA", "C", "O")
        own["O"] = placed(n, ca, own["C"], targets.bond_length(name, "C", "O"), bend, psi + 180)
        angles = (chi or {}).get(i, [180.0] * 4)
        for p in placements(name):
            a, b, c = (own[parent] for parent in p.parents)
            turn = np.degrees(p.offset) + (angles[p.chi - 1] if p.chi else 0.0)
            own[p.atom] = placed(a, b, c, p.length, np.degrees(p.angle), turn)
        atoms += [
            atom(key, name, first + i, own[key], element="Se" if key == "SE" else key[0]) for key in own
        ]
        if i + 1 < len(sequence):
            n, ca, before = *_next(own, name, sequence[i + 1], psi, omega), own["C"]
    return atoms


def _next(own, name, after, psi, omega):
    """N and CA of the following residue."""
    bonds = targets.peptide_bonds(name, after)
    angles = targets.peptide_angles(name, after, cis=abs(omega) < 90)
    length, bend = _value(bonds, "C", "+N"), _value(angles, "CA", "C", "+N")
    n = placed(own["N"], own["CA"], own["C"], length, bend, psi)
    length, bend = targets.bond_length(after, "N", "CA"), _value(angles, "C", "+N", "+CA")
    return n, placed(own["CA"], own["C"], n, length, bend, omega)
