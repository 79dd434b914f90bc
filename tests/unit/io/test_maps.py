"""Header traps are tested on files whose bytes are written here, word by word, without gemmi."""

import gzip
import itertools
import struct

import gemmi
import numpy as np
import pytest
import torch

from densemble.errors import InputError
from densemble.grid import DensityMap, Grid
from densemble.io.maps import read_crystal_map, read_either, read_map, write_map

BLOB = np.array([7.3, -2.1, 5.4])  # Å, within every box below


def blob(points: np.ndarray) -> np.ndarray:
    """A Gaussian that is not symmetric under any exchange of axes."""
    return np.exp(-(((points - BLOB) / [2.0, 1.5, 1.1]) ** 2).sum(axis=-1)).astype(np.float32)


def mrc_bytes(
    values, cell, sampling, axes=(1, 2, 3), starts=(0, 0, 0), origin=(0.0, 0.0, 0.0), ispg=1, order="<"
):
    """A mode-2 file; everything is given along x, y, z except ``starts``, which are as in the file."""
    file_values = values.transpose([a - 1 for a in axes])
    words = [*file_values.shape, 2, *starts, *sampling]
    header = struct.pack(f"{order}10i", *words) + struct.pack(f"{order}6f", *cell)
    header += struct.pack(f"{order}3i3f2i", *axes, values.min(), values.max(), values.mean(), ispg, 0)
    header += bytes(4 * 25) + struct.pack(f"{order}3f", *origin) + b"MAP "
    header += (b"\x44\x44\x00\x00" if order == "<" else b"\x11\x11\x00\x00") + bytes(4 + 4 + 800)
    assert len(header) == 1024
    return header + file_values.astype(f"{order}f4").tobytes(order="F")


GRID = Grid(origin=(3.6, -6.0, 2.0), spacing=(0.6, 0.75, 0.5), shape=(12, 11, 13))
INDEX_OF_ORIGIN = (6, -8, 4)


def box_file(grid=GRID, axes=(1, 2, 3), **header):
    cell = [s * n for s, n in zip(grid.spacing, grid.shape, strict=True)] + [90.0] * 3
    return mrc_bytes(blob(grid.points()), cell, grid.shape, axes=axes, **header)


def check_placed(density: DensityMap, grid: Grid) -> None:
    np.testing.assert_allclose(density.grid.origin, grid.origin, atol=1e-5)
    np.testing.assert_allclose(density.grid.spacing, grid.spacing, atol=1e-6)
    assert density.grid.shape == grid.shape
    np.testing.assert_allclose(density.values.numpy(), blob(density.grid.points()), atol=1e-5)


@pytest.mark.parametrize("axes", list(itertools.permutations((1, 2, 3))))
@pytest.mark.parametrize("use", ["nstart", "origin", "both"])
def test_box_is_placed_by_axes_starts_and_origin(tmp_path, axes, use):
    header = {}
    if use != "origin":
        header["starts"] = [INDEX_OF_ORIGIN[a - 1] for a in axes]
    if use != "nstart":
        header["origin"] = GRID.origin
    path = tmp_path / "box.mrc"
    path.write_bytes(box_file(axes=axes, **header))
    check_placed(read_map(path), GRID)


def test_origin_wins_over_starts_that_disagree(tmp_path):
    path = tmp_path / "box.mrc"
    path.write_bytes(box_file(starts=(1, 2, 3), origin=GRID.origin))
    check_placed(read_map(path), GRID)


def test_voxel_size_is_cell_over_sampling_not_over_size(tmp_path):
    sampling = (40, 30, 64)  # the box is a part of the cell
    cell = [s * m for s, m in zip(GRID.spacing, sampling, strict=True)] + [90.0] * 3
    path = tmp_path / "part.mrc"
    path.write_bytes(mrc_bytes(blob(GRID.points()), cell, sampling, starts=INDEX_OF_ORIGIN))
    check_placed(read_map(path), GRID)


def test_big_endian(tmp_path):
    path = tmp_path / "box.mrc"
    path.write_bytes(box_file(origin=GRID.origin, order=">"))
    check_placed(read_map(path), GRID)


def test_round_trip_and_words_of_the_header(tmp_path):
    path = tmp_path / "out.ccp4"
    write_map(path, DensityMap(GRID, torch.from_numpy(blob(GRID.points()))))
    check_placed(read_map(path), GRID)
    raw = path.read_bytes()
    assert struct.unpack("<3i", raw[16:28]) == INDEX_OF_ORIGIN
    np.testing.assert_allclose(struct.unpack("<3f", raw[196:208]), GRID.origin, rtol=1e-6)
    assert raw[208:212] == b"MAP "


def test_written_box_is_in_place_for_readers_of_nstart(tmp_path):
    """gemmi, like Coot, places maps by NCSTART: interpolate where the blob should be."""
    path = tmp_path / "out.ccp4"
    grid = Grid.around(np.array([BLOB, BLOB + 3]), margin=6.0, spacing=0.4)
    write_map(path, DensityMap(grid, torch.from_numpy(blob(grid.points()))))
    ccp4 = gemmi.read_ccp4_map(str(path), setup=True)
    for shift in ([0, 0, 0], [1.2, 0, 0], [0, 0.8, 0], [0, 0, -0.8]):
        point = np.round((BLOB + shift) / 0.4) * 0.4
        assert ccp4.grid.interpolate_value(gemmi.Position(*point)) == pytest.approx(
            float(blob(point)), abs=1e-5
        )


def test_origin_between_voxels_is_kept_exactly(tmp_path):
    path = tmp_path / "out.mrc"
    grid = Grid(origin=(3.71, -6.2, 2.17), spacing=GRID.spacing, shape=GRID.shape)
    write_map(path, DensityMap(grid, torch.from_numpy(blob(grid.points()))))
    check_placed(read_map(path), grid)


def test_writing_replaces_only_when_complete(tmp_path, monkeypatch):
    path = tmp_path / "out.ccp4"
    path.write_text("the old file")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("densemble.io.output.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_map(path, DensityMap(GRID, torch.ones(GRID.shape)))
    assert path.read_text() == "the old file"
    assert list(tmp_path.iterdir()) == [path]


def crystal_grid(group="P 31 2 1", cell=(20.0, 20.0, 31.0, 90.0, 90.0, 120.0)):
    grid = gemmi.FloatGrid(24, 24, 36)
    grid.set_unit_cell(gemmi.UnitCell(*cell))
    grid.spacegroup = gemmi.SpaceGroup(group)
    np.array(grid, copy=False)[:] = np.random.default_rng(3).normal(size=(24, 24, 36))
    grid.symmetrize_avg()
    return grid


def write_part(path, grid, low, high):
    ccp4 = gemmi.Ccp4Map()
    ccp4.grid = grid
    ccp4.update_ccp4_header(2)
    box = gemmi.FractionalBox()
    box.minimum, box.maximum = gemmi.Fractional(*low), gemmi.Fractional(*high)
    ccp4.set_extent(box)
    ccp4.write_ccp4_map(str(path))


def test_crystal_map_is_completed_by_symmetry_in_a_skewed_cell(tmp_path):
    grid, path = crystal_grid(), tmp_path / "crystal.ccp4"
    write_part(path, grid.clone(), (-0.02, -0.02, -0.02), (1.0, 1.0, 0.19))  # P 31 2 1: c up to 1/6 suffices
    crystal = read_crystal_map(path)
    assert crystal.grid.unit_cell.gamma == pytest.approx(120)
    assert crystal.grid.spacegroup.number == 152
    np.testing.assert_allclose(np.array(crystal.grid), np.array(grid), atol=1e-6)


def test_part_of_the_asymmetric_unit_is_an_error(tmp_path):
    path = tmp_path / "part.ccp4"
    write_part(path, crystal_grid(), (0, 0, 0), (0.4, 0.4, 0.05))
    with pytest.raises(InputError, match=r"part\.ccp4 covers only a part"):
        read_crystal_map(path)


def test_crystal_maps_are_not_read_as_boxes(tmp_path):
    skewed, symmetric = tmp_path / "skewed.ccp4", tmp_path / "symmetric.ccp4"
    write_part(skewed, crystal_grid("P 1"), (0, 0, 0), (0.99, 0.99, 0.99))
    with pytest.raises(InputError, match="skewed cell"):
        read_map(skewed)
    write_part(symmetric, crystal_grid("P 21 21 21", (20, 21, 31, 90, 90, 90)), (0, 0, 0), (0.99, 0.99, 0.99))
    with pytest.raises(InputError, match="symmetry, space group number 19"):
        read_map(symmetric)


@pytest.mark.parametrize("read", [read_map, read_crystal_map])
def test_bad_files(tmp_path, read):
    with pytest.raises(InputError, match=r"none\.mrc does not exist"):
        read(tmp_path / "none.mrc")
    path = tmp_path / "bad.mrc"
    path.write_text("not a map\n" * 200)
    with pytest.raises(InputError, match=r"bad\.mrc is not a CCP4 or MRC map"):
        read(path)
    for value, message in ((0.0, "is empty"), (0.3, "is empty")):
        path.write_bytes(mrc_bytes(np.full((4, 5, 6), value), [4, 5, 6, 90, 90, 90], (4, 5, 6)))
        with pytest.raises(InputError, match=message):
            read(path)
    values = np.ones((4, 5, 6))
    values[1, 2, 3] = np.nan
    path.write_bytes(mrc_bytes(values, [4, 5, 6, 90, 90, 90], (4, 5, 6)))
    with pytest.raises(InputError, match="holds NaNs"):
        read(path)


def whole_numbers(mode=2) -> np.ndarray:
    """Between -100 and 100, or 0 and 200 where there is no sign."""
    return np.rint(200 * blob(GRID.points())) - (0 if mode == 6 else 100)


def file_of_mode(mode, dtype, ispg=1, order="<", symmetry=b""):
    cell = [s * n for s, n in zip(GRID.spacing, GRID.shape, strict=True)] + [90.0] * 3
    raw = mrc_bytes(whole_numbers(mode), cell, GRID.shape, origin=GRID.origin, ispg=ispg, order=order)
    raw = raw[:12] + struct.pack(f"{order}i", mode) + raw[16:1024]
    raw = raw[:92] + struct.pack(f"{order}i", len(symmetry)) + raw[96:]
    return raw + symmetry + whole_numbers(mode).astype(dtype).tobytes(order="F")


@pytest.mark.parametrize("ispg", [0, 1])
@pytest.mark.parametrize(("mode", "dtype"), [(0, "i1"), (1, "<i2"), (2, "<f4"), (6, "<u2"), (12, "<f2")])
def test_modes(tmp_path, mode, dtype, ispg):
    path, zipped = tmp_path / "box.mrc", tmp_path / "box.mrc.gz"
    path.write_bytes(file_of_mode(mode, dtype, ispg))
    zipped.write_bytes(gzip.compress(file_of_mode(mode, dtype, ispg)))
    for density in (read_map(path), read_map(zipped)):
        np.testing.assert_array_equal(density.values.numpy(), whole_numbers(mode))
        np.testing.assert_allclose(density.grid.origin, GRID.origin, atol=1e-6)


@pytest.mark.parametrize("symmetry", [b"", b"x,y,z".ljust(80)])
@pytest.mark.parametrize(("mode", "dtype"), [(1, ">i2"), (2, ">f4"), (6, ">u2"), (12, ">f2")])
def test_modes_of_big_endian_files_with_symmetry_records(tmp_path, mode, dtype, symmetry):
    path = tmp_path / "box.mrc"
    path.write_bytes(file_of_mode(mode, dtype, order=">", symmetry=symmetry))
    np.testing.assert_array_equal(read_map(path).values.numpy(), whole_numbers(mode))


def test_truncated_half_floats(tmp_path):
    path = tmp_path / "box.mrc"
    path.write_bytes(file_of_mode(12, "<f2")[:-20])
    with pytest.raises(InputError, match="is not a CCP4 or MRC map"):
        read_map(path)


@pytest.mark.parametrize(
    ("cell", "sampling"),
    [((0.0, 0.0, 0.0), (12, 11, 13)), ((7.0, 8.0, np.nan), (12, 11, 13)), ((7.0, 8.0, 6.0), (0, 0, 0))],
)
def test_no_voxel_size(tmp_path, cell, sampling):
    path = tmp_path / "box.mrc"
    path.write_bytes(mrc_bytes(blob(GRID.points()), [*cell, 90.0, 90.0, 90.0], sampling))
    with pytest.raises(InputError, match=r"box\.mrc has no voxel size in its header"):
        read_map(path)


def test_angles_that_are_not_given_are_right(tmp_path):
    path = tmp_path / "box.mrc"
    cell = [s * n for s, n in zip(GRID.spacing, GRID.shape, strict=True)] + [0.0] * 3
    path.write_bytes(mrc_bytes(blob(GRID.points()), cell, GRID.shape, origin=GRID.origin))
    check_placed(read_map(path), GRID)
    assert isinstance(read_either(path), DensityMap)


def test_a_skew_transformation_is_read_only_where_it_is_none(tmp_path):
    path, turn = tmp_path / "box.mrc", np.eye(3)
    for angle in (0.0, 0.1):
        turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        raw = bytearray(box_file(origin=GRID.origin))
        raw[96:148] = struct.pack("<i12f", 1, *turn.ravel(), 0, 0, 0)
        path.write_bytes(bytes(raw))
        if angle:
            with pytest.raises(InputError, match="has a skew transformation"):
                read_map(path)
        else:
            check_placed(read_map(path), GRID)


@pytest.mark.parametrize(("mode", "dtype"), [(4, "<c8"), (101, "u1")])
@pytest.mark.parametrize("read", [read_map, read_crystal_map])
def test_modes_that_are_not_read(tmp_path, read, mode, dtype):
    path = tmp_path / "box.mrc"
    path.write_bytes(file_of_mode(mode, np.float16 if dtype == "u1" else dtype))
    with pytest.raises(InputError, match=rf"box\.mrc stores .* as 32-bit floats, mode 2 \(Mode {mode} "):
        read(path)


@pytest.mark.parametrize("ispg", [401, 630])
def test_stack_of_volumes(tmp_path, ispg):
    path = tmp_path / "stack.mrcs"
    path.write_bytes(box_file(ispg=ispg))
    with pytest.raises(InputError, match=rf"stack\.mrcs is a stack of volumes \(ISPG {ispg}\); give one"):
        read_map(path)


def test_truncated_file(tmp_path):
    path = tmp_path / "cut.mrc"
    path.write_bytes(box_file()[:2000])
    with pytest.raises(InputError, match="is not a CCP4 or MRC map"):
        read_map(path)


def test_wrong_axis_order_in_the_header(tmp_path):
    path = tmp_path / "axes.mrc"
    raw = bytearray(box_file())
    raw[64:76] = struct.pack("<3i", 1, 1, 3)
    path.write_bytes(bytes(raw))
    with pytest.raises(InputError, match="Incorrect MAPC/MAPR/MAPS"):
        read_map(path)
