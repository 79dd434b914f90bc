"""What other programs are told, read back by small readers of their selections.

cctbx, on which Phenix stands, and servalcat read it too where a Python that has them is named, for they want
another gemmi: ``python -m venv others; others/bin/pip install cctbx-base servalcat;
OTHER_PROGRAMS=others/bin/python pytest tests/unit/refinement/test_programs.py``.
"""

import json
import os
import re
import subprocess
from collections import Counter
from pathlib import Path

import gemmi
import numpy as np
import pytest
import torch

import densemble
from densemble.atoms import Ensemble, Region
from densemble.io.altlocs import build_altlocs
from densemble.io.models import read_model
from densemble.io.results import write_structure
from densemble.refinement.programs import (
    OccupancyGroup,
    occupancy_groups,
    phenix_parameters,
    refmac_keywords,
    write_model,
    write_parameters,
)
from densemble.refinement.split import split_where_different
from densemble.refinement.waters import model_structure

MODEL = Path(densemble.__file__).parent / "data" / "7rin" / "model.cif"


def split_model(model, *texts):
    """The model with the residues of each text in 2, 3, ... states, 1 Å apart along each axis."""
    parts, atoms = [], []
    for states, text in enumerate(texts, start=2):
        own = model.topology.atoms_of(Region.parse(text).residues(model.topology))
        coords = torch.tensor(model.coords[own]) + torch.arange(states).reshape(-1, 1, 1)
        weights = torch.arange(states, 0, -1).double()
        b_iso = torch.full(coords.shape[:2], 20.0, dtype=torch.float64)
        parts.append(Ensemble(model.topology.subset(own), coords, weights, b_iso))
        atoms.append(own)
    region = np.sort(np.concatenate(atoms))
    parts = split_where_different(parts, 0.2)
    return build_altlocs(model, parts, region), parts


@pytest.fixture(scope="module", params=["numbers", "insertion codes"])
def case(request, tmp_path_factory):
    structure = gemmi.read_structure(str(MODEL))
    texts = ("A:90-94,A:120", "A:182-184")
    if request.param == "insertion codes":
        for number, icode in ((91, "A"), (92, "B"), (95, "C")):
            structure[0]["A"][str(number)][0].seqid = gemmi.SeqId(90, icode)
        path = tmp_path_factory.mktemp("icodes") / "start.cif"
        structure.make_mmcif_document().write_file(str(path))
        return split_model(read_model(path), *texts)
    return split_model(read_model(MODEL), *texts)


def altloc_atoms(structure):
    return {
        (s.chain.name, s.residue.seqid.num, s.residue.seqid.icode, s.atom.name, s.atom.altloc)
        for s in structure[0].all()
        if s.atom.has_altloc()
    }


def phenix_groups(text):
    """Selections of each group: [[(chain, first, last, icode), ...], altloc]."""
    assert re.match(r"refinement\.refine \{\n  strategy = [*\w ]+\n  occupancies \{\n", text)
    groups = []
    for body in re.findall(r"constrained_group \{(.*?)\}", text, flags=re.DOTALL):
        selections = []
        for where, letter in re.findall(r"selection = \((.+)\) and altloc (\w)\n", body):
            runs = re.findall(
                r"\(chain '(\w)' and resseq (-?\d+)(?::(-?\d+))? and icode '(.)'\)(?: or |$)", where
            )
            assert len(runs) == where.count("chain")
            selections.append(([(c, int(a), int(b or a), i) for c, a, b, i in runs], letter))
        groups.append(selections)
    return groups


def refmac_groups(text):
    """The same of REFMAC's keywords: groups by number, and which of them sum to one."""
    found, complete = {}, []
    residues = r"residue (?:from (-?\d+) to (-?\d+)|(-?\d+)(\w?))"
    for line in text.splitlines():
        match = re.fullmatch(rf"occupancy group id (\d+) chain (\w) {residues} alt (\w)", line)
        if match:
            number, chain, a, b, one, icode, letter = match.groups()
            run = (chain, int(a or one), int(b or one), icode or " ")
            runs, same = found.setdefault(int(number), ([], letter))
            assert same == letter
            runs.append(run)
        elif line.startswith("occupancy group alts complete "):
            complete.append([int(x) for x in line.split()[4:]])
        else:
            assert line == "occupancy refine"
    assert text.splitlines()[-1] == "occupancy refine"
    assert sorted(x for ids in complete for x in ids) == sorted(found)
    return [[found[i] for i in ids] for ids in complete]


@pytest.mark.parametrize(
    ("write", "read"), [(phenix_parameters, phenix_groups), (refmac_keywords, refmac_groups)]
)
def test_every_altloc_atom_is_in_one_group_and_groups_are_complete(case, write, read):
    structure, parts = case
    groups = read(write(occupancy_groups(structure, parts)))
    atoms = altloc_atoms(structure)
    assert [len(group) for group in groups] == [2, 3]
    seen = []
    for group in groups:
        members = []
        for runs, letter in group:
            chosen = {
                atom
                for atom in atoms
                if atom[4] == letter
                and any(atom[0] == c and a <= atom[1] <= b and atom[2] == i for c, a, b, i in runs)
            }
            assert chosen
            seen += sorted(chosen)
            members.append({atom[:4] for atom in chosen})
        # complete: the same atoms in every state
        assert all(m == members[0] for m in members)
    assert len(seen) == len(set(seen))
    assert set(seen) == atoms


def test_ranges_are_short_where_they_can_be():
    structure, parts = split_model(read_model(MODEL), "A:90-94,A:120")
    (group,) = occupancy_groups(structure, parts)
    assert [(str(run.first), str(run.last)) for run in group.runs] == [
        ("A:90", "A:94"),
        ("A:120", "A:120"),
    ]
    text = phenix_parameters([group])
    assert (
        "selection = ((chain 'A' and resseq 90:94 and icode ' ') or "
        "(chain 'A' and resseq 120 and icode ' ')) and altloc A\n" in text
    )
    assert refmac_keywords([group]).splitlines() == [
        "occupancy group id 1 chain A residue from 90 to 94 alt A",
        "occupancy group id 1 chain A residue 120 alt A",
        "occupancy group id 2 chain A residue from 90 to 94 alt B",
        "occupancy group id 2 chain A residue 120 alt B",
        "occupancy group alts complete 1 2",
        "occupancy refine",
    ]


def test_the_model_is_written_with_all_that_goes_with_it(tmp_path):
    model = read_model(MODEL)
    own = model.topology.atoms_of(Region.parse("A:90-94").residues(model.topology))
    _, parts = split_model(model, "A:90-94")
    files, obstacle = write_model(tmp_path, *model_structure(model, parts, own), parts)
    assert [file.name for file in files] == ["model.cif", "model.pdb", "phenix.eff", "refmac.txt"]
    assert obstacle is None
    counts = {gemmi.read_structure(str(file))[0].count_atom_sites() for file in files[:2]}
    assert counts == {len(model.topology) + len(own)}
    model.structure[0]["A"].name = "LONG"
    built = model_structure(model, parts, own)
    files, _ = write_model(tmp_path, *built, parts, amplitudes=False)
    assert [file.name for file in files] == ["model.cif", "refmac.txt"]
    files, obstacle = write_model(tmp_path, *built, parts)
    assert [file.name for file in files] == ["model.cif", "phenix.eff", "refmac.txt"]
    assert "room for one letter" in obstacle


def test_nothing_is_written_for_one_state(tmp_path):
    model = read_model(MODEL)
    structure, parts = split_model(model, "A:90-94")
    assert [p.name for p in write_parameters(tmp_path, structure, parts)] == ["phenix.eff", "refmac.txt"]
    alone = [part.select([0], part.weights.new_ones(1)) for part in parts]
    assert write_parameters(tmp_path, structure, alone) == []
    assert occupancy_groups(structure, alone) == []
    assert isinstance(occupancy_groups(structure, parts)[0], OccupancyGroup)


CCTBX = """
import json, sys
import iotbx.pdb, iotbx.phil, mmtbx.model
from libtbx.utils import null_out
from mmtbx.refinement import occupancies

model, parameters = sys.argv[1:]
master = iotbx.phil.parse('''
refinement.refine {
  strategy = individual_sites individual_adp occupancies rigid_body
    .type = choice(multi=True)
  occupancies {
    constrained_group
      .multiple = True
    {
      selection = None
        .type = atom_selection
        .multiple = True
    }
  }
}''')
given = iotbx.phil.parse(file_name=parameters)
read, unused = master.fetch(source=given, track_unused_definitions=True)
groups = [g for g in read.extract().refinement.refine.occupancies.constrained_group if any(g.selection)]
for group in groups:
    group.selection = [text for text in group.selection if text]
manager = mmtbx.model.manager(model_input=iotbx.pdb.input(model), log=null_out())
found = occupancies.occupancy_selections(model=manager, other_constrained_groups=groups, as_flex_arrays=False)
altlocs = [atom.parent().altloc for atom in manager.get_hierarchy().atoms()]
shown = [[[altlocs[i] for i in state] for state in group] for group in found]
print(json.dumps({"groups": shown, "unused": len(unused)}))
"""
SERVALCAT = """
import json, sys
import gemmi
from servalcat.refmac.refmac_keywords import parse_keywords  # first: its modules import each other
from servalcat.refine.refine import GroupOccupancy

model, parameters = sys.argv[1:]
structure = gemmi.read_structure(model)
for number, found in enumerate(structure[0].all(), start=1):
    found.atom.serial = number
with open(parameters) as lines:
    keywords = parse_keywords(lines.read().splitlines())
groups = GroupOccupancy(structure, keywords["occu"])
shown = [[[atom.altloc for atom in group] for group in groups.groups]]
print(json.dumps({"groups": shown, "together": groups.consts}))
"""


@pytest.mark.parametrize("file", ["model.cif", "model.pdb"])
@pytest.mark.parametrize(
    ("package", "code", "parameters"),
    [("iotbx", CCTBX, "phenix.eff"), ("servalcat", SERVALCAT, "refmac.txt")],
)
def test_the_programs_themselves_find_every_atom_of_every_altloc(
    case, tmp_path, package, code, parameters, file
):
    python = os.environ.get("OTHER_PROGRAMS")
    if python is None:
        pytest.skip("OTHER_PROGRAMS names no Python that has cctbx-base and servalcat")
    structure, parts = case
    write_structure(tmp_path / "model.cif", structure)
    structure.write_pdb(str(tmp_path / "model.pdb"))
    write_parameters(tmp_path, structure, parts)
    command = [python, "-c", code, tmp_path / file, tmp_path / parameters]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    states = [state for group in found["groups"] for state in group]
    assert all(len(set(state)) == 1 for state in states), "one letter in each"
    read = Counter(letter for state in states for letter in state)
    assert read == Counter(s.atom.altloc for s in structure[0].all() if s.atom.has_altloc())
    assert len(states) == 5, "two states of one group, and three of the other"
    assert found.get("unused", 0) == 0
    if package == "servalcat":
        assert found["together"] == [[True, [0, 1]], [True, [2, 3, 4]]], "occupancies that sum to one"
