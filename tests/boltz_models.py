"""Model files with the atoms of Boltz's residues in a straight line, for what reads names and not shapes."""

from dataclasses import dataclass, field

import gemmi
from boltz.data import const

RISE = 3.8  # Å from residue to residue, so that C and N are 1.3 Å apart
_PLACE = {"N": 0.0, "CA": 1.3, "C": 2.5, "P": 0.0, "O3'": 2.3}
_ATOMS = {
    "SEP": ["N", "CA", "CB", "OG", "P", "O1P", "O2P", "O3P", "C", "O"],
    "MSE": ["N", "CA", "C", "O", "CB", "CG", "SE", "CE"],
    "GOL": ["O1", "C1", "C2", "O2", "C3", "O3"],
    "ZN": ["ZN"],
    "UNL": ["C1", "C2"],
    "QQQ": ["C1", "C2"],
    "HOH": ["O"],
}


@dataclass
class Chain:
    """A polymer and what else carries its name.

    Attributes:
        name: author's.
        sequence: residue names, also of those that are not there.
        numbers: author's number of each residue, such as ``11A``; None if it has no coordinates.
        others: (residue name, number) of ligands and waters.
        stated: whether the file states the sequence.
    """

    name: str
    sequence: list[str]
    numbers: list[str | None]
    others: list[tuple[str, str]] = field(default_factory=list)
    stated: bool = True


def protein(letters):
    return [const.prot_letter_to_token[letter] for letter in letters]


def write_model(path, chains, links=()):
    """Write an mmCIF file.

    Args:
        path: of the file.
        chains: what is in it. Chains of the same sequence are the same entity.
        links: covalent, pairs of (chain, number, atom name).
    """
    structure = gemmi.Structure()
    structure.name = "test"
    model = gemmi.Model("1")
    for row, chain in enumerate(chains):
        model.add_chain(_chain(chain, row))
    structure.add_model(model)
    structure.setup_entities()
    for chain in chains:
        entity = structure.get_entity_of(structure[0][chain.name].get_polymer())
        if entity is not None:
            entity.full_sequence = chain.sequence if chain.stated else []
    structure.assign_label_seq_id(False)
    for n, link in enumerate(links):
        connection = gemmi.Connection()
        connection.name, connection.type = f"covale{n + 1}", gemmi.ConnectionType.Covale
        connection.asu = gemmi.Asu.Same
        for end, (name, number, atom) in zip(("partner1", "partner2"), link, strict=True):
            residue = next(r for r in structure[0][name] if str(r.seqid) == number)
            address = gemmi.make_address(structure[0][name], residue, residue.find_atom(atom, "*"))
            setattr(connection, end, address)
        structure.connections.append(connection)
    structure.make_mmcif_document().write_file(str(path))
    return path


def _chain(chain, row):
    made = gemmi.Chain(chain.name)
    for k, (name, number) in enumerate(zip(chain.sequence, chain.numbers, strict=True)):
        if number is not None:
            made.add_residue(_residue(name, number, k, row, "A"))
    for k, (name, number) in enumerate(chain.others):
        made.add_residue(_residue(name, number, len(chain.sequence) + 2 + k, row, "H"))
    return made


def _residue(name, number, column, row, flag):
    residue = gemmi.Residue()
    icode = number[-1] if number[-1].isalpha() else " "
    residue.name, residue.het_flag = name, flag
    residue.seqid = gemmi.SeqId(int(number.rstrip(icode)), icode)
    for n, atom_name in enumerate(_ATOMS.get(name) or const.ref_atoms[name]):
        atom = gemmi.Atom()
        atom.name = atom_name
        atom.element = gemmi.Element(atom_name if atom_name in ("ZN", "SE") else atom_name[0])
        height = 0.0 if atom_name in _PLACE else 1.0 + 0.5 * n
        atom.pos = gemmi.Position(RISE * column + _PLACE.get(atom_name, 1.0), height, 50.0 * row)
        atom.occ, atom.b_iso = 1.0, 20.0
        residue.add_atom(atom)
    return residue
