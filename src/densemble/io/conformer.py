"""One conformation of a model with altlocs: which conformer of each residue is kept."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import gemmi
import numpy as np

from densemble.atoms import BACKBONE, ResidueId
from densemble.errors import InputError
from densemble.io.naming import NO_ALTLOC, author_id, residue_id

ABSENT_BELOW = 0.95
"""Where the altlocs that a site has sum to less than this, the site is empty in an altloc that it lacks."""


def keep_one_conformer(structure: gemmi.Structure, path: Path, altloc: str | None) -> list[str]:
    """Keep one conformer of each residue, in place; see ``read_model`` for which.

    Args:
        structure: of one model, without hydrogens.
        path: of its file, for messages.
        altloc: to keep wherever it exists; that of highest occupancy if None.

    Returns:
        A sentence for each thing that was chosen.

    Raises:
        InputError: the altloc exists nowhere; an atom occurs twice.
    """
    atoms = (atom for chain in structure[0] for residue in chain for atom in residue)
    present = sorted({atom.altloc for atom in atoms} - {NO_ALTLOC})
    if altloc is not None and altloc not in present:
        has = f"it has {', '.join(present)}" if present else "it has no altlocs at all"
        raise InputError(f"model {path}: no atom has altloc '{altloc}' ({has})")
    chosen: Counter[str] = Counter()
    fallback: list[tuple[ResidueId, str]] = []
    absent: list[tuple[ResidueId, str]] = []
    kept: dict[tuple[ResidueId, str], str] = {}
    for chain in structure[0]:
        for group in reversed(_sites(chain)):
            letters = _conformers(chain, group, path)
            if not letters:
                continue
            rid = residue_id(chain, chain[group[0]])
            letter = altloc if altloc in letters else max(letters, key=lambda x: letters[x])
            if altloc not in (None, letter):
                missing = sum(letters.values()) < ABSENT_BELOW
                (absent if missing else fallback).append((rid, letter.strip(NO_ALTLOC) or "blank"))
                if missing:
                    _empty_site(chain, group)
                    continue
            residue = _keep_conformer(chain, group, letter, full=len(letters) > 1 or letter == altloc)
            kept.update({(rid, atom.name): letter for atom in residue})
            chosen[letter] += 1
    structure.remove_empty_chains()
    _resolve_connections(structure, kept)
    what = ", ".join(f"{letter.strip(NO_ALTLOC) or 'blank'} in {n}" for letter, n in sorted(chosen.items()))
    said = [f"residues with altlocs keep one conformer: {what}"] if chosen else []
    if fallback:
        said.append(f"residues without altloc {altloc} keep their highest occupancy: {_some(fallback)}")
    if absent:
        said.append(f"partly occupied atoms of other altlocs than {altloc} are left out: {_some(absent)}")
    return [f"{path.name}: {sentence}" for sentence in said]


def _some(residues: list[tuple[ResidueId, str]]) -> str:
    """The first residues with their altlocs, and how many more there are."""
    first = ", ".join(f"{rid} ({letter})" for rid, letter in sorted(residues)[:4])
    return first + (f" and {len(residues) - 4} more" if len(residues) > 4 else "")


def _empty_site(chain: gemmi.Chain, group: list[int]) -> None:
    """Remove the atoms with altlocs of a site, and the residues that nothing is left of, in place."""
    for r in reversed(group):
        for i in reversed(range(len(chain[r]))):
            if chain[r][i].has_altloc():
                del chain[r][i]
        if len(chain[r]) == 0:
            del chain[r]


def _sites(chain: gemmi.Chain) -> list[list[int]]:
    """Positions in a chain of the residues at each site: one, or several at a point mutation by altloc."""
    sites: list[list[int]] = []
    for r, residue in enumerate(chain):
        previous = chain[sites[-1][-1]] if sites else None
        if (
            previous is not None
            and previous.seqid == residue.seqid
            and all(atom.has_altloc() for atom in (*previous, *residue))
        ):
            sites[-1].append(r)
        else:
            sites.append([r])
    return sites


def _conformers(chain: gemmi.Chain, group: list[int], path: Path) -> dict[str, float]:
    """Mean occupancy of each conformer at a site, in file order; empty if there is only the blank one."""
    occupancies: dict[str, list[float]] = {}
    for residue in (chain[r] for r in group):
        count = Counter(atom.name for atom in residue)
        for (name, letter), n in Counter((atom.name, atom.altloc) for atom in residue).items():
            if n > 1:
                label = f" with altloc {letter}" if letter != NO_ALTLOC else ""
                raise InputError(
                    f"model {path}: atom {name} of {residue.name} {residue_id(chain, residue)} occurs "
                    f"{n} times{label}; remove or rename the copies"
                )
        for atom in residue:
            if atom.has_altloc() or count[atom.name] > 1:
                occupancies.setdefault(atom.altloc, []).append(atom.occ)
    return {letter: round(float(np.mean(occ)), 4) for letter, occ in occupancies.items()}


def _keep_conformer(chain: gemmi.Chain, group: list[int], letter: str, *, full: bool) -> gemmi.Residue:
    """Reduce a site to one conformer, in place; its atoms get full occupancy if they are to."""
    holder = next(r for r in group if any(atom.altloc == letter for atom in chain[r]))
    for r in reversed(group):
        if r != holder:
            del chain[r]
    residue = chain[group[0]]
    best: dict[str, tuple[int, float]] = {}
    keep: dict[str, int] = {}
    for i, atom in enumerate(residue):
        rank = (2 if atom.altloc == letter else 1 if not atom.has_altloc() else 0, atom.occ)
        if (rank[0] > 0 or atom.name in BACKBONE) and rank > best.get(atom.name, (-1, 0.0)):
            best[atom.name], keep[atom.name] = rank, i
    for i in reversed(range(len(residue))):
        atom = residue[i]
        if keep.get(atom.name) != i:
            del residue[i]
            continue
        if full and (atom.has_altloc() or letter == NO_ALTLOC):
            atom.occ = 1.0
        atom.altloc = NO_ALTLOC
    return residue


def _resolve_connections(structure: gemmi.Structure, kept: dict[tuple[ResidueId, str], str]) -> None:
    """Drop links of conformers and atoms that are gone; the others lose their altloc letters."""
    remaining = []
    for link in list(structure.connections):
        for partner in (link.partner1, link.partner2):
            rid = author_id(partner.chain_name, partner.res_id.seqid)
            if partner.altloc == kept.get((rid, partner.atom_name)):
                partner.altloc = NO_ALTLOC
        ends = (link.partner1, link.partner2)
        if all(p.altloc == NO_ALTLOC and structure[0].find_cra(p).atom is not None for p in ends):
            remaining.append(link)
    structure.connections = gemmi.ConnectionList(remaining)
