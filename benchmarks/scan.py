"""How often does a scan cry wolf, and what does it miss? ``python benchmarks/scan.py MODEL DATA``.

Data are simulated on the model's reflections: structure factors of a truth with bulk solvent (0.35 e/Å^3,
B 50 Å^2) and noise. The truth differs from the model that is scanned as a refined model differs from a
crystal that has one state: every atom is moved, B factors are off, and some waters are not in the model. With
``--ligand`` a lump of 20 carbon atoms beside the model is missing from it too. With ``--occupancy`` the truth
has the two conformations A and B of ``--region``, and B alone is scanned. With ``--refined`` the B factors of
each residue are first fitted so that its deficit becomes small, as refinement in one state would make it.
``--simulations 0`` scans the data as measured.

Figures in docs/scanning.md.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import gemmi
import numpy as np
from scipy.spatial import cKDTree

from densemble.atoms import Region
from densemble.crystal.scaling import BulkSolvent, model_factors, r_factors
from densemble.io.models import Model, read_model
from densemble.io.naming import residue_id
from densemble.io.reflections import Reflections, read_reflections
from densemble.scan import Evidence, Window, find_windows

SOLVENT = BulkSolvent(density=0.35, b=50.0)


def main() -> None:
    """Scan simulated data; print the best score of each, and what is strong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--start-altloc")
    parser.add_argument("--simulations", type=int, default=20)
    parser.add_argument("--shift", type=float, default=0.12, help="Å, r.m.s. of an atom along each axis")
    parser.add_argument("--b-error", type=float, default=0.15, help="relative, of each atom's B")
    parser.add_argument("--noise", type=float, default=0.04, help="relative, of amplitudes")
    parser.add_argument("--waters", type=float, default=0.15, help="part of the waters that the model lacks")
    parser.add_argument("--ligand", action="store_true", help="a ligand that the model lacks")
    parser.add_argument("--occupancy", type=float, help="of altloc A of the region in the truth")
    parser.add_argument("--refined", action="store_true", help="fit the B factors of each residue first")
    parser.add_argument("--region", default="A:176-191")
    args = parser.parse_args()
    reflections = read_reflections(args.data)
    model = read_model(args.model, altloc=args.start_altloc)
    if args.simulations == 0:
        windows, _ = find_windows(
            _refined(model, reflections) if args.refined else model, reflections, longest=6
        )
        print("\n".join(map(_words, windows)))
        return
    best, alarms = [], 0
    for seed in range(args.simulations):
        rng = np.random.default_rng(seed)
        truth = _truth(model, args, rng)
        data = _data(truth, reflections, args.noise, rng)
        scanned = _without_waters(model, args.waters, rng)
        scanned = _refined(scanned, data) if args.refined else scanned
        windows, _ = find_windows(scanned, data, longest=6)
        strong = [w for w in windows if w.strong]
        best.append(windows[0].score if windows else 0.0)
        alarms += len(strong)
        r = r_factors(scanned.structure, data)
        said = "; ".join(map(_words, windows[:3]))
        print(f"{seed}: R {r.r_work:.3f} {r.r_free:.3f}, {len(strong)} strong; {said}", flush=True)
    scores = np.array(best)
    print(f"best score of a scan: median {np.median(scores):.2f}, largest {scores.max():.2f}")
    print(f"strong: {alarms} windows in {args.simulations} scans")


def _words(w: Window) -> str:
    return f"{w.region} {w.score:.1f}{' strong' if w.strong else ''} (deficit {w.deficit:.2f})"


def _truth(model: Model, args: argparse.Namespace, rng: np.random.Generator) -> gemmi.Structure:
    """What the crystal holds: the model with errors, and what it lacks."""
    truth = model.structure.clone()
    if args.occupancy is not None:
        _add_states(truth, args)
    for site in truth[0].all():
        site.atom.pos += gemmi.Position(*rng.normal(scale=args.shift, size=3))
        factor = float(np.exp(args.b_error * rng.normal()))
        site.atom.b_iso *= factor
        if site.atom.aniso.nonzero():
            site.atom.aniso = site.atom.aniso.scaled(factor)
    if args.ligand:
        _add_ligand(truth, model.coords, rng)
    return truth


def _add_states(truth: gemmi.Structure, args: argparse.Namespace) -> None:
    """Give the region its two deposited conformations, with occupancies of our choice."""
    weights = {"A": args.occupancy, "B": 1 - args.occupancy}
    source = gemmi.read_structure(str(args.model))
    topology = read_model(args.model, altloc=args.start_altloc).topology
    inside = {topology.residues[r].id for r in Region.parse(args.region).residues(topology)}
    for chain in truth[0]:
        for residue in chain:
            if residue_id(chain, residue) not in inside:
                continue
            deposited = source[0][chain.name][str(residue.seqid)][residue.name]
            for i in reversed(range(len(residue))):
                del residue[i]
            for atom in deposited:
                if not atom.is_hydrogen():
                    atom.occ = weights.get(atom.altloc, 1.0)
                    residue.add_atom(atom)


def _add_ligand(truth: gemmi.Structure, coords: np.ndarray, rng: np.random.Generator) -> None:
    """Twenty carbon atoms in a lump that touches the model."""
    tree = cKDTree(coords)
    middle = None
    while middle is None or not 4.5 < tree.query(middle)[0] < 5.5:
        middle = coords[rng.integers(len(coords))] + rng.normal(scale=4.0, size=3)
    residue = gemmi.Residue()
    residue.name, residue.seqid = "LIG", gemmi.SeqId("900")
    while len(residue) < 20:
        place = middle + rng.normal(scale=1.8, size=3)
        if tree.query(place)[0] > 3.0:
            atom = gemmi.Atom()
            atom.name, atom.element, atom.b_iso = f"C{len(residue)}", gemmi.Element("C"), 25.0
            atom.pos = gemmi.Position(*place)
            residue.add_atom(atom)
    truth[0][0].add_residue(residue)


def _without_waters(model: Model, part: float, rng: np.random.Generator) -> Model:
    """The model without some of its waters."""
    residues = model.topology.residues
    return model.only([i for i, r in enumerate(residues) if not (r.kind == "water" and rng.uniform() < part)])


def _refined(model: Model, reflections: Reflections, rounds: int = 3) -> Model:
    """B factors of each residue raised, or lowered, by what its deficit says of the height of its atoms.

    The height of an atom goes with ``(B + b)^(-3/2)``, b being about 12 Å^2 for its own width at 2 Å.
    """
    own = 12.0
    for _ in range(rounds):
        evidence = Evidence.of(model, reflections)
        deficit = evidence.overlap / evidence.norm
        deficit = np.clip(deficit - np.median(deficit), -0.3, 0.5)
        factor = np.ones(len(model.topology.residues))
        factor[evidence.residues] = (1 - deficit) ** (-2 / 3)
        b_iso = np.maximum((model.b_iso + own) * factor[model.topology.residue_index] - own, 3.0)
        structure = model.structure.clone()
        for i, site in enumerate(structure[0].all()):
            if site.atom.aniso.nonzero():
                site.atom.aniso = site.atom.aniso.scaled(float(b_iso[i] / model.b_iso[i]))
            site.atom.b_iso = float(b_iso[i])
        model = replace(model, structure=structure, b_iso=b_iso)
    return model


def _data(
    truth: gemmi.Structure, reflections: Reflections, noise: float, rng: np.random.Generator
) -> Reflections:
    """Amplitudes of the truth in solvent, with the indices and free flags of the real data."""
    truth.setup_cell_images()
    atoms, solvent = model_factors(truth, reflections)
    f = np.abs(atoms + SOLVENT.at(reflections.inverse_d2) * solvent)
    measured = np.abs(f * (1 + noise * rng.normal(size=len(f))))
    return replace(reflections, f=measured, sigma=noise * f)


if __name__ == "__main__":
    main()
