import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from densemble.atoms import (
    Ensemble,
    Region,
    RegionError,
    Residue,
    ResidueId,
    Span,
    Topology,
)
from densemble.errors import InputError

BACKBONE = ("N", "CA", "C", "O")


def topology_of(*residues):
    """Backbone atoms for protein residues, one atom O for others; given as 'A:12B' or 'A:12 water'."""
    built, names, elements, index = [], [], [], []
    for text in residues:
        name, _, kind = text.partition(" ")
        rid = Region.parse(name).spans[0].first
        kind = kind or "protein"
        for atom in BACKBONE if kind == "protein" else ("O",):
            names.append(atom)
            elements.append(atom[0])
            index.append(len(built))
        built.append(Residue(rid, "GLY" if kind == "protein" else "HOH", kind))
    return Topology(tuple(names), tuple(elements), np.array(index), tuple(built))


def rid(chain, number, icode=""):
    return ResidueId(chain, number, icode)


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("A:176-191", [(rid("A", 176), rid("A", 191))]),
        ("A:5", [(rid("A", 5), rid("A", 5))]),
        ("A:-5-10", [(rid("A", -5), rid("A", 10))]),
        ("A:-5--1", [(rid("A", -5), rid("A", -1))]),
        ("A:-3", [(rid("A", -3), rid("A", -3))]),
        ("A:52A-52C", [(rid("A", 52, "A"), rid("A", 52, "C"))]),
        ("A:52a-53", [(rid("A", 52, "A"), rid("A", 53))]),
        ("Heavy:1-2", [(rid("Heavy", 1), rid("Heavy", 2))]),
        ("1:1-2", [(rid("1", 1), rid("1", 2))]),
        ("A:1-2, B:3-4,", [(rid("A", 1), rid("A", 2)), (rid("B", 3), rid("B", 4))]),
    ],
)
def test_region_syntax(text, spans):
    assert Region.parse(text).spans == tuple(Span(*s) for s in spans)


@pytest.mark.parametrize(
    "text",
    ["176-191", "A176-191", "A:", "A:x", "A:1-", "A:1-B:2", "A:1-2-3", "A:1AB", "A 1-2", "A:1:2", "A:1.5"],
)
def test_malformed_regions_show_the_syntax(text):
    with pytest.raises(RegionError, match="for example A:176-191"):
        Region.parse(text)


@pytest.mark.parametrize("text", ["", " ", ",", " , "])
def test_an_empty_region(text):
    with pytest.raises(InputError, match="empty region"):
        Region.parse(text)


numbers = st.integers(-999, 9999)
icodes = st.sampled_from(["", "A", "Z"])
ends = st.builds(ResidueId, st.just("A"), numbers, icodes)


@given(st.lists(st.builds(Span, ends, ends), min_size=1, max_size=4))
def test_a_region_is_read_back_from_its_text(spans):
    region = Region(tuple(spans))
    assert Region.parse(str(region)) == region


def test_insertion_codes_and_gaps_go_by_place_in_the_chain():
    # Kabat numbering: 52, 52A, 52B, 53; 60 follows at a gap. Files may also number insertions downwards.
    topology = topology_of("H:51", "H:52", "H:52A", "H:52B", "H:53", "H:60")
    assert Region.parse("H:52-53").resolve(topology) == [[1, 2, 3, 4]]
    assert Region.parse("H:52A-60").resolve(topology) == [[2, 3, 4, 5]]
    downwards = topology_of("H:60B", "H:60A", "H:60", "H:61")
    assert Region.parse("H:60B-60").resolve(downwards) == [[0, 1, 2]]


def test_several_regions_in_several_chains_keep_their_order():
    topology = topology_of("A:-1", "A:0", "A:1", "B:-1", "B:0", "B:1")
    region = Region.parse("B:0-1,A:-1-0")
    assert region.resolve(topology) == [[4, 5], [0, 1]]
    assert region.residues(topology) == [4, 5, 0, 1]


def test_only_protein_residues_belong_to_a_region():
    topology = topology_of("A:1", "A:2 ligand", "A:3", "A:4 water")
    assert Region.parse("A:1-3").resolve(topology) == [[0, 2]]
    with pytest.raises(RegionError, match="residue A:4 is not in the model"):
        Region.parse("A:3-4").resolve(topology)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A:1-99", r"residue A:99 is not in the model \(chain A has protein residues 1-6\)"),
        ("A:3-5", r"residue A:3 is not in the model"),
        ("A:1A-5", r"residue A:1A is not in the model"),
        ("C:1-2", r"residue C:1 is not in the model \(the protein chains are A, B\)"),
        ("A:5-1", "the last residue comes before the first"),
        ("A:1-5,A:5-6", "the stretches overlap"),
        ("A:1-2,A:1-2", "the stretches overlap"),
    ],
)
def test_regions_that_the_model_does_not_have(text, message):
    topology = topology_of("A:1", "A:2", "A:5", "A:6", "B:1")
    with pytest.raises(RegionError, match=message):
        Region.parse(text).resolve(topology)


def test_counted_residues_begin_at_the_first_and_go_on_over_gaps():
    """Numbers 5, 6, 6A and, after two that are missing, 9."""
    topology = topology_of("B:1", "A:5", "A:6", "A:6A", "A:9", "A:400 water")
    region = Region.parse("A:#1-3,A:#6")
    assert str(region) == "A:#1-3,A:#6"
    assert Region.parse(str(region)) == region
    assert region.resolve(topology) == [[1, 2, 3], [4]]
    for text, message in (
        ("A:#4", r"chain A has no residue 4 in the model \(the last is 6\)"),
        ("C:#1", r"chain C has no residue 1"),
        ("A:#3-1", "the last residue comes before the first"),
    ):
        with pytest.raises(RegionError, match=message):
            Region.parse(text).resolve(topology)
    with pytest.raises(RegionError, match="have no insertion codes"):
        Region.parse("A:#2A-3")


def test_a_region_of_a_model_without_protein():
    with pytest.raises(RegionError, match="the protein chains are none"):
        Region.parse("A:1").resolve(topology_of("A:1 water"))


def test_topology_finds_atoms_by_residue_and_name():
    topology = topology_of("A:1", "A:9 water", "A:2")
    assert len(topology) == 9
    assert topology.atom_index[2, "CA"] == 6
    np.testing.assert_array_equal(topology.backbone([0, 2]), [[0, 1, 2, 3], [5, 6, 7, 8]])
    np.testing.assert_array_equal(topology.atoms_of([1, 2]), [4, 5, 6, 7, 8])
    with pytest.raises(KeyError):
        topology.backbone([1])


def test_backbone_is_in_its_own_order_whatever_the_file_has():
    topology = Topology(
        ("O", "C", "CB", "CA", "N"),
        ("O", "C", "C", "C", "N"),
        np.zeros(5, int),
        (Residue(rid("A", 1), "ALA"),),
    )
    np.testing.assert_array_equal(topology.backbone([0]), [[4, 3, 1, 0]])


def test_subset_keeps_names_and_drops_unused_residues():
    topology = topology_of("A:1", "A:9 water", "A:2")
    part = topology.subset(np.array([1, 6, 8]))
    assert part.names == ("CA", "CA", "O")
    assert part.elements == ("C", "C", "O")
    assert [str(r.id) for r in part.residues] == ["A:1", "A:2"]
    np.testing.assert_array_equal(part.residue_index, [0, 1, 1])
    whole = topology.subset(np.arange(len(topology)))
    assert (whole.names, whole.residues) == (topology.names, topology.residues)
    np.testing.assert_array_equal(whole.residue_index, topology.residue_index)


def test_topology_of_inconsistent_lengths():
    with pytest.raises(ValueError, match="do not agree"):
        Topology(("N", "CA"), ("N",), np.zeros(2, int), (Residue(rid("A", 1), "GLY"),))
    with pytest.raises(ValueError, match="do not agree"):
        Topology(("N",), ("N",), np.zeros(2, int), (Residue(rid("A", 1), "GLY"),))


def ensemble(k=3, **changes):
    topology = topology_of("A:1", "A:2")
    x = torch.arange(k * 8 * 3, dtype=torch.float64).reshape(k, 8, 3)
    fields = {"topology": topology, "coords": x, "weights": torch.arange(k) / k, "b_iso": x[..., 0]}
    return Ensemble(**(fields | changes))


def test_selecting_members():
    full = ensemble()
    part = full.select([2, 0])
    assert len(part) == 2
    assert torch.equal(part.coords, full.coords[[2, 0]])
    assert torch.equal(part.b_iso, full.b_iso[[2, 0]])
    assert torch.equal(part.weights, full.weights[[2, 0]])
    new = torch.tensor([0.3, 0.7])
    assert torch.equal(full.select([1, 2], weights=new).weights, new)


def test_an_ensemble_of_other_atoms_than_its_topology():
    with pytest.raises(ValueError, match="topology of 8 atoms"):
        ensemble(coords=torch.zeros(3, 7, 3), b_iso=torch.zeros(3, 7))


def test_negative_weights_are_refused():
    with pytest.raises(ValueError, match="negative weights"):
        ensemble(weights=torch.tensor([0.5, -0.1, 0.6]))


def test_places_of_another_topology_go_by_residue_and_name():
    residues = tuple(Residue(ResidueId("A", number), "GLY") for number in (1, 2))
    first = Topology(("N", "CA", "N", "CA"), ("N", "C", "N", "C"), np.array([0, 0, 1, 1]), residues)
    other = Topology(("CA", "CB", "CA"), ("C", "C", "C"), np.array([0, 0, 1]), residues[::-1])
    assert first.atom_keys[2] == (ResidueId("A", 2), "N")
    assert first.places_of(other).tolist() == [3, -1, 1]
    assert first.places_of(first).tolist() == [0, 1, 2, 3]
