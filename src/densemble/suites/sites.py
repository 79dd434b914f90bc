"""The residues that a paper means: by its numbers, and by the sequence that it prints."""

from __future__ import annotations

from dataclasses import dataclass

from densemble.atoms import Region, RegionError, Topology
from densemble.errors import InputError
from densemble.io.naming import one_letter
from densemble.suites import Site

_HOW = {
    "from-first": "counted from the chain's first residue",
    "author": "by the author's numbers",
    "modelled": "counting the residues that are modelled",
}


@dataclass(frozen=True)
class Located:
    """A site in a model.

    Attributes:
        region: in the author's numbers, as ``densemble xray`` takes it.
        sequence: its residues in one-letter code.
        how: which way of counting gave them.
    """

    region: str
    sequence: str
    how: str


def find_site(site: Site, topology: Topology) -> Located:
    """The printed residues in a model.

    The paper's own way of counting is tried first, then the others; the printed sequence decides. Without
    one the paper's way is taken.

    Raises:
        InputError: no way of counting gives the printed sequence, or the model has no such residues.
    """
    tried = [site.numbering, *(how for how in _HOW if how != site.numbering)]
    seen = []
    for how in tried if site.sequence is not None else tried[:1]:
        residues = _residues(site, topology, how)
        sequence = "".join(_letter(topology.residues[r].name) for r in residues)
        if residues and site.sequence in (None, sequence):
            first, last = (topology.residues[r].id for r in (residues[0], residues[-1]))
            return Located(f"{first}-{last.number}{last.icode}", sequence, _HOW[how])
        seen.append(f"{_HOW[how]} they are {sequence or 'not in the model'}")
    wanted = f"printed as {site.sequence}, but " if site.sequence is not None else ""
    raise InputError(
        f"residues {site.first}-{site.last} of chain {site.chain}: {wanted}{'; '.join(seen)}; give the model "
        "that the paper used"
    )


def _residues(site: Site, topology: Topology, how: str) -> list[int]:
    """Indices of the residues by one way of counting; none if the model does not have them."""
    if how == "modelled":
        chain = [
            i for i, r in enumerate(topology.residues) if r.kind == "protein" and r.id.chain == site.chain
        ]
        return chain[site.first - 1 : site.last] if site.first >= 1 and site.last <= len(chain) else []
    mark = "#" if how == "from-first" else ""
    try:
        return Region.parse(f"{site.chain}:{mark}{site.first}-{site.last}").resolve(topology)[0]
    except RegionError:
        return []


def _letter(name: str) -> str:
    """One-letter code, of a modified residue that of its parent; X where there is none."""
    return one_letter(name) or "X"
