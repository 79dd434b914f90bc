"""Cases that fold: chains and numbers of the reference, Fabs by sequence, and paper 2's own cases made ready.

The models are made here, of glycine-like backbones with the names that sequences ask for: entries of the
papers are not on this machine.
"""

import gzip

import gemmi
import numpy as np
import pytest

from densemble.archives.cache import Cache
from densemble.archives.transfer import Client
from densemble.errors import InputError
from densemble.experiments.antibody import cdr_h3, fab_chains
from densemble.experiments.drawing import draw_map
from densemble.experiments.files import Files
from densemble.experiments.folded import fold_case
from densemble.experiments.jobs import jobs_of
from densemble.experiments.preparation import prepare
from densemble.io.maps import read_map
from densemble.io.models import read_model
from densemble.recipes.state import load_state_recipe
from densemble.suites import load_suite

# variable domains as antibodies have them (trastuzumab's, public), and something that is none
HEAVY = (
    "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRYADSVKGRFTISADTSKNTAYLQMNSLRAEDTAVYYC"
    "SRWGGDGFYAMDYWGQGTLVTVSSASTKGPSVFPLAP"
)
LIGHT = (
    "DIQMTQSPSSLSASVGDRVTITCRASQDVNTAVAWYQQKPGKAPKLLIYSASFLYSGVPSRFSGSRSGTDFTLTISSLQPEDFATYYC"
    "QQHYTTPPTFGQGTKVEIKRTVAAPSVFIFPP"
)
ANTIGEN = "MKAILVVLLYTFATANADTLCIGYHANNSTDTVDTVLEKNVTVTHSVNLLEDKHNGKLCKLRGVAPLHLGKCNIAGWILGNPECESLSTA"


def write_chains(path, chains, *, first=1, missing=(), water=True):
    """A model of helices side by side.

    Args:
        path: file to write.
        chains: sequences by name.
        first: number of each chain's first residue.
        missing: places in every chain, from 0, without coordinates.
        water: add a chain of one water.
    """
    structure = gemmi.Structure()
    structure.name = "made"
    structure.add_model(gemmi.Model("1"))
    for n, (name, sequence) in enumerate(chains.items()):
        chain = gemmi.Chain(name)
        for i, letter in enumerate(sequence):
            if i in missing:
                continue
            residue = gemmi.Residue()
            residue.name = gemmi.expand_one_letter(letter, gemmi.ResidueKind.AA)
            residue.seqid = gemmi.SeqId(str(first + i))
            residue.entity_type = gemmi.EntityType.Polymer
            for k, (atom_name, element) in enumerate((("N", "N"), ("CA", "C"), ("C", "C"), ("O", "O"))):
                atom = gemmi.Atom()
                atom.name, atom.element, atom.b_iso = atom_name, gemmi.Element(element), 20.0
                turn = np.deg2rad(100 * i + 30 * k)
                radius, rise = (2.3, 0.5) if atom_name != "O" else (3.5, 0.6)
                atom.pos = gemmi.Position(
                    radius * np.cos(turn), radius * np.sin(turn) + 9 * n, 0.3 * i + rise * k
                )
                residue.add_atom(atom)
            chain.add_residue(residue)
        structure[0].add_chain(chain)
    if water:
        structure[0].add_chain(gemmi.Chain("W"))
        residue = gemmi.Residue()
        residue.name, residue.seqid, residue.entity_type = "HOH", gemmi.SeqId("1"), gemmi.EntityType.Water
        atom = gemmi.Atom()
        atom.name, atom.element, atom.pos = "O", gemmi.Element("O"), gemmi.Position(0, -12, 5)
        residue.add_atom(atom)
        structure[0]["W"].add_residue(residue)
    structure.setup_entities()
    for entity in structure.entities:
        name = next(
            (c.name for c in structure[0] if c.subchains()[0].subchain_id() in entity.subchains), None
        )
        if name in chains:
            entity.full_sequence = [
                gemmi.expand_one_letter(letter, gemmi.ResidueKind.AA) for letter in chains[name]
            ]
    structure.assign_label_seq_id(True)
    document = structure.make_mmcif_document()
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(document.as_string().encode()))
    else:
        document.write_file(str(path))
    return path


def test_a_fab_is_found_by_its_sequences():
    chains = {"A": ANTIGEN, "L": LIGHT, "H": HEAVY, "M": LIGHT, "I": HEAVY}
    assert fab_chains(chains) == ("H", "L")
    with pytest.raises(InputError, match="chains A, H: no light chain"):
        fab_chains({"A": ANTIGEN, "H": HEAVY})
    with pytest.raises(InputError, match="no heavy and light chain"):
        fab_chains({"A": ANTIGEN})


def test_cdr_h3_is_what_imgt_says():
    """Of trastuzumab it is SRWGGDGFYAMDY (IMGT 105-117), residues 97-109 of its sequence."""
    first, last = cdr_h3(HEAVY)
    assert (HEAVY[first - 1 : last], first, last) == ("SRWGGDGFYAMDY", 97, 109)
    for none in (LIGHT, ANTIGEN):
        with pytest.raises(InputError, match="no heavy chain"):
            cdr_h3(none)


def test_the_reference_has_the_chains_and_numbers_of_the_fold(tmp_path):
    """Deposited with other numbers, a loop without coordinates and a tag; beside an antigen and water."""
    chains = {"B": ANTIGEN, "X": "GSH" + LIGHT, "Y": HEAVY}
    entry = write_chains(tmp_path / "own.cif", {"B": ANTIGEN, "X": LIGHT, "Y": HEAVY})
    other = write_chains(tmp_path / "other.cif", chains, first=201, missing=range(40, 46))
    folded = fold_case(entry, other, tmp_path, keep="fab", local="CDR H3")
    assert folded.sequences.read_text() == f">A|protein|empty\n{HEAVY}\n>B|protein|empty\n{LIGHT}\n"
    assert folded.local == "A:97-109"
    found, source = read_model(folded.reference), read_model(other)
    places = {(r.id.chain, r.id.number): r.name for r in found.topology.residues}
    three = {letter: gemmi.expand_one_letter(letter, gemmi.ResidueKind.AA) for letter in HEAVY + LIGHT}
    expected = {("A", i + 1): three[x] for i, x in enumerate(HEAVY) if i not in range(40, 46)}
    expected |= {("B", i + 1): three[x] for i, x in enumerate(LIGHT) if i + 3 not in range(40, 46)}
    assert places == expected
    index = {(r.id.chain, r.id.number): i for i, r in enumerate(source.topology.residues)}
    mine = found.coords[found.topology.atom_index[0, "CA"]]
    assert np.allclose(mine, source.coords[source.topology.atom_index[index["Y", 201], "CA"]], atol=2e-3)


def test_alignments_are_named_where_there_are_some(tmp_path):
    entry = write_chains(tmp_path / "own.cif", {"X": LIGHT, "Y": HEAVY})
    folded = fold_case(entry, entry, tmp_path, alignments=[tmp_path / "l.a3m", tmp_path / "h.a3m"])
    assert folded.sequences.read_text().splitlines()[::2] == [
        f">A|protein|{tmp_path / 'l.a3m'}",
        f">B|protein|{tmp_path / 'h.a3m'}",
    ]
    with pytest.raises(InputError, match="2 chains, and 1 alignments"):
        fold_case(entry, entry, tmp_path, alignments=[tmp_path / "l.a3m"])


def test_the_reference_is_written_once_a_case_but_alignments_may_move(tmp_path):
    entry = write_chains(tmp_path / "own.cif", {"X": LIGHT})
    first = fold_case(entry, entry, tmp_path, alignments=[tmp_path / "l.a3m"])
    file = first.reference.stat().st_ino  # of another file after another writing
    assert fold_case(entry, entry, tmp_path, alignments=[tmp_path / "moved" / "l.a3m"]) == first
    assert first.reference.stat().st_ino == file
    assert f"|{tmp_path / 'moved' / 'l.a3m'}\n" in first.sequences.read_text()


def test_other_chains_than_those_folded_are_refused(tmp_path):
    entry = write_chains(tmp_path / "own.cif", {"X": LIGHT, "Y": HEAVY})
    other = write_chains(tmp_path / "other.cif", {"X": LIGHT})
    with pytest.raises(InputError, match=r"other\.cif: 1 protein chains, and 2 sequences of own\.cif"):
        fold_case(entry, other, tmp_path)


@pytest.fixture
def paper(tmp_path):
    """What would be fetched for paper 2, made up, and a function that makes one of its jobs ready."""
    fetched = tmp_path / "fetched"
    write_chains(fetched / "7AAQ/7aaq.cif.gz", {"A": ANTIGEN})
    write_chains(fetched / "7AAR/7aar.cif.gz", {"A": ANTIGEN[:-4]}, first=21)
    write_chains(fetched / "EMD-40227/8gmj.cif.gz", {"P": "GS" + ANTIGEN}, first=5)
    write_chains(fetched / "4HKX/4hkx.cif.gz", {"A": ANTIGEN, "H": HEAVY, "L": LIGHT})
    path = write_chains(fetched / "EMD-40226/8gmg.cif.gz", {"A": ANTIGEN})
    whole = tmp_path / "whole.ccp4"
    draw_map(read_model(path), whole, resolution=4.3, voxel=1.2)
    (fetched / "EMD-40226/emd_40226.map.gz").write_bytes(_gzipped(whole))
    files = Files(fetched, None, Cache(tmp_path / "c", Client(offline=True)))

    def ready(pattern):
        job = jobs_of(load_suite("paper-2"), [pattern])[0]
        return job, prepare(job, files, tmp_path / "out")

    return ready


def _gzipped(path) -> bytes:
    return gzip.compress(path.read_bytes())


def test_ch67(paper):
    job, task = paper("ch67/cryoboltz")
    assert task.local == "A:97-109"
    assert task.settings.fold.step_scale == 3.0
    assert task.settings.fold.sequence.read_text().count(">") == 2, "without haemagglutinin"
    assert (task.settings.members, len(job.variant.seeds)) == (25, 3)
    density = read_map(task.settings.map)
    assert density.grid.shape == (100, 100, 100)
    reference = read_model(task.reference)
    assert {r.id.chain for r in reference.topology.residues} == {"A", "B"}
    x, y, z = np.rint(reference.coords.mean(0) - density.grid.origin).astype(int)
    assert float(density.values[x - 5 : x + 5, y - 5 : y + 5, z - 20 : z + 20].max()) > 0
    antigen = np.rint(np.array([0, 0, 10]) - density.grid.origin).astype(int)
    assert float(density.values[tuple(antigen)]) < 0.05 * float(density.values.max())


@pytest.mark.parametrize("state", ["inward", "outward"])
def test_stp10_is_folded_from_one_sequence_in_a_box_of_100(paper, state):
    _, task = paper(f"stp10-{state}/cryoboltz")
    assert task.settings.fold.sequence.read_text() == f">A|protein|empty\n{ANTIGEN}\n"
    assert read_map(task.settings.map).grid.shape == (100, 100, 100)
    assert read_model(task.reference).topology.residues[0].id.number == 1


@pytest.mark.parametrize(
    ("method", "terms"), [("local-only", ["density"]), ("global-only", ["cloud"]), ("boltz-1", [])]
)
def test_ablations_are_the_recipe_without_the_other_stages(paper, method, terms):
    _, task = paper(f"stp10-inward/{method}")
    recipe, whole = load_state_recipe(task.settings.recipe), load_state_recipe("cryoboltz-2025")
    assert [stage.term for stage in recipe.stages] == terms
    assert recipe.schedule == whole.schedule


def test_p_glycoprotein_is_cut_out_with_five_voxels_around(paper, tmp_path):
    job, task = paper("pgp-apo/cryoboltz")
    cut, model = read_map(task.settings.map), read_model(tmp_path / "fetched/EMD-40226/8gmg.cif.gz")
    inside = cut.values.numpy() != 0
    low, high = (f(np.argwhere(inside), axis=0) for f in (np.min, np.max))
    assert (low >= 5).all()
    assert (high <= np.array(inside.shape) - 6).all()
    assert low.min() == 5
    places = np.argwhere(inside) * np.array(cut.grid.spacing) + cut.grid.origin
    nearest = np.array([np.linalg.norm(model.coords - place, axis=1).min() for place in places[::97]])
    assert nearest.max() <= job.case.zone_radius + 1e-3


def test_ours_begins_with_another_state_in_the_chains_and_numbers_of_the_reference(paper):
    _, task = paper("pgp-apo/embedded")
    assert task.settings.fold is None
    start, reference = read_model(task.settings.model), read_model(task.reference)
    assert [r.id for r in start.topology.residues] == [r.id for r in reference.topology.residues]
    assert task.settings.forward == "electron", "how atoms look in a map that was measured"
    _, printed = paper("pgp-apo/cryoboltz")
    assert (printed.settings.forward, printed.settings.model) == ("molmap", None)
    assert printed.settings.map == task.settings.map
    _, drawn = paper("stp10-inward/embedded")
    assert drawn.settings.forward == "molmap", "how that map was drawn"


def test_the_network_of_the_paper_with_our_recipe(paper):
    _, task = paper("ch67/boltz-1-ours")
    assert (task.settings.recipe, task.settings.fold.prior) == ("densemble", "boltz1")
    assert task.settings.fold.step_scale == 3.0
    _, second = paper("ch67/boltz-2")
    assert (second.settings.recipe, second.settings.fold.prior) == ("cryoboltz-2025", "boltz2")


def test_what_was_not_fetched_is_said(tmp_path):
    files = Files(tmp_path / "f", None, Cache(tmp_path / "c", Client(offline=True)))
    (job, *_) = jobs_of(load_suite("paper-2"), ["ch67/cryoboltz"])
    with pytest.raises(InputError, match="4hkx"):
        prepare(job, files, tmp_path / "out")
