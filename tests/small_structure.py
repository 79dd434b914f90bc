"""A structure of a few residues with a disulfide, an ion and a water."""

import gemmi


def small_structure():
    """GLY 1, CYS 2, ALA 3, CYS 4 (with a disulfide 2-4), a zinc and a water; P 21 21 21."""
    structure = gemmi.Structure()
    structure.name = "small"
    structure.cell = gemmi.UnitCell(20, 25, 30, 90, 90, 90)
    structure.spacegroup_hm = "P 21 21 21"
    chain = structure.add_model(gemmi.Model("1")).add_chain(gemmi.Chain("A"))
    sides = {"GLY": [], "CYS": ["CB", "SG"], "ALA": ["CB"]}
    for number, name in enumerate(["GLY", "CYS", "ALA", "CYS"], start=1):
        add(chain, name, number, ["N", "CA", "C", "O", *sides[name]])
    add(chain, "ZN", 10, ["ZN"])
    add(chain, "HOH", 11, ["O"])
    structure.setup_entities()
    bridge = gemmi.Connection()
    bridge.name, bridge.type = "disulf1", gemmi.ConnectionType.Disulf
    bridge.partner1 = gemmi.AtomAddress("A", gemmi.SeqId(2, " "), "CYS", "SG", "\0")
    bridge.partner2 = gemmi.AtomAddress("A", gemmi.SeqId(4, " "), "CYS", "SG", "\0")
    structure.connections.append(bridge)
    return structure


def add(chain, name, number, atoms):
    residue = gemmi.Residue()
    residue.name, residue.seqid = name, gemmi.SeqId(number, " ")
    for i, atom_name in enumerate(atoms):
        atom = gemmi.Atom()
        atom.name, atom.element = atom_name, gemmi.Element(atom_name if name == "ZN" else atom_name[0])
        atom.pos = gemmi.Position(1.1 * number + 0.3 * i, 0.9 * i, 0.5 * number)
        atom.b_iso, atom.occ = 10.0 + i, 1.0 if name != "HOH" else 0.75
        residue.add_atom(atom)
    chain.add_residue(residue)
