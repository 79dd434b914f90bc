"""How far coordinates are from each other: RMSD, RMSF, and the bimodality score.

All in Å. For crystals, model and reference stand in the same frame and nothing is superposed. In cryo-EM
the place in the map is arbitrary, so that figures there are after superposition, on stated atoms.
Atoms that a reference lacks are NaN (as ``densemble.io.models.alternates`` gives them) and do
not count.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial.transform import Rotation

from densemble.atoms import Ensemble, Topology

_SYMMETRIC = {
    "PHE": (("CD1", "CD2"), ("CE1", "CE2")),
    "TYR": (("CD1", "CD2"), ("CE1", "CE2")),
    "ASP": (("OD1", "OD2"),),
    "GLU": (("OE1", "OE2"),),
    "ARG": (("NH1", "NH2"),),
}


def rmsd(x: Float[np.ndarray, "*k n 3"], reference: Float[np.ndarray, "*#k n 3"]) -> Float[np.ndarray, "*k"]:
    """Root-mean-square deviation in place, over the atoms that both have.

    Args:
        x: Å, any number of conformations, shape=(..., n, 3).
        reference: Å, one for each or one for all, shape=(..., n, 3) or (n, 3).

    Raises:
        ValueError: a conformation has no atom in common with the reference.
    """
    common = _known(x) & _known(reference)
    if not common.any(axis=-1).all():
        raise ValueError("rmsd: no atom is known in both conformations")
    square = np.where(common, np.sum((x - reference) ** 2, axis=-1), 0.0)
    return np.asarray(np.sqrt(square.sum(axis=-1) / common.sum(axis=-1)))


def superpose(
    x: Float[np.ndarray, "n 3"],
    reference: Float[np.ndarray, "n 3"],
    *,
    fit: Int[np.ndarray, " f"] | None = None,
) -> Float[np.ndarray, "n 3"]:
    """Move all of x by the rotation and translation that bring its atoms ``fit`` closest to the reference.

    Least squares after Kabsch (1976), Acta Cryst. A32, 922, without reflection, by scipy's
    ``Rotation.align_vectors``.

    Args:
        x: Å, shape=(n, 3).
        reference: Å, shape=(n, 3).
        fit: indices of the atoms to fit on, e.g. the alpha carbons; all if None.

    Raises:
        ValueError: fewer than three of those atoms are known in both.
    """
    chosen = np.arange(len(x)) if fit is None else fit
    chosen = chosen[(_known(x) & _known(reference))[chosen]]
    if len(chosen) < 3:
        raise ValueError(f"superpose: {len(chosen)} atoms known in both, at least three are needed")
    x_centre, reference_centre = x[chosen].mean(axis=0), reference[chosen].mean(axis=0)
    rotation, _ = Rotation.align_vectors(reference[chosen] - reference_centre, x[chosen] - x_centre)
    return (x - x_centre) @ rotation.as_matrix().T + reference_centre


def local_rmsd(
    x: Float[np.ndarray, "n 3"],
    reference: Float[np.ndarray, "n 3"],
    *,
    over: Int[np.ndarray, " o"],
    fit: Int[np.ndarray, " f"] | None = None,
) -> float:
    """RMSD in Å over some atoms after superposition on others.

    Args:
        x: Å, shape=(n, 3).
        reference: Å, shape=(n, 3).
        over: indices of the atoms that are judged, e.g. those of a loop.
        fit: indices of the atoms to superpose on; all but ``over`` if None.

    Raises:
        ValueError: fewer than three atoms to superpose on, or none to judge, are known in both.
    """
    fit = np.setdiff1d(np.arange(len(x)), over) if fit is None else fit
    return float(rmsd(superpose(x, reference, fit=fit)[over], reference[over]))


@dataclass(frozen=True)
class SuperposedRmsd:
    """RMSD in Å after superposition on the alpha carbons: over all atoms given, and over these alone."""

    all_atoms: float
    alpha: float


def superposed_rmsd(
    topology: Topology,
    x: Float[np.ndarray, "n 3"],
    reference: Float[np.ndarray, "n 3"],
    *,
    symmetric: bool = False,
) -> SuperposedRmsd:
    """RMSD of protein atoms, all of them and alpha carbons, after superposition on the alpha carbons.

    Args:
        topology: of both; atoms that are not of protein residues do not count.
        x: Å, shape=(n, 3).
        reference: Å, shape=(n, 3).
        symmetric: exchange atoms of a side chain that are told apart by name alone (CD1 with CD2 and CE1
            with CE2 of PHE and TYR; OD, OE and NH of ASP, GLU and ARG) where that brings them nearer.

    Raises:
        ValueError: fewer than three alpha carbons are known in both.
    """
    protein = np.array([r.kind == "protein" for r in topology.residues], dtype=bool)[topology.residue_index]
    alpha = np.flatnonzero(protein & (np.array(topology.names) == "CA"))
    moved = superpose(x, reference, fit=alpha)
    if symmetric:
        moved = nearest_naming(topology, moved, reference)
    return SuperposedRmsd(
        float(rmsd(moved[protein], reference[protein])), float(rmsd(moved[alpha], reference[alpha]))
    )


def nearest_naming(
    topology: Topology, x: Float[np.ndarray, "n 3"], reference: Float[np.ndarray, "n 3"]
) -> Float[np.ndarray, "n 3"]:
    """Exchange atoms of equivalent names in each residue where that is nearer; nothing is superposed."""
    index = topology.atom_index
    result = x.copy()
    for r, residue in enumerate(topology.residues):
        names = [name for pair in _SYMMETRIC.get(residue.name, ()) for name in pair]
        if not names or any((r, name) not in index for name in names):
            continue
        own = np.array([index[r, name] for name in names])
        other = own.reshape(-1, 2)[:, ::-1].ravel()
        as_named, exchanged = (((x[atoms] - reference[own]) ** 2).sum() for atoms in (own, other))
        if exchanged < as_named:
            result[own] = x[other]
    return result


def rmsf(coords: Float[np.ndarray, "k n 3"], weights: Float[np.ndarray, " k"]) -> Float[np.ndarray, " n"]:
    """Root-mean-square fluctuation of each atom about its weighted mean position, in place.

    ``sqrt(sum_k w_k |x_k - sum_l w_l x_l|^2)`` with weights normalised to one.
    """
    w = (weights / weights.sum())[:, None, None]
    deviation = coords - (w * coords).sum(axis=0)
    return np.sqrt((w * deviation**2).sum(axis=(0, 2)))


def rmsf_per_residue(ensemble: Ensemble) -> Float[np.ndarray, " r"]:
    """Weighted RMSF of the alpha carbon of each residue of the topology; NaN where there is none."""
    fluctuation = rmsf(
        ensemble.coords.detach().cpu().double().numpy(), ensemble.weights.detach().cpu().double().numpy()
    )
    index = ensemble.topology.atom_index
    return np.array(
        [
            fluctuation[index[r, "CA"]] if residue.kind == "protein" and (r, "CA") in index else np.nan
            for r, residue in enumerate(ensemble.topology.residues)
        ]
    )


def bimodality(
    x: Float[np.ndarray, "*k n 3"], state_a: Float[np.ndarray, "n 3"], state_b: Float[np.ndarray, "n 3"]
) -> Float[np.ndarray, "*k"]:
    """Where conformations lie between two states: -1 at A, 0 halfway, +1 at B.

    ``(1 - min(r, 1/r)) sign(r - 1/r)`` with ``r = |x - x_A| / |x - x_B|``, in place, over the atoms
    given (the backbone, by convention) that both states have.

    Raises:
        ValueError: no atom is known in both states.
    """
    common = _known(state_a) & _known(state_b)
    to_a, to_b = (rmsd(x[..., common, :], state[common]) for state in (state_a, state_b))
    near, far = np.minimum(to_a, to_b), np.maximum(to_a, to_b)
    # min(r, 1/r) is near/far, which also holds at r = 0 and 1/r = 0; coinciding states are 0.
    ratio = np.divide(near, far, out=np.ones_like(far), where=far > 0)
    return np.asarray((1.0 - ratio) * np.sign(to_a - to_b))


def _known(x: Float[np.ndarray, "*k n 3"]) -> Bool[np.ndarray, "*k n"]:
    return np.isfinite(x).all(axis=-1)
