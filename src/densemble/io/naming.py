"""Residues by the names that the author gave them, as a region is written in; and by one letter."""

from __future__ import annotations

import gemmi

from densemble.atoms import ResidueId

NO_ALTLOC = "\0"
"""How gemmi spells the blank altloc."""


def residue_id(chain: gemmi.Chain, residue: gemmi.Residue) -> ResidueId:
    """Of a residue in its chain."""
    return author_id(chain.name, residue.seqid)


def author_id(chain: str, seqid: gemmi.SeqId) -> ResidueId:
    """Of a place in a chain."""
    # mmCIF written without author numbers has none at all for ligands and waters: 0.
    return ResidueId(chain, seqid.num or 0, seqid.icode.strip())


def one_letter(name: str) -> str:
    """Code of a residue by its name, of its parent if it is modified (MSE is M); empty if it has none."""
    return gemmi.find_tabulated_residue(name).one_letter_code.upper().strip()
