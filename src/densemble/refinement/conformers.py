"""How parts with their states make up conformations of a whole region, and the restraints on all of them.

Every atom of every state is one *site*; sites lie in one flat list. Conformer j of the region takes state j
of each part, as letters do in a model with altlocs: A goes with A, B with B, and the most occupied state
stands in where a part has no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from densemble.atoms import Ensemble, Topology
from densemble.geometry.contacts import Contacts
from densemble.geometry.restraints import Restraints, Terms


@dataclass(frozen=True, eq=False)
class Sites:
    """The sites of a region's parts.

    Attributes:
        atom: of the region's N, which one each of the M sites is, shape=(M,).
        part: which part it belongs to, shape=(M,).
        group: which state of which part, counted through all parts, shape=(M,).
        states: how many each part has, length P.
        index: site of each atom in each conformer, shape=(J, N).
        first: where a conformer is the first to have its site, shape=(J, N).
    """

    atom: Int[Tensor, " m"]
    part: Int[Tensor, " m"]
    group: Int[Tensor, " m"]
    states: tuple[int, ...]
    index: Int[Tensor, "j n"]
    first: Bool[Tensor, "j n"]

    @classmethod
    def of(cls, topology: Topology, parts: Sequence[Ensemble]) -> Sites:
        """Number the sites: part by part, state by state, in the order of the part's atoms.

        Args:
            topology: the region's N atoms.
            parts: together they have every atom once.

        Raises:
            ValueError: a part has an atom that is not among them or is in another part, or one is missing.
        """
        states = tuple(len(part) for part in parts)
        index = torch.full((max(states, default=1), len(topology)), -1, dtype=torch.long)
        atom: list[Tensor] = []
        owner: list[Tensor] = []
        group: list[Tensor] = []
        for p, part in enumerate(parts):
            own = torch.from_numpy(topology.places_of(part.topology))
            if bool((own < 0).any()) or bool((index[0, own] >= 0).any()):
                raise ValueError("Sites: a part has an atom that is not the region's or is in another part")
            first = sum(map(len, atom))
            for j in range(len(index)):
                k = j if j < len(part) else 0
                index[j, own] = first + k * len(own) + torch.arange(len(own))
            atom.append(own.repeat(len(part)))
            owner.append(torch.full((len(part) * len(own),), p))
            group.append(sum(states[:p]) + torch.arange(len(part)).repeat_interleave(len(own)))
        if bool((index < 0).any()):
            raise ValueError(f"Sites: {int((index[0] < 0).sum())} atoms of the region are in no part")
        count = torch.arange(len(index))[:, None]
        owner_of = torch.cat(owner)[index[0]]
        several = torch.tensor(states)[owner_of]
        return cls(torch.cat(atom), torch.cat(owner), torch.cat(group), states, index, count < several)

    def occupancy(self, weights: Float[Tensor, " g"]) -> Float[Tensor, "j n"]:
        """Of each atom in each conformer, from the groups; zero where an earlier one has the site."""
        return weights[self.group][self.index] * self.first

    def together(self) -> Bool[np.ndarray, "m m"]:
        """Which sites are in one conformer."""
        present = np.zeros((len(self.index), len(self.atom)), dtype=np.float32)
        np.put_along_axis(present, self.index.numpy(), 1.0, axis=1)
        return np.asarray(present.T @ present > 0)


def flat(values: Sequence[Tensor]) -> Tensor:
    """Values of the parts' members, each shape=(K, n, ...), as those of the sites, shape=(M, ...)."""
    return torch.cat([v.flatten(0, 1) for v in values])


def unflat(values: Tensor, parts: Sequence[Ensemble]) -> list[Tensor]:
    """The inverse of ``flat``."""
    pieces = values.split([len(part) * len(part.topology) for part in parts])
    return [
        piece.reshape(len(part), len(part.topology), *values.shape[1:])
        for piece, part in zip(pieces, parts, strict=True)
    ]


@dataclass(frozen=True, eq=False)
class Values:
    """What is refined.

    Attributes:
        coords: Å, of the sites, shape=(M, 3).
        weights: occupancies of the groups, shape=(G,); those of a part sum to one.
        b_iso: Å^2, of the sites, shape=(M,).
    """

    coords: Float[Tensor, "m 3"]
    weights: Float[Tensor, " g"]
    b_iso: Float[Tensor, " m"]

    @classmethod
    def of(cls, parts: Sequence[Ensemble], *, b_min: float) -> Values:
        """Those of parts, no B factor below ``b_min`` Å^2."""
        return cls(
            flat([part.coords for part in parts]),
            torch.cat([part.weights for part in parts]),
            flat([part.b_iso for part in parts]).clamp(min=b_min),
        )

    def of_conformers(self, sites: Sites) -> tuple[Tensor, Tensor, Tensor]:
        """Coordinates, occupancies and B factors of the region's conformers, shape=(J, N, ...)."""
        return self.coords[sites.index], sites.occupancy(self.weights), self.b_iso[sites.index]


def site_restraints(restraints: Restraints, sites: Sites) -> Restraints:
    """The restraints on one conformation of a region, for all its sites, each term once.

    Sites that are in no conformer together make no contact.

    Args:
        restraints: on the region's N atoms.
        sites: of them.
    """
    count, others = len(sites.atom), len(restraints.fixed)
    fixed = (count + torch.arange(others)).expand(len(sites.index), -1)
    place = torch.cat([sites.index, fixed], dim=1)
    terms = {
        kind: _expanded(getattr(restraints, kind), place) for kind in ("bonds", "angles", "chirals", "omegas")
    }
    phipsi, source = _once(restraints.phipsi, place)
    return Restraints(
        topology=_repeated(restraints.topology, sites),
        fixed=restraints.fixed,
        planes=_once(restraints.planes, place)[0],
        phipsi=phipsi,
        phipsi_class=restraints.phipsi_class[source],
        contacts=_contacts(restraints.contacts, sites, place),
        **terms,
    )


def _repeated(topology: Topology, sites: Sites) -> Topology:
    """What the sites are; a residue's sites do not follow each other."""
    atoms = sites.atom.tolist()
    return Topology(
        names=tuple(topology.names[i] for i in atoms),
        elements=tuple(topology.elements[i] for i in atoms),
        residue_index=topology.residue_index[atoms],
        residues=topology.residues,
    )


def _once(atoms: Int[Tensor, "t a"], place: Int[Tensor, "j x"]) -> tuple[Tensor, Tensor]:
    """Each term in every conformer that has other sites, shape=(u, a), and which term it is, shape=(u,)."""
    conformers, (terms, width) = len(place), atoms.shape
    rows = torch.where(atoms >= 0, place[:, atoms.clamp(min=0)], -1)
    number = torch.arange(terms).expand(conformers, -1)[..., None]
    rows = torch.cat([number, rows], dim=-1).reshape(-1, width + 1)
    unique = torch.unique(rows, dim=0)
    return unique[:, 1:], unique[:, 0]


def _expanded(terms: Terms, place: Int[Tensor, "j x"]) -> Terms:
    atoms, source = _once(terms.atoms, place)
    return Terms(atoms=atoms, mean=terms.mean[source], sd=terms.sd[source])


def _contacts(contacts: Contacts, sites: Sites, place: Int[Tensor, "j x"]) -> Contacts:
    """Excluded are pairs bonded within their conformer, and pairs of sites that are never together.

    The latter are listed, so that memory is quadratic in the sites: for regions.
    """
    width, count = len(contacts.kind), len(sites.atom)
    wide = count + width - contacts.count
    i, j = contacts.excluded // width, contacts.excluded % width
    bonded = (place[:, i] * wide + place[:, j]).reshape(-1)
    apart = torch.as_tensor(np.argwhere(np.triu(~sites.together())))
    return Contacts(
        count=count,
        kind=torch.cat([contacts.kind[sites.atom], contacts.kind[contacts.count :]]),
        table=contacts.table,
        excluded=torch.unique(torch.cat([bonded, apart[:, 0] * wide + apart[:, 1]])),
    )
