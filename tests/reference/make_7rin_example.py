"""Makes the packaged example ``src/densemble/data/7rin`` from the PDB entry 7RIN.

Usage: python tests/reference/make_7rin_example.py 7rin.pdb 7rin.mtz OUT_DIR

``model.cif`` is altloc B alone, everywhere, at full occupancy: nothing of altloc A is in it, so
residues that the entry models in altloc A only (281-298) are absent. ``deposited.cif`` keeps the
altlocs and is for evaluation only. ``data.mtz`` keeps H, K, L, FP, SIGFP and FREE.
"""

import sys
from pathlib import Path

import gemmi
import numpy as np

START_ALTLOC = "B"
MODEL_GROUPS = (
    *("block_name", "entry", "title_keywords", "cell", "symmetry"),
    *("entity", "entity_poly", "entity_poly_seq", "struct_asym", "atoms", "auth_all", "group_pdb"),
)
COLUMNS = ("H", "K", "L", "FREE", "FP", "SIGFP")


def read_entry(path: Path) -> gemmi.Structure:
    """The entry without hydrogens, its entities and label numbering set up."""
    structure = gemmi.read_structure(str(path))
    structure.setup_entities()
    structure.assign_label_seq_id()
    structure.remove_hydrogens()
    return structure


def keep_one_altloc(structure: gemmi.Structure, altloc: str) -> gemmi.Structure:
    """Drop every other altloc; what stays gets full occupancy and a blank altloc."""
    for chain in structure[0]:
        for residue in chain:
            for i in reversed(range(len(residue))):
                if residue[i].altloc not in ("\0", altloc):
                    del residue[i]
                else:
                    residue[i].altloc = "\0"
                    residue[i].occ = 1.0
        for i in reversed(range(len(chain))):
            if len(chain[i]) == 0:
                del chain[i]
    structure.remove_empty_chains()
    return structure


def write_model(structure: gemmi.Structure, path: Path, title: str) -> None:
    """Write the atoms, cell, symmetry and sequence; leave out the entry's bookkeeping."""
    structure.info["_struct.title"] = title
    groups = gemmi.MmcifOutputGroups(False)
    for name in MODEL_GROUPS:
        setattr(groups, name, True)
    structure.make_mmcif_document(groups).write_file(str(path))


def write_data(source: Path, path: Path) -> None:
    """Keep the measured amplitudes and the free flags only, in the order of ``COLUMNS``."""
    full = gemmi.read_mtz_file(str(source))
    mtz = gemmi.Mtz(with_base=True)
    mtz.title = "PDB entry 7RIN: measured amplitudes and free flags"
    mtz.spacegroup = full.spacegroup
    mtz.set_cell_for_all(full.cell)
    mtz.add_dataset("7rin")
    for name in COLUMNS[3:]:
        mtz.add_column(name, full.column_with_label(name).type)
    data = np.column_stack([np.array(full.column_with_label(name), dtype=np.float32) for name in COLUMNS])
    mtz.set_data(data)
    mtz.write_to_file(str(path))


def main(pdb: Path, mtz: Path, out: Path) -> None:
    """Write the three files of the example."""
    out.mkdir(parents=True, exist_ok=True)
    title = "Apo PTP1B at room temperature (7RIN)"
    write_model(read_entry(pdb), out / "deposited.cif", f"{title}, as deposited, without hydrogens")
    start = keep_one_altloc(read_entry(pdb), START_ALTLOC)
    write_model(start, out / "model.cif", f"{title}, altloc {START_ALTLOC} alone at full occupancy")
    write_data(mtz, out / "data.mtz")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
