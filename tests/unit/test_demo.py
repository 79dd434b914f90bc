"""What the demo says of its result: from members that are the deposited states themselves."""

import numpy as np
import pytest
from small_report import bare_result

from densemble.demo import SUBJECTS, comparison, core_rmsd, example, recovered
from densemble.io.models import read_model
from densemble.io.results import Member, Metrics, RFactor, RFactors, write_structure


@pytest.fixture
def members(tmp_path):
    """Member 1 is altloc A, member 2 B, member 3 B moved by 1 Å and not kept."""
    (tmp_path / "members").mkdir()
    for number, altloc in ((1, "A"), (2, "B"), (3, "B")):
        structure = read_model(example("deposited.cif"), altloc=altloc).structure
        if number == 3:
            for site in structure[0].all():
                site.atom.pos.x += 1.0
        write_structure(tmp_path / "members" / f"member_{number:02d}.cif", structure)
    return tmp_path


@pytest.fixture
def result():
    values = {subject: 0.5 + 0.1 * i for i, subject in enumerate(SUBJECTS)}
    factors = {subject: RFactor(r_work=0.18, r_free=0.19 + 0.001 * i) for i, subject in enumerate(SUBJECTS)}
    return bare_result(
        region="A:176-191",
        metrics=Metrics(voxels="somewhere", rscc=values, cosine=values),
        r_factors=RFactors(**factors),
        members=[
            Member(id=1, selected=True, weight=0.3, rscc=0.5),
            Member(id=2, selected=True, weight=0.7, rscc=0.5),
            Member(id=3, selected=False, weight=0.0, rscc=0.5),
        ],
    )


def test_the_example_starts_from_b_and_has_nothing_of_a(members):
    start = core_rmsd(read_model(example("model.cif")))
    assert start["B"] < 1e-3
    assert start["A"] == pytest.approx(core_rmsd(read_model(members / "members" / "member_02.cif"))["A"])
    assert start["A"] > 2.5
    assert core_rmsd(read_model(members / "members" / "member_03.cif"))["B"] == pytest.approx(1.0, abs=1e-3)


def test_distances_and_weights_of_the_states(members, result):
    apart = core_rmsd(read_model(members / "members" / "member_01.cif"))["B"]
    lines = recovered(result, members)
    rows = [line.split() for line in lines if line.startswith("member ")]
    assert rows == [
        ["member", "1", "0.30", "0.00", f"{apart:.2f}"],
        ["member", "2", "0.70", f"{apart:.2f}", "0.00"],
    ]
    assert "nearer to A: 0.30, deposited 0.39, to B: 0.70, deposited 0.61." in lines[-2]


def test_every_way_of_guidance_is_in_the_table(result):
    lines = comparison(result)
    figures = [[float(x) for x in line.split()[-4:]] for line in lines[2:6]]
    expected = [[0.5 + 0.1 * i, 0.5 + 0.1 * i, 0.18, 0.19 + 0.001 * i] for i in range(4)]
    np.testing.assert_allclose(figures, expected, atol=1e-9)
    assert lines[-1] == "Map fit: somewhere."
