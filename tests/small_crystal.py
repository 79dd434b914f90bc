"""A small crystal with a known two-state truth: the packaged loop alone in a cell of its own.

The truth is residues A:172-194 of the packaged example as deposited, both states of the WPD loop, in
space group P 21; its amplitudes are summed by gemmi, not by densemble. The start is the second state alone.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import gemmi
import numpy as np

import densemble
from densemble.pipeline import Settings
from densemble.progress import Progress
from densemble.recipes import load_recipe
from densemble.recipes.writing import toml_text
from densemble.report.writing import OWN_REPORT_FILES

EXAMPLE = Path(densemble.__file__).parent / "data" / "7rin"
CELL = gemmi.UnitCell(34, 31, 36, 90, 104, 90)
SPACEGROUP = "P 1 21 1"
D_MIN = 2.0
RESIDUES = range(172, 195)
OCCUPANCY = {"A": 0.39, "B": 0.61}  # as deposited
WATERS = 6
"""Beside the loop; in its own cell, state A or a copy of it stands where three of the last four do."""
LOOP = "A:179-186"
GUIDES = ("none", "each", "ensemble")
STEPS = 12  # a checkpoint is written at step 10


@dataclass(frozen=True)
class SmallCrystal:
    """Files of the crystal: the start, its data, the truth and a recipe of few steps."""

    model: Path
    data: Path
    reference: Path
    recipe: Path

    def settings(self, **changes) -> Settings:
        base = Settings(
            model=self.model,
            data=self.data,
            region=LOOP,
            prior="gaussian",
            members=3,
            keep=2,
            steps=6,
            recipe=str(self.recipe),
            states=False,
            seed=1,
        )
        return replace(base, **changes)


def write_crystal(
    folder: Path, *, waters: int = WATERS, b_iso: dict[str, float] | None = None
) -> SmallCrystal:
    """All files of the crystal, in a folder, with so many waters.

    Args:
        folder: that is there.
        waters: beside the loop.
        b_iso: Å^2, of all atoms of A:176-191 by altloc, instead of what was deposited.
    """
    whole = truth(waters)
    for site in whole[0].all():
        if b_iso and site.chain.name == "A" and site.residue.seqid.num in range(176, 192):
            site.atom.b_iso, site.atom.aniso = b_iso[site.atom.altloc], gemmi.SMat33f(0, 0, 0, 0, 0, 0)
    crystal = SmallCrystal(*(folder / name for name in ("start.cif", "data.mtz", "truth.cif", "quick.toml")))
    whole.make_mmcif_document().write_file(str(crystal.reference))
    one_state(whole).make_mmcif_document().write_file(str(crystal.model))
    write_data(whole, crystal.data)
    write_recipe(crystal.recipe)
    return crystal


def truth(count: int = WATERS) -> gemmi.Structure:
    """The loop in both states and some waters near it, moved to the middle of the cell."""
    source = gemmi.read_structure(str(EXAMPLE / "deposited.cif"))
    structure = gemmi.Structure()
    structure.name = "small"
    structure.cell, structure.spacegroup_hm = CELL, SPACEGROUP
    chain, waters = gemmi.Chain("A"), gemmi.Chain("W")
    for residue in (residue for c in source[0] for residue in c):
        if residue.name != "HOH" and residue.seqid.num in RESIDUES:
            chain.add_residue(residue)
    sites = np.array([atom.pos.tolist() for residue in chain for atom in residue])
    for residue in (residue for c in source[0] for residue in c if residue.name == "HOH"):
        distance = np.linalg.norm(sites - residue[0].pos.tolist(), axis=1).min()
        if distance < 5.0 and residue[0].altloc == "\0" and len(waters) < count:
            water = residue.clone()
            water.seqid = gemmi.SeqId(str(500 + len(waters)))
            waters.add_residue(water)
    model = gemmi.Model("1")
    model.add_chain(chain)
    model.add_chain(waters)
    structure.add_model(model)
    middle = np.array(CELL.orthogonalize(gemmi.Fractional(0.5, 0.5, 0.5)).tolist())
    shift = gemmi.Transform()
    shift.vec.fromlist((middle - sites.mean(axis=0)).tolist())
    structure[0].transform_pos_and_adp(shift)
    structure.setup_entities()
    structure.assign_label_seq_id(True)
    structure.setup_cell_images()
    return structure


def one_state(whole: gemmi.Structure, altloc: str = "B") -> gemmi.Structure:
    """One conformer at full occupancy; the other is not in it."""
    structure = whole.clone()
    for residue in (residue for chain in structure[0] for residue in chain):
        for i in reversed(range(len(residue))):
            if residue[i].altloc not in ("\0", altloc):
                del residue[i]
            else:
                residue[i].altloc, residue[i].occ = "\0", 1.0
    return structure


def write_data(structure: gemmi.Structure, path: Path) -> None:
    """Amplitudes of a structure in bulk solvent, 2 % noise, one in twelve free; phases too, as FWT/PHWT."""
    hkl, f = structure_factors(structure)
    rng = np.random.default_rng(5)
    amplitude = 3.0 * np.abs(f) * (1 + 0.02 * rng.normal(size=len(f)))
    free = rng.uniform(size=len(f)) < 1 / 12
    columns = {
        "FP": ("F", amplitude),
        "SIGFP": ("Q", np.full(len(f), 0.02 * amplitude.mean())),
        "FREE": ("I", 1.0 - free),
        "FWT": ("F", 3.0 * np.abs(f)),
        "PHWT": ("P", np.rad2deg(np.angle(f))),
    }
    write_mtz(path, hkl, columns, cell=structure.cell)


def write_mtz(path: Path, hkl: np.ndarray, columns: dict[str, tuple[str, np.ndarray]], *, cell=CELL) -> None:
    """An MTZ file of the small crystal."""
    mtz = gemmi.Mtz(with_base=True)
    mtz.spacegroup = gemmi.SpaceGroup(SPACEGROUP)
    mtz.set_cell_for_all(cell)
    mtz.add_dataset("small")
    for label, (kind, _) in columns.items():
        mtz.add_column(label, kind)
    mtz.set_data(np.column_stack([hkl, *(v for _, v in columns.values())]).astype(np.float32))
    mtz.write_to_file(str(path))


def read_columns(path: Path) -> tuple[np.ndarray, dict[str, tuple[str, np.ndarray]]]:
    """Miller indices and the other columns of an MTZ file, to change and write again."""
    mtz = gemmi.read_mtz_file(str(path))
    columns = {c.label: (c.type, np.array(c, dtype=np.float64)) for c in list(mtz.columns)[3:]}
    return np.asarray(mtz.make_miller_array()), columns


def structure_factors(structure: gemmi.Structure) -> tuple[np.ndarray, np.ndarray]:
    """Miller indices and structure factors to 2 Å, bulk solvent of 0.35 e/Å^3 and B 50 Å^2 included."""
    density = gemmi.DensityCalculatorX()
    density.d_min, density.rate = D_MIN, 2.0
    density.set_refmac_compatible_blur(structure[0])
    density.set_grid_cell_and_spacegroup(structure)
    density.put_model_density_on_grid(structure[0])
    atoms = gemmi.transform_map_to_f_phi(density.grid)
    data = atoms.prepare_asu_data(dmin=D_MIN, unblur=density.blur)
    hkl = np.asarray(data.miller_array)
    solvent = sum(w * solvent_factors(one_state(structure, letter), hkl) for letter, w in OCCUPANCY.items())
    s2 = np.asarray(structure.cell.calculate_1_d2_array(hkl))
    f = np.asarray(data.value_array) + 0.35 * np.exp(-50 * s2 / 4) * solvent
    return hkl, f


def solvent_factors(conformer: gemmi.Structure, hkl: np.ndarray) -> np.ndarray:
    """Structure factors of a flat solvent around one conformer, in Å^3."""
    mask = gemmi.FloatGrid()
    mask.setup_from(conformer, spacing=0.5)
    gemmi.SolventMasker(gemmi.AtomicRadiiSet.Refmac).put_mask_on_float_grid(mask, conformer[0])
    return np.asarray(gemmi.transform_map_to_f_phi(mask).get_value_by_hkl(hkl))


QUICK = {
    "geometry_cap": 5.0,
    "noise": {"steps": STEPS, "sigma_max": 20.0, "sigma_min": 0.05, "rho": 7.0, "churn": 0.3},
    "gaussian": {"amplitude": 3.0, "smoothness": 2.5, "jitter": 0.3},
    "density": {"margin": 5.0, "spacing": 1.0, "reach": 4.0, "blur_per_sigma": 0.5, "blur_limit": 2.0},
    "sidechains": {"high": 2.0, "resample_every": 3, "gradient_steps": 3, "step_size": 0.01, "window": 0},
    "stages": [
        {"term": "density", "high": 4.0, "weight": 0.5, "mode": "ratio"},
        {"term": "geometry", "high": 2.0, "weight": 0.5, "mode": "ratio"},
    ],
    "finish": {"regularise_steps": 6, "refine_steps": 6, "density_weight": 1.0},
}
"""What the tests' recipe has of its own, so that tuning the default does not change their numbers."""


def write_recipe(path: Path, **changes: dict) -> None:
    """A recipe of few steps and a small box, as a file.

    Args:
        path: ends in ``.toml``.
        changes: by part, keys and values.
    """
    recipe = load_recipe("densemble").model_dump(exclude_none=True)
    for own in (QUICK, changes):
        for name, part in own.items():
            recipe[name] = recipe.get(name, {}) | part if isinstance(part, dict) else part
    path.write_text(toml_text(recipe), encoding="utf-8")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def outcome(folder: Path) -> dict[str, bytes]:
    """What a run says but for the record of itself and the report that is made of it."""
    of_itself = {"result.json", *OWN_REPORT_FILES}
    return {name: data for name, data in contents(folder).items() if name not in of_itself}


class StoppedError(Exception):
    """Stands for the user's Ctrl-C."""


class StopAt(Progress):
    """Stops a run when a guide has done some steps; records what it was told."""

    def __init__(self, guide: str = "", step: int = -1) -> None:
        self.guide, self.step = guide, step
        self.seen: list[tuple[str, int]] = []

    def steps(self, name: str, total: int):
        return _Steps(self, name.removeprefix("guide: "))


class _Steps:
    """The context manager that ``Progress.steps`` gives."""

    def __init__(self, progress: StopAt, name: str) -> None:
        self.progress, self.name = progress, name

    def __enter__(self):
        return self.done

    def __exit__(self, *error) -> None:
        return None

    def done(self, step: int) -> None:
        self.progress.seen.append((self.name, step))
        if (self.name, step) == (self.progress.guide, self.progress.step):
            raise StoppedError
