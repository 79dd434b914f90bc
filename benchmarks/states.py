"""How often the number of states is right, and how far occupancies are off: simulated crystals, known truth.

``python benchmarks/states.py ../shared/data/xray --cases 10 --json states.json``. Amplitudes are those of a
real model whose loop is in one, two or three states, with complex noise on every structure factor of the size
that the real model's errors have against the real data, shell by shell. The candidates are never the truth:
copies that are off by 0.2 Å, and decoys around and apart. The number that is advised is the one found where
it is supported by the rule of a run's final model, and one elsewhere; a run refines both models before it
asks, here they are as they were found.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import gemmi
import numpy as np
import torch
from torch import Tensor

from densemble.atoms import Ensemble, Region, Topology
from densemble.crystal.direct import DirectFactors
from densemble.crystal.fcalc import atom_factors, solvent_factors, solvent_mask, without_residues
from densemble.crystal.omit import ScaledModels, StretchMap, scaled_models
from densemble.crystal.scaling import BulkSolvent, Scale, r_factors_of
from densemble.crystal.sigmaa import error_variance, figure_of_merit, free_gain
from densemble.evaluation import backbone_atoms
from densemble.experiments.crystals import WORSE, Bending, deformed
from densemble.forward.scattering import FormFactors, xray_form_factors
from densemble.forward.solvent import displaced_volumes, displacement_factors
from densemble.geometry.objective import GeometryObjective
from densemble.geometry.regularise import regularise
from densemble.io.model_results import HeldOut, States
from densemble.io.models import read_model
from densemble.io.reflections import MapCoefficients, Reflections, read_reflections
from densemble.metrics.coordinates import rmsd
from densemble.part_search import Counting
from densemble.problem import CrystalProblem, Stretches
from densemble.recipes import load_recipe
from densemble.report import table
from densemble.selection.amplitudes import AmplitudeJudge, choosing_half
from densemble.selection.number import choose, choose_by_information
from densemble.states import find_states, same_within

SCENES = (
    ("4hg7_no_ligand.pdb", "4hg7.mtz", "A:60-67", None),
    ("4hg7_no_ligand.pdb", "4hg7.mtz", "A:70-77", None),
    ("7rin.pdb", "7rin.mtz", "A:178-187", "B"),
)
FINEST = 1.5
WEIGHTS = {
    1: ((1.0,),),
    2: ((0.8, 0.2), (0.7, 0.3), (0.6, 0.4), (0.5, 0.5)),
    3: ((0.6, 0.2, 0.2), (0.5, 0.3, 0.2), (0.4, 0.35, 0.25)),
}
COPIES, MEMBERS = 3, 16
APART = 1.0
"""Å, backbone RMSD over the loop by which states differ at least."""
ERROR = 0.2
"""Å, RMSD of the best candidates from the truth."""


@dataclass(frozen=True, eq=False)
class Scene:
    """A crystal whose loop is to be simulated, with all that does not depend on it."""

    name: str
    stretches: Stretches
    hkl: np.ndarray
    rest: np.ndarray
    electrons: float
    noise: np.ndarray
    solvent: BulkSolvent
    factors: FormFactors

    @classmethod
    def of(cls, folder: Path, model: str, data: str, region: str, altloc: str | None) -> Scene:
        """Read model and data, and see how large the model's errors are."""
        start = read_model(folder / model, altloc=altloc)
        real = read_reflections(folder / data)
        stretches = Stretches.of(start, Region.parse(region), window=0)
        residues = [start.topology.residues[r].id for r in stretches.free]
        models = scaled_models(start.structure, residues, real)
        solvent = models.solvent
        whole = np.abs(models.whole[:-1])
        relative = error_variance(real, real.f / models.scale.k, whole) / (real.epsilon * _power(real, whole))
        group = start.structure.find_spacegroup()
        hkl = gemmi.make_miller_array(start.structure.cell, group, dmin=FINEST)
        hkl = hkl[~np.asarray(group.operations().systematic_absences(hkl), dtype=bool)]
        s2 = start.structure.cell.calculate_1_d2_array(hkl)
        partial = without_residues(start.structure, residues)
        with_000 = np.concatenate([hkl, np.zeros((1, 3), dtype=np.int32)])
        rest = atom_factors(partial, with_000, d_min=FINEST)
        rest = rest + solvent.at(np.append(s2, 0.0)) * solvent_factors(solvent_mask(partial), with_000)
        order = np.argsort(real.inverse_d2)
        fine = _reflections(start.structure, hkl, np.abs(rest[:-1]), np.zeros(len(hkl), dtype=bool))
        share = np.interp(s2, real.inverse_d2[order], relative[order])
        noise = share * fine.epsilon * _power(fine, np.abs(rest[:-1]))
        topology = stretches.topology
        atoms = xray_form_factors(topology.elements)
        volumes = displaced_volumes(topology.residue_names, topology.names, topology.elements)
        a, b = displacement_factors(volumes, density=solvent.density, b_solvent=solvent.b)
        factors = FormFactors(np.hstack([atoms.a, a]), np.hstack([atoms.b, b]))
        name = f"{data[:4].upper()} {region}"
        return cls(name, stretches, hkl, rest[:-1], float(rest[-1].real), noise, solvent, factors)


def _power(reflections: Reflections, f: np.ndarray) -> np.ndarray:
    """Mean intensity, without epsilon, in the neighbourhood of each reflection's resolution."""
    order = np.argsort(reflections.inverse_d2)
    square, window = (f**2 / reflections.epsilon)[order], np.ones(501)
    smooth = np.convolve(square, window, "same") / np.convolve(np.ones(len(square)), window, "same")
    found = np.empty(len(f))
    found[order] = smooth
    return found


def _reflections(structure: gemmi.Structure, hkl: np.ndarray, f: np.ndarray, free: np.ndarray) -> Reflections:
    group = structure.find_spacegroup()
    return Reflections(hkl, f, np.full(len(f), 0.02 * f.mean()), free, structure.cell, group)


class Loop:
    """Conformations of a scene's loop with good stereochemistry."""

    def __init__(self, scene: Scene, geometry: GeometryObjective, rng: np.random.Generator) -> None:
        self.stretches, self.geometry, self.rng = scene.stretches, geometry, rng
        self.residue = scene.stretches.topology.residue_index
        self.backbone = backbone_atoms(scene.stretches.topology)
        self.limit = float(geometry(scene.stretches.start[None])) - WORSE * len(self.residue)

    def near(self, x: Sequence[Tensor], rms: Sequence[float], *, noise: float = 0.0) -> Tensor:
        """Bent smoothly by so many Å, then with good stereochemistry again."""
        moved = torch.stack([deformed(y, self.residue, self.rng, r) for y, r in zip(x, rms, strict=True)])
        moved = moved + noise * torch.as_tensor(self.rng.normal(size=tuple(moved.shape))).to(moved)
        return regularise(moved, self.geometry, evaluations=30).coords

    def copies(self, x: Sequence[Tensor]) -> Tensor:
        """The same but for ``ERROR``."""
        return self.near(x, [ERROR] * len(x), noise=0.1)

    def states(self, count: int) -> Tensor:
        """States of which no two are nearer than 1 Å in backbone RMSD."""
        found = [self.near([self.stretches.start], [0.3])[0]]
        while len(found) < count:
            trial = self.near([self.stretches.start], [self.rng.uniform(1.0, 2.5)])[0]
            near = rmsd(torch.stack(found)[:, self.backbone].numpy(), trial[self.backbone].numpy()).min()
            if near > APART and float(self.geometry(trial[None])) > self.limit:
                found.append(trial)
        return torch.stack(found)


class Recording(AmplitudeJudge):
    """Keeps what was said of the models that were compared, and the amplitudes of the last of one state."""

    def held_out(self, signals: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """As it is, and kept."""
        found = super().held_out(signals, weights)
        self.__dict__.setdefault("heard", []).append((len(weights), self.fitted(signals, weights), found))
        if len(weights) == 1:
            self.__dict__["one_state"] = self.amplitudes(signals, weights)
        return found

    def amplitudes(self, signals: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Of a model, on the scale of the data."""
        return np.abs(self.rest + weights @ signals)


def simulate(scene: Scene, count: int, d_min: float, seed: int) -> dict[str, object]:
    """One crystal with so many states, and what is found in it."""
    rng = np.random.default_rng([seed, count, round(100 * d_min)])
    began, topology, model = time.process_time(), scene.stretches.topology, scene.stretches.model
    geometry = Bending.of(scene.stretches, rng).geometry
    loop = Loop(scene, geometry, rng)
    truth, weights = loop.states(count), np.array(WEIGHTS[count][seed % len(WEIGHTS[count])])
    copies = loop.copies([truth[0], *(x for x in truth for _ in range(COPIES))])
    others = MEMBERS - len(copies)
    around = loop.near([truth[i % count] for i in range(others)], rng.uniform(0.7, 2.0, size=others).tolist())
    start, members = copies[0], torch.cat([copies, around])

    s2 = model.structure.cell.calculate_1_d2_array(scene.hkl)
    seen = s2 <= d_min**-2
    hkl, rest = scene.hkl[seen], scene.rest[seen]
    direct = DirectFactors(scene.factors, hkl, model.structure.cell, model.structure.find_spacegroup())
    atoms, b_start = np.arange(len(topology)), scene.stretches.b_start.double().numpy()
    shifts = rng.normal(0, 4.0, size=(count, len(topology.residues)))[:, topology.residue_index]
    true = rest + sum(
        w * direct(atoms, x.double().numpy(), np.maximum(b_start + shift, 8.0))
        for w, x, shift in zip(weights, truth, shifts, strict=True)
    )
    error = rng.normal(size=(2, len(hkl))) * np.sqrt(scene.noise[seen] / 2)
    free = rng.uniform(size=len(hkl)) < 0.05
    data = _reflections(model.structure, hkl, np.abs(true + error[0] + 1j * error[1]), free)
    first = direct(atoms, start.double().numpy(), b_start)
    variance = error_variance(data, data.f, np.abs(rest + first))
    judge = Recording(data, data.f, rest, variance, direct)
    stretches = replace(scene.stretches, start=start)
    maps = omit(scene, data, rest, rest + first)
    problem = CrystalProblem.of(stretches, maps, load_recipe("embedded").density)
    states, parts = find_states(problem, members, judge, same=same_within(d_min), counting=Counting())
    return {
        "scene": scene.name,
        "d_min": d_min,
        "seed": seed,
        "truth": weights.tolist(),
        "apart": _apart(topology, truth),
        "r_factor": float(np.abs(data.f - np.abs(rest + first)).sum() / data.f.sum()),
        "free": int(data.free.sum()),
        "states": states.model_dump(mode="json"),
        "cpu_s": time.process_time() - began,
        **compared(topology, parts, truth, weights),
        **advised(judge, topology, states, parts),
        "parameters": scene.stretches.torsions - 5,
        "rules": other_rules(judge, scene.stretches.torsions - 5),
    }


def _apart(topology: Topology, truth: Tensor) -> float | None:
    """Least backbone RMSD between two states, Å."""
    x = truth[:, backbone_atoms(topology)].numpy()
    pairs = [float(rmsd(x[i], x[j])) for i in range(len(x)) for j in range(i)]
    return min(pairs, default=None)


def omit(scene: Scene, data: Reflections, rest: np.ndarray, whole: np.ndarray) -> StretchMap:
    """2mFo-DFc phased by all but the loop, as ``omit_map`` makes it, on the scale that is known."""
    m, d = figure_of_merit(data, data.f, rest)
    best = m * data.f * np.exp(1j * np.angle(rest))
    total = np.where(data.centric, best, 2 * best - d * rest)
    total = np.where(data.free, d * rest, total)
    hkl = np.concatenate([data.hkl, np.zeros((1, 3), dtype=np.int32)])

    def coefficients(values: np.ndarray, electrons: float) -> MapCoefficients:
        return MapCoefficients(hkl, np.append(values, electrons), data.cell, data.spacegroup)

    loop = float((scene.factors.a).sum()) * len(data.spacegroup.operations())
    context, one = coefficients(d * rest, scene.electrons), np.ones(len(rest))
    known = Scale(one, scene.solvent.at(data.inverse_d2), scene.solvent.density)
    electrons = scene.electrons + loop
    models = ScaledModels(np.append(whole, electrons), np.append(rest, scene.electrons), known, scene.solvent)
    return StretchMap(coefficients(total, electrons), context, models)


def compared(
    topology: Topology, parts: list[Ensemble], truth: Tensor, weights: np.ndarray
) -> dict[str, object]:
    """The largest number of states of a part; what the states nearest to each true one weigh."""
    most = max(parts, key=len)
    ids = {residue.id for residue in most.topology.residues}
    atoms = topology.atoms_of([i for i, residue in enumerate(topology.residues) if residue.id in ids])
    to = torch.cdist(most.coords.flatten(1), truth[:, atoms].flatten(1)).numpy() / np.sqrt(len(atoms))
    nearest = to.argmin(axis=1)
    found = [float(most.weights[nearest == s].sum()) for s in range(len(weights))]
    return {
        "found": len(most),
        "parts": sum(len(part) > 1 for part in parts),
        "occupancies": found,
        "rmsd": to.min(0).tolist(),
        "order": nearest.tolist(),
    }


def advised(judge: Recording, topology: Topology, states: States, parts: list[Ensemble]) -> dict[str, object]:
    """How many states the rule of a final model advises; what it goes by, of one state and of those found."""
    signals, weights = [], []
    for part in parts:
        own = topology.places_of(part.topology)
        signals.append(judge.signals(own, part.coords.double().numpy(), part.b_iso.double().numpy()))
        weights.append(part.weights.double().numpy())
    one = judge.__dict__["one_state"]
    several = judge.amplitudes(np.concatenate(signals), np.concatenate(weights))
    before, after = (r_factors_of(model, judge.reflections).r_free for model in (one, several))
    gain, error = free_gain(one, several, judge.reflections) or (None, None)
    held = HeldOut(before, after, "one state and those found", gain=gain, gain_error=error)
    supported = any(part.supported_by(held) for part in states.parts if len(part.states) > 1)
    return {
        "advised": max(map(len, parts)) if supported else 1,
        "r_free": [before, after],
        "free_gain": gain,
        "free_gain_error": error,
    }


def other_rules(judge: Recording, parameters: int) -> dict[str, int]:
    """The number of states that other rules would have taken, from the models that were compared first."""
    models: dict[int, tuple[float, np.ndarray]] = {}
    for count, fit, values in judge.__dict__.get("heard", []):
        models.setdefault(count, (fit, values))
    counts = [n for n in range(1, 5) if all(m in models for m in range(1, n + 1))]
    fits, heard = [models[n][0] for n in counts], [models[n][1] for n in counts]
    half = choosing_half(judge.reflections)[judge.reflections.free]
    found = {"AIC alone": choose_by_information(fits, [parameters * n for n in counts]).chosen + 1}
    for need in (0.0, 1.0, 1.645):
        for name, which in (("free", np.ones(len(half), dtype=bool)), ("half of free", half)):
            own = [values[which] for values in heard]
            found[f"{name} > {need:g} s.e."] = choose(own, need=[need] * len(own)).chosen + 1
    return found


def summary(records: list[dict]) -> Iterator[str]:
    """Confusion tables, found and advised, occupancy errors and coverage of the intervals, by resolution."""
    for d_min in sorted({r["d_min"] for r in records}):
        own = [r for r in records if r["d_min"] == d_min]
        rows = []
        for count in sorted({len(r["truth"]) for r in own}):
            these = [r for r in own if len(r["truth"]) == count]
            divided = sum(r["parts"] > 1 for r in these)
            right = sum(r["found"] == count and r["parts"] <= 1 for r in these)
            off = [
                abs(a - b)
                for r in these
                if r["found"] == count > 1
                for a, b in zip(r["occupancies"], r["truth"], strict=True)
            ]
            rows.append(
                [
                    f"{count}",
                    *_times(these, "found"),
                    str(divided),
                    f"{right}/{len(these)}",
                    f"{np.median(off):.3f}" if off else "",
                ]
            )
        yield f"{d_min:g} Å"
        yield from table(
            ["true \\ found", "1", "2", "3", "4", "in several parts", "right", "occupancy off (median)"], rows
        )
        yield from table(
            ["true \\ advised", "1", "2", "3", "4"],
            [
                [f"{count}", *_times([r for r in own if len(r["truth"]) == count], "advised")]
                for count in sorted({len(r["truth"]) for r in own})
            ],
        )
        for name in own[0]["rules"]:
            right = [
                np.mean(
                    [r["rules"][name] == len(r["truth"]) for r in own if len(r["truth"]) == c] or [np.nan]
                )
                for c in (1, 2, 3)
            ]
            said = "  ".join(f"{c}: {v:.2f}" for c, v in zip((1, 2, 3), right, strict=True))
            yield f"  by {name:<24} right of {said}"
        covered = list(_coverage(own))
        if covered:
            yield f"  95 % intervals cover the truth: {np.mean(covered):.2f} of {len(covered)}"


def _times(records: list[dict], number: str) -> list[str]:
    """How often a number is one, two, three, four."""
    return [str(sum(r[number] == n for r in records)) for n in (1, 2, 3, 4)]


def _coverage(records: list[dict]) -> Iterator[bool]:
    for r in records:
        if not len(r["order"]) == len(set(r["order"])) == len(r["truth"]) > 1:
            continue
        part = max(r["states"]["parts"], key=lambda p: len(p["states"]))
        for state, true in zip(part["states"], r["order"], strict=True):
            yield state["interval"]["low"] <= r["truth"][true] <= state["interval"]["high"]


def said(record: dict) -> str:
    """One line a case."""
    steps = [
        f"{e['states']}: {e['fit']:.0f}, {e['held_out']:.1f} ± {e['error'] or 0:.1f}"
        for part in record["states"]["parts"][:1]
        for e in part["evidence"]
    ]
    apart = "" if record["apart"] is None else f", {record['apart']:.2f} Å apart"
    return (
        f"{record['scene']} {record['d_min']:g} Å, case {record['seed']}, R {record['r_factor']:.3f}: "
        f"true {record['truth']}{apart}; "
        f"found {record['found']} {np.round(record['occupancies'], 2).tolist()}; "
        f"nats fitted and held out by states: {'; '.join(steps)}; {record['cpu_s']:.0f} s"
    )


def main() -> None:
    """Run all cases and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with 4HG7 and 7RIN")
    parser.add_argument("--cases", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--resolutions", type=float, nargs="+", default=[1.5, 2.0, 2.5])
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    scenes: dict[int, Scene] = {}
    records = []
    for seed in range(args.first, args.first + args.cases):
        which = seed % len(SCENES)
        scenes.setdefault(which, Scene.of(args.data, *SCENES[which]))
        for d_min in args.resolutions:
            for count in args.counts:
                record = simulate(scenes[which], count, d_min, seed)
                records.append(record)
                print(said(record), flush=True)
                if args.json:
                    args.json.write_text(json.dumps(records, indent=1))
    print("\n".join(summary(records)))


if __name__ == "__main__":
    main()
