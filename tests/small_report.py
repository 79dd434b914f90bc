"""Finished runs to make reports of: what a run wrote, with the parts that later steps of a run add."""

import csv
import shutil
from pathlib import Path
from typing import Any

from densemble.io.finished import read_run
from densemble.io.model_results import (
    MODEL_FILE,
    Evidence,
    FinalModel,
    Interval,
    Part,
    Refined,
    Refinement,
    State,
    States,
    Validation,
)
from densemble.io.output import write_record
from densemble.io.results import Member, Result

OCCUPANCY = {"B": 0.61, "A": 0.39}


def bare_result(**parts: Any) -> Result:
    """A crystal's record with nothing in it but what is given, and one member."""
    empty = {"inputs": [], "settings": {}, "seed": 0, "versions": {}, "device": "cpu", "timings": {}}
    return Result(**{**empty, "members": [Member(id=1, selected=True, weight=1.0, rscc=0.8)], **parts})


def final_model(region: str) -> FinalModel:
    """A record of two states with everything in it."""
    states = [
        State(
            label=label,
            occupancy=occupancy,
            interval=Interval(low=occupancy - 0.06, high=occupancy + 0.05),
            members=[0, 2] if label == "B" else [3],
            rmsd={"A": 2.4 if label == "B" else 0.3, "B": 0.2 if label == "B" else 2.5},
        )
        for label, occupancy in OCCUPANCY.items()
    ]
    evidence = [
        Evidence(states=1, fit=0.81, held_out=0.7712),
        Evidence(states=2, fit=0.9, held_out=0.8623, error=0.011, chosen=True),
        Evidence(states=3, fit=0.91, held_out=0.8618, error=0.004),
    ]
    return FinalModel(
        states=States(
            rule="The smallest number whose held-out correlation is within one standard error of the best.",
            coordinate_error=0.21,
            parts=[Part(region=region, states=states, evidence=evidence)],
        ),
        refinement=Refinement(
            cycles=5,
            start=Refined(r_work=(0.1874, 0.1869), r_free=(0.1925, 0.1919), rscc=(0.838, 0.841)),
            model=Refined(r_work=(0.1825, 0.1801), r_free=(0.189, 0.1841), rscc=(0.912, 0.921)),
        ),
        validation={
            "start": Validation(atoms=184, clashscore=3.2, ramachandran_favoured=0.97, bond_rmsz=0.61),
            "model": Validation(
                atoms=312,
                clashscore=2.1,
                ramachandran_favoured=1.0,
                ramachandran_outliers=0.0,
                rotamer_outliers=0.012,
                bond_rmsz=0.55,
                angle_rmsz=0.71,
                chirality_outliers=0,
            ),
        },
        waters_displaced=["W:502"],
        waters_partial=["W:504 altloc B"],
    )


def write_finished(run: Path, model: Path, region: str, folder: Path, *, residues: list[str]) -> Path:
    """A copy of a run's folder with a final model, its record and the fit of residues.

    Args:
        run: the folder.
        model: with the states as altlocs.
        region: that they are of.
        folder: to write.
        residues: of the region, for example ``A:180``.
    """
    shutil.copytree(run, folder)
    shutil.copyfile(model, folder / MODEL_FILE)
    result = read_run(folder)
    write_record(folder / "result.json", result.model_copy(update={"model": final_model(region)}))
    with (folder / "residues.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["residue", "name", "start", "ensemble", "model"])
        for i, residue in enumerate(residues):
            rows.writerow([residue, "GLY", 0.5 + 0.03 * i, 0.8, "" if i == 2 else 0.9])
    return folder
