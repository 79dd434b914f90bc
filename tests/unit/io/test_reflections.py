import gemmi
import numpy as np
import pytest

from densemble.errors import InputError
from densemble.io.reflections import check_same_crystal, held_out, read_coefficients, read_reflections

CELL, GROUP = gemmi.UnitCell(25, 31, 38, 90, 90, 90), gemmi.SpaceGroup("P 21 21 21")


def unique_hkl(d_min=3.0):
    return np.asarray(gemmi.make_miller_array(CELL, GROUP, d_min), dtype=np.int32)


def table(free="one in ten is 0"):
    """Columns (label, type, values) of a small data set."""
    hkl = unique_hkl()
    n = len(hkl)
    rng = np.random.default_rng(5)
    flags = (np.arange(n) % 10 != 3).astype(float)
    if free == "one in ten is 1":
        flags = 1 - flags
    if free == "0 to 19":
        flags = np.arange(n) % 20.0
    return hkl, {
        "FREE": ("I", flags),
        "FP": ("F", rng.uniform(10, 100, n)),
        "SIGFP": ("Q", rng.uniform(1, 2, n)),
        "FWT": ("F", rng.uniform(10, 100, n)),
        "PHWT": ("P", rng.uniform(0, 360, n)),
    }


def write_mtz(path, hkl, columns):
    mtz = gemmi.Mtz(with_base=True)
    mtz.spacegroup = GROUP
    mtz.set_cell_for_all(CELL)
    mtz.add_dataset("test")
    for label, (kind, _) in columns.items():
        mtz.add_column(label, kind)
    mtz.set_data(np.column_stack([hkl, *(v for _, v in columns.values())]).astype(np.float32))
    mtz.write_to_file(str(path))
    return path


def write_sf_cif(path, hkl, columns):
    write_mtz(path.with_suffix(".mtz"), hkl, columns)
    text = gemmi.MtzToCif().write_cif_to_string(gemmi.read_mtz_file(str(path.with_suffix(".mtz"))))
    path.write_text(text)
    return path


@pytest.fixture
def mtz(tmp_path):
    return write_mtz(tmp_path / "data.mtz", *table())


def changed(columns, drop=(), **new):
    return {k: v for k, v in {**columns, **new}.items() if k not in drop}


@pytest.mark.parametrize("free", ["one in ten is 0", "one in ten is 1", "0 to 19"])
def test_amplitudes_and_free_set(tmp_path, free):
    hkl, columns = table(free)
    data = read_reflections(write_mtz(tmp_path / "data.mtz", hkl, columns))
    np.testing.assert_array_equal(data.hkl, hkl)
    np.testing.assert_allclose(data.f, columns["FP"][1], rtol=1e-6)
    np.testing.assert_allclose(data.sigma, columns["SIGFP"][1], rtol=1e-6)
    held = np.arange(len(hkl)) % (20 if free == "0 to 19" else 10) == (0 if free == "0 to 19" else 3)
    np.testing.assert_array_equal(data.free, held)
    assert data.d_min == pytest.approx(np.min(1 / np.sqrt(CELL.calculate_1_d2_array(hkl))))
    assert (data.dropped, data.spacegroup.number) == (0, 19)


def test_centric_and_epsilon_of_p212121(mtz):
    data = read_reflections(mtz)
    h, k, l = data.hkl.T  # noqa: E741
    np.testing.assert_array_equal(data.centric, (h == 0) | (k == 0) | (l == 0))
    axial = (h == 0).astype(int) + (k == 0) + (l == 0) == 2
    np.testing.assert_array_equal(data.epsilon, np.where(axial, 2, 1))


def test_numbers_missing_from_any_column_are_dropped_and_counted(tmp_path):
    hkl, columns = table()
    for label, i in (("FP", 7), ("SIGFP", 11), ("FREE", 12), ("FP", 12)):
        columns[label][1][i] = np.nan
    data = read_reflections(write_mtz(tmp_path / "data.mtz", hkl, columns))
    assert data.dropped == 3
    np.testing.assert_array_equal(data.hkl, np.delete(hkl, [7, 11, 12], axis=0))
    assert np.isfinite(data.f).all()
    assert np.isfinite(data.sigma).all()


def test_reflections_outside_the_asymmetric_unit_are_mapped_into_it(tmp_path):
    hkl, columns = table()
    whole = read_reflections(write_mtz(tmp_path / "data.mtz", hkl, columns))
    moved = read_reflections(write_mtz(tmp_path / "moved.mtz", hkl * [-1, -1, 1], columns))
    np.testing.assert_array_equal(np.sort(moved.hkl, axis=0), np.sort(whole.hkl, axis=0))


def point_factors(hkl):
    """Structure factors of point scatterers, by direct summation over the operators."""
    total = np.zeros(len(hkl), dtype=complex)
    for x in ([0.11, 0.23, 0.31], [0.71, 0.05, 0.41]):
        for op in GROUP.operations():
            total += np.exp(2j * np.pi * np.asarray(hkl) @ op.apply_to_xyz(x))
    return total


def test_phases_follow_their_reflections_into_the_asymmetric_unit(tmp_path):
    hkl, columns = table()
    equivalent = hkl * np.array([[-1, -1, 1], [1, -1, -1], [-1, 1, 1], [-1, -1, -1]])[np.arange(len(hkl)) % 4]
    values = point_factors(equivalent)
    columns["FWT"] = ("F", np.abs(values))
    columns["PHWT"] = ("P", np.rad2deg(np.angle(values)))
    moved = read_coefficients(write_mtz(tmp_path / "moved.mtz", equivalent, columns))
    assert (moved.hkl >= 0).all()
    np.testing.assert_allclose(moved.values, point_factors(moved.hkl), atol=1e-4)


def test_systematic_absences_are_dropped(tmp_path):
    hkl, columns = table()
    absent = np.vstack([hkl, [[0, 0, 3]]])
    columns = {k: (t, np.append(v, v[0])) for k, (t, v) in columns.items()}
    assert read_reflections(write_mtz(tmp_path / "data.mtz", absent, columns)).dropped == 1


def test_map_coefficients(tmp_path, mtz):
    hkl, columns = table()
    coefficients = read_coefficients(mtz)
    expected = columns["FWT"][1] * np.exp(1j * np.deg2rad(columns["PHWT"][1]))
    np.testing.assert_allclose(coefficients.values, expected, rtol=1e-5)
    more = changed(columns, DELFWT=columns["FP"], PHDELWT=columns["PHWT"])
    path = write_mtz(tmp_path / "more.mtz", hkl, more)
    np.testing.assert_allclose(read_coefficients(path).values, expected, rtol=1e-5)
    difference = read_coefficients(path, labels=("DELFWT", "PHDELWT"))
    np.testing.assert_allclose(np.abs(difference.values), columns["FP"][1], rtol=1e-5)


def test_sf_mmcif(tmp_path, mtz):
    path = write_sf_cif(tmp_path / "sf.cif", *table())
    from_cif, from_mtz = read_reflections(path), read_reflections(mtz)
    np.testing.assert_array_equal(from_cif.hkl, from_mtz.hkl)
    np.testing.assert_array_equal(from_cif.free, from_mtz.free)
    np.testing.assert_allclose(from_cif.f, from_mtz.f, rtol=1e-4)
    np.testing.assert_allclose(
        read_coefficients(path).values, read_coefficients(mtz).values, rtol=1e-3, atol=1e-2
    )


def test_missing_and_foreign_files(tmp_path):
    for read in (read_reflections, read_coefficients):
        with pytest.raises(InputError, match=r"none\.mtz does not exist"):
            read(tmp_path / "none.mtz")
        bad = tmp_path / "bad.mtz"
        for content in (
            b"hello",
            b"MTZ  and nothing else",
            b"\xff\xfe\x00\x01",
            b"data_x\n_cell.length_a 3\n",
        ):
            bad.write_bytes(content)
            with pytest.raises(InputError, match=r"bad\.mtz is not an MTZ or SF-mmCIF file"):
                read(bad)


@pytest.mark.parametrize(
    ("drop", "new", "message"),
    [
        (["FP", "SIGFP"], {}, r"has no amplitudes"),
        (["SIGFP"], {}, r"has amplitudes FP but no uncertainties for them"),
        (["FP", "SIGFP"], {"IMEAN": "J", "SIGIMEAN": "Q"}, r"has no amplitudes: it has intensities"),
        (["FP", "SIGFP"], {"F(+)": "G", "SIGF(+)": "L"}, r"has no amplitudes: it has anomalous pairs"),
        ([], {"FP_2": "F", "SIGFP_2": "Q"}, r"several amplitude columns: FP/SIGFP, FP_2/SIGFP_2"),
        (["FREE"], {}, r"has no free set"),
        (["FREE"], {"RESOLUTION_BIN": "I"}, r"has no free set"),
        ([], {"FreeR_flag": "I"}, r"several free sets that differ: FREE, FreeR_flag"),
    ],
)
def test_columns_missing_or_ambiguous(tmp_path, drop, new, message):
    hkl, columns = table()
    extra = {k: (t, (np.arange(len(hkl)) % 7 == 0).astype(float)) for k, t in new.items()}
    path = write_mtz(tmp_path / "data.mtz", hkl, changed(columns, drop=drop, **extra))
    with pytest.raises(InputError, match=r"data\.mtz.*" + message):
        read_reflections(path)


def test_labels_settle_ambiguity(tmp_path):
    hkl, columns = table()
    other = np.random.default_rng(1).uniform(1, 9, len(hkl))
    flags = (np.arange(len(hkl)) % 7 == 0).astype(float)
    more = changed(columns, F2=("F", other), SIGF2=("Q", other / 10), FreeR_flag=("I", flags))
    path = write_mtz(tmp_path / "data.mtz", hkl, more)
    data = read_reflections(path, labels=("F2", "SIGF2"), free_label="FreeR_flag")
    np.testing.assert_allclose(data.f, other, rtol=1e-6)
    np.testing.assert_array_equal(data.free, flags == 1)
    with pytest.raises(InputError, match=r"no column F3 of type F; of this type it has: FP, FWT, F2"):
        read_reflections(path, labels=("F3", "SIGF2"))
    with pytest.raises(InputError, match=r"no column FREER of type I"):
        read_reflections(path, labels=("F2", "SIGF2"), free_label="FREER")


def test_a_free_column_with_one_flag_is_no_free_set(tmp_path):
    hkl, columns = table()
    path = write_mtz(tmp_path / "data.mtz", hkl, changed(columns, FREE=("I", np.ones(len(hkl)))))
    with pytest.raises(InputError, match="has no free set"):
        read_reflections(path)


def test_ambiguous_or_absent_coefficients(tmp_path):
    hkl, columns = table()
    named = changed(columns, drop=["FWT", "PHWT"], FC=columns["FWT"], PHIC=columns["PHWT"])
    assert len(read_coefficients(write_mtz(tmp_path / "one.mtz", hkl, named))) == len(hkl)
    two = changed(named, FA=columns["FWT"], PHA=columns["PHWT"])
    with pytest.raises(InputError, match=r"several map coefficients: FC/PHIC, FA/PHA; name one pair"):
        read_coefficients(write_mtz(tmp_path / "two.mtz", hkl, two))
    none = changed(columns, drop=["FWT", "PHWT"])
    with pytest.raises(InputError, match="has no map coefficients"):
        read_coefficients(write_mtz(tmp_path / "none.mtz", hkl, none))


def test_only_nans(tmp_path):
    hkl, columns = table()
    nans = np.full(len(hkl), np.nan)
    path = write_mtz(tmp_path / "nan.mtz", hkl, changed(columns, FP=("F", nans), FWT=("F", nans)))
    with pytest.raises(InputError, match="FP and SIGFP hold no numbers"):
        read_reflections(path)
    with pytest.raises(InputError, match="FWT and PHWT hold no numbers"):
        read_coefficients(path)


def test_duplicated_reflections(tmp_path):
    hkl, columns = table()
    twice = {k: (t, np.concatenate([v, v])) for k, (t, v) in columns.items()}
    path = write_mtz(tmp_path / "twice.mtz", np.vstack([hkl, hkl * [-1, -1, -1]]), twice)
    for read in (read_reflections, read_coefficients):
        with pytest.raises(InputError, match="more than once"):
            read(path)


def test_held_out_counts_measured_reflections_only():
    flags = np.array([0.0, 0, 0, 0, 1, 1, np.nan])
    measured = np.array([True, False, False, False, True, True, True])
    free = held_out(flags, measured)
    assert free is not None
    np.testing.assert_array_equal(free, [True, True, True, True, False, False, False])
    assert held_out(np.ones(4), np.ones(4, dtype=bool)) is None
    assert held_out(np.array([1.0, 2, 3]), np.ones(3, dtype=bool)) is None


def structure(cell=(25, 31, 38, 90, 90, 90), group="P 21 21 21"):
    result = gemmi.Structure()
    result.cell, result.spacegroup_hm = gemmi.UnitCell(*cell), group
    return result


def test_same_crystal(mtz):
    data = read_reflections(mtz)
    check_same_crystal(structure(), data)
    check_same_crystal(structure(cell=(25.3, 31, 38, 90, 91, 90)), data)
    check_same_crystal(structure(), read_coefficients(mtz))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            structure(cell=(25.5, 31, 38, 90, 90, 90)),
            r"m\.cif has the cell \(25\.50, .*data\.mtz has \(25\.00",
        ),
        (structure(cell=(25, 31, 38, 90, 93, 90)), r"93\.00"),
        (structure(group="P 2 2 2"), r"m\.cif is in space group P 2 2 2 but .*data\.mtz is in P 21 21 21"),
        (structure(group=""), r"m\.cif is in space group unknown"),
        (structure(cell=(1, 1, 1, 90, 90, 90)), r"m\.cif has no unit cell"),
    ],
)
def test_another_crystal(mtz, model, message):
    with pytest.raises(InputError, match=message):
        check_same_crystal(model, read_reflections(mtz), name="m.cif")
