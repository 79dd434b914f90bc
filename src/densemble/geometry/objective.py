"""The stereochemistry of an ensemble as a log probability: harmonic in units of standard deviations."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from densemble.geometry.contacts import CONTACT_SD, ContactSearch
from densemble.geometry.curvature import Blocks
from densemble.geometry.ramachandran import torsion_table
from densemble.geometry.restraints import Restraints, Terms
from densemble.geometry.targets import PLANE_SD

TERMS = ("bonds", "angles", "planes", "chirals", "omegas", "contacts", "torsions")
_TINY = 1e-12  # under a square root: keeps the derivative finite where two atoms coincide


def distances(x: Float[Tensor, "k t 2 3"]) -> Float[Tensor, "k t"]:
    """Å."""
    return (x[..., 0, :] - x[..., 1, :]).square().sum(-1).add(_TINY).sqrt()


def angles(x: Float[Tensor, "k t 3 3"]) -> Float[Tensor, "k t"]:
    """Angle at the middle atom, radians."""
    u, v = x[..., 0, :] - x[..., 1, :], x[..., 2, :] - x[..., 1, :]
    sine = torch.linalg.cross(u, v).square().sum(-1).add(_TINY).sqrt()
    return torch.atan2(sine, (u * v).sum(-1))


def dihedrals(x: Float[Tensor, "k t 4 3"]) -> Float[Tensor, "k t"]:
    """Dihedral angle in (-pi, pi], sign after IUPAC-IUB (1970)."""
    u, v, w = (x[..., 1:, :] - x[..., :-1, :]).unbind(-2)
    p, q = torch.linalg.cross(u, v), torch.linalg.cross(v, w)
    length = v.square().sum(-1).add(_TINY).sqrt()
    return torch.atan2(length * (u * q).sum(-1), (p * q).sum(-1) + _TINY)


def chiral_volumes(x: Float[Tensor, "k t 4 3"]) -> Float[Tensor, "k t"]:
    """``u . (v x w)`` of the directions from o to a, b, c, for atoms (o, a, b, c)."""
    arms = x[..., 1:, :] - x[..., :1, :]
    u, v, w = (arms / arms.square().sum(-1, keepdim=True).add(_TINY).sqrt()).unbind(-2)
    return (u * torch.linalg.cross(v, w)).sum(-1)


class GeometryObjective:
    """Log probability of coordinates under the restraints, up to a constant. To be ascended.

    Each harmonic term contributes ``-z^2 / 2`` with z its deviation in standard deviations; with a
    ``cap`` c it contributes ``-c^2 (sqrt(1 + z^2 / c^2) - 1)``, which is the same near zero and grows
    like ``c |z|`` far from it, so that a single bad term has a bounded gradient. Planes: the sum over
    the atoms of the squared distances from the least-squares plane. Contacts count only below their
    limit. Torsions: the log density of (phi, psi), bounded by its floor.

    Time and memory are linear in the number of atoms. Lists of near atoms are kept from one evaluation to
    the next (``ContactSearch``), which pays where atoms move by less than 0.5 Å; values do not depend on it.
    """

    def __init__(
        self,
        restraints: Restraints,
        *,
        cap: float | None = None,
        weights: Mapping[str, float] | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Move the restraints to a precision and a device.

        Args:
            restraints: what is restrained.
            cap: deviation, in standard deviations, from which the terms grow linearly; None: never.
            weights: multiplier of a term (names in ``TERMS``); 1 where not given, 0 leaves it out.
            dtype: of the coordinates that will come.
            device: of the coordinates that will come.

        Raises:
            ValueError: a weight for an unknown term, or a cap that is not positive.
        """
        unknown = set(weights or ()) - set(TERMS)
        if unknown or (cap is not None and cap <= 0):
            raise ValueError(f"GeometryObjective: unknown terms {sorted(unknown)} or cap {cap} not positive")
        self.restraints = restraints
        self.cap = cap
        self._weights = {name: (weights or {}).get(name, 1.0) for name in TERMS}

        def move(terms: Terms) -> tuple[Tensor, Tensor, Tensor]:
            return terms.atoms.to(device), terms.mean.to(device, dtype), terms.sd.to(device, dtype)

        self._bonds, self._angles = move(restraints.bonds), move(restraints.angles)
        self._chirals, self._omegas = move(restraints.chirals), move(restraints.omegas)
        self._fixed = restraints.fixed.to(device, dtype)
        self._contacts = restraints.contacts.to(dtype, device)
        self._near = ContactSearch(self._contacts, self._fixed)
        self._planes = restraints.planes.clamp(min=0).to(device)
        self._in_plane = (restraints.planes >= 0).to(device, dtype)
        self._phipsi = restraints.phipsi.to(device)
        self._phipsi_class = restraints.phipsi_class.to(device)
        self._table = torsion_table().to(dtype, device)

    def __call__(self, coords: Float[Tensor, "k n 3"]) -> Float[Tensor, ""]:
        """Log probability of all members together: the sum over members and terms."""
        return self.per_member(coords).sum()

    def per_member(self, coords: Float[Tensor, "k n 3"]) -> Float[Tensor, " k"]:
        """Log probability of each member."""
        return torch.stack(list(self.terms(coords).values())).sum(0)

    def terms(self, coords: Float[Tensor, "k n 3"]) -> dict[str, Float[Tensor, " k"]]:
        """Weighted log probability of each member by term, in the order of ``TERMS``."""
        x = torch.cat([coords, self._fixed.expand(len(coords), -1, -1)], dim=1)
        evaluate = {
            "bonds": lambda: self._harmonic(distances(_pick(x, self._bonds[0])), self._bonds),
            "angles": lambda: self._harmonic(angles(_pick(x, self._angles[0])), self._angles),
            "planes": lambda: self._plane_term(_pick(x, self._planes)),
            "chirals": lambda: self._harmonic(chiral_volumes(_pick(x, self._chirals[0])), self._chirals),
            "omegas": lambda: self._omega_term(_pick(x, self._omegas[0])),
            "contacts": lambda: self._contact_term(coords, x),
            "torsions": lambda: self._torsion_term(_pick(x, self._phipsi)),
        }
        return {name: self._weights[name] * evaluate[name]() for name in TERMS if self._weights[name]}

    def curvature(self, coords: Float[Tensor, "k n 3"]) -> Float[Tensor, "k m m"]:
        """Minus the second derivatives of ``per_member``, about: J^T J of the deviations (Gauss and Newton).

        Of what is harmonic, without cap: all terms but the torsions. Memory is quadratic in the free atoms.

        Returns:
            Å^-2, positive semidefinite, shape=(k, 3 n, 3 n).
        """
        x = torch.cat([coords, self._fixed.expand(len(coords), -1, -1)], dim=1).detach()
        blocks = Blocks(coords)
        harmonic = {
            "bonds": (distances, self._bonds),
            "angles": (angles, self._angles),
            "chirals": (chiral_volumes, self._chirals),
            "omegas": (dihedrals, self._omegas),
        }
        for name, (measure, (atoms, _, sd)) in harmonic.items():
            picked = _pick(x, atoms).requires_grad_(True)
            with torch.enable_grad():
                (slope,) = torch.autograd.grad(measure(picked).sum(), picked)
            blocks.add_outer(atoms, slope * (self._weights[name] ** 0.5 / sd)[:, None, None])
        self._curve_planes(x, blocks)
        self._curve_contacts(coords.detach(), x, blocks)
        return blocks.matrix()

    def _curve_planes(self, x: Tensor, blocks: Blocks) -> None:
        """N n^T times what is left of heights above a plane that shifts and tilts with them."""
        centred, axes = self._from_planes(_pick(x, self._planes))
        normal, inside = axes[..., :1], self._in_plane
        places = centred @ axes[..., 1:]
        places = places / places.square().sum(-2, keepdim=True).add(_TINY).sqrt()
        even = (inside / inside.sum(1, keepdim=True).sqrt()).expand(len(x), -1, -1)[..., None]
        moving = torch.cat([even, places], dim=-1)
        left = torch.diag_embed(inside) - moving @ moving.mT
        nn = (normal @ normal.mT)[:, :, None, None] * (self._weights["planes"] / PLANE_SD**2)
        atoms = torch.where(inside > 0, self._planes, x.shape[1])
        blocks.add_terms(atoms, left[..., None, None] * nn)

    def _curve_contacts(self, coords: Tensor, x: Tensor, blocks: Blocks) -> None:
        k, i, j = self._near(coords)
        apart = coords[k, i] - x[k, j]
        along = apart / distances(torch.stack([coords[k, i], x[k, j]], dim=1)[None])[0][:, None]
        block = along[:, :, None] * along[:, None, :] * (self._weights["contacts"] / CONTACT_SD**2)
        for one, other, sign in ((i, i, 1), (j, j, 1), (i, j, -1), (j, i, -1)):
            blocks.add(k, one, other, sign * block)

    def _score(self, z_squared: Tensor) -> Tensor:
        if self.cap is None:
            return -0.5 * z_squared
        return -(self.cap**2) * ((1 + z_squared / self.cap**2).sqrt() - 1)

    def _harmonic(self, values: Tensor, terms: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return self._score(((values - terms[1]) / terms[2]).square()).sum(-1)

    def _omega_term(self, x: Tensor) -> Tensor:
        _, mean, sd = self._omegas
        off = torch.remainder(dihedrals(x) - mean + math.pi, 2 * math.pi) - math.pi
        return self._score((off / sd).square()).sum(-1)

    def _plane_term(self, x: Tensor) -> Tensor:
        """The squared distances sum to the smallest eigenvalue of the scatter matrix.

        Its derivative is that at a fixed normal (the normal minimises the sum), so that the
        eigenvectors need no derivative of their own.
        """
        centred, axes = self._from_planes(x)
        return self._score((centred @ axes[..., :1]).square().sum((-2, -1)) / PLANE_SD**2).sum(-1)

    def _from_planes(self, x: Float[Tensor, "k g p 3"]) -> tuple[Tensor, Tensor]:
        """Atoms from their plane's centre, (k, g, p, 3); its normal and two axes in it, (k, g, 3, 3)."""
        mask = self._in_plane[..., None]
        centred = (x - (x * mask).sum(-2, keepdim=True) / mask.sum(-2, keepdim=True)) * mask
        with torch.no_grad():
            axes = torch.linalg.eigh(centred.mT @ centred)[1]
        return centred, axes

    def _contact_term(self, coords: Tensor, x: Tensor) -> Tensor:
        """Only the pairs below their limit are differentiated."""
        k, i, j = self._near(coords)
        gap = self._contacts.limit(i, j) - distances(torch.stack([coords[k, i], x[k, j]], dim=1)[None])[0]
        score = self._score((gap.clamp(min=0) / CONTACT_SD).square())
        return score.new_zeros(len(coords)).index_add(0, k, score)

    def _torsion_term(self, x: Tensor) -> Tensor:
        phi, psi = dihedrals(x[..., :4, :]), dihedrals(x[..., 1:, :])
        return self._table.log_density(phi, psi, self._phipsi_class).sum(-1)


def _pick(x: Tensor, atoms: Tensor) -> Tensor:
    """Coordinates of the atoms of each term, shape=(k, t, a, 3)."""
    return x.index_select(1, atoms.reshape(-1)).reshape(len(x), *atoms.shape, 3)
