"""Bonds between an atom that has an altloc and one that stands once, in a written model."""

from itertools import pairwise

from densemble.geometry.targets import peptide_bonds, residue_bonds


def bonds_to_shared(chain):
    """Å from the ideal, of each such bond of a chain; by residue, atoms, and the letter of the one end."""
    found = {}
    for first in chain:
        _measure(found, first, first, residue_bonds(first.name))
    for first, second in pairwise(chain):
        _measure(found, first, second, peptide_bonds(first.name, second.name))
    return found


def _measure(found, first, second, wanted):
    for target in wanted:
        a, b = (
            [x for x in (second if name.startswith("+") else first) if x.name == name.lstrip("+")]
            for name in target.atoms
        )
        for one, other in ((x, y) for x in a for y in b if x.has_altloc() != y.has_altloc()):
            letter = one.altloc if one.has_altloc() else other.altloc
            found[f"{first.seqid} {'-'.join(target.atoms)} {letter}"] = one.pos.dist(other.pos) - target.mean
