"""Whole entries from a server on this machine, in the formats and under the paths of the archives."""

import gzip
import json
import shutil
from hashlib import sha256
from pathlib import Path

import gemmi
import numpy as np
import pytest
import torch
from archive_server import Archive, Fault, serving
from command_line import invoke, sentence
from small_crystal import EXAMPLE, write_crystal

from densemble.archives.cache import Cache
from densemble.archives.emdb import read_header
from densemble.archives.entries import fetch, summary
from densemble.archives.layout import crystal_files, header_file, parse_entry
from densemble.archives.servers import SERVERS, Servers
from densemble.archives.transfer import ArchiveError, Client, Manners, NotInArchiveError
from densemble.errors import InputError
from densemble.grid import DensityMap, Grid
from densemble.io.maps import read_map, write_map
from densemble.io.models import read_model
from densemble.io.reflections import read_coefficients, read_reflections

MODEL = "/pdb/mmCIF/ec/7ec8.cif.gz"
AMPLITUDES = "/pdb/structure_factors/ec/r7ec8sf.ent.gz"
REDO_MODEL, REDO_DATA = "/redo/7ec8/7ec8_final.cif", "/redo/7ec8/7ec8_final.mtz"
FITTED = "/pdb/mmCIF/gm/8gmg.cif.gz"
EMD = "/emdb/EMD-40226"
HEADER, MAP = f"{EMD}/header/emd-40226.xml", f"{EMD}/map/emd_40226.map.gz"
HALVES = [f"{EMD}/other/emd_40226_half_map_{i}.map.gz" for i in (1, 2)]

HEADER_TEXT = """<?xml version="1.0" encoding="UTF-8"?>
<emd emdb_id="EMD-40226" version="3.0.4.0">
  <admin><title>a transporter</title></admin>
  <crossreferences>
    <pdb_list><pdb_reference id="1"><pdb_id>8gmg</pdb_id>
      <relationship><in_frame>FULLOVERLAP</in_frame></relationship></pdb_reference></pdb_list>
  </crossreferences>
  <structure_determination_list><structure_determination structure_determination_id="1">
    <method>singleParticle</method>
    <singleparticle_processing singleparticle_processing_id="1"><final_reconstruction>
      <resolution type="BY AUTHOR" units="Å">4.3</resolution>
      <resolution_method>FSC 0.143 CUT-OFF</resolution_method>
    </final_reconstruction></singleparticle_processing>
  </structure_determination></structure_determination_list>
  <map format="CCP4" size_kbytes="1"><file>emd_40226.map.gz</file>
    <contour_list><contour primary="false"><level>0.9</level></contour>
      <contour primary="true"><level>0.32</level><source>AUTHOR</source></contour></contour_list>
  </map>
  <interpretation><half_map_list>
    <half_map format="CCP4"><file>emd_40226_half_map_1.map.gz</file></half_map>
    <half_map format="CCP4"><file>emd_40226_half_map_2.map.gz</file></half_map>
  </half_map_list></interpretation>
</emd>
"""


@pytest.fixture(scope="session")
def deposited(tmp_path_factory) -> dict[str, bytes]:
    """The files of both entries, by path."""
    folder = tmp_path_factory.mktemp("deposited")
    crystal = write_crystal(folder)
    mtz = gemmi.read_mtz_file(str(crystal.data))
    sf = gemmi.MtzToCif().write_cif_to_string(mtz)
    grid = Grid((0.0, 0.0, 0.0), (2.0, 2.0, 2.0), (12, 14, 16))
    maps = []
    for seed in range(3):
        values = torch.as_tensor(np.random.default_rng(seed).normal(size=grid.shape), dtype=torch.float32)
        write_map(folder / "map.mrc", DensityMap(grid, values))
        maps.append(gzip.compress((folder / "map.mrc").read_bytes()))
    model = crystal.reference.read_bytes()
    return {
        MODEL: gzip.compress(model),
        AMPLITUDES: gzip.compress(sf.encode()),
        REDO_MODEL: model,
        REDO_DATA: crystal.data.read_bytes(),
        HEADER: HEADER_TEXT.encode(),
        MAP: maps[0],
        HALVES[0]: maps[1],
        HALVES[1]: maps[2],
        FITTED: gzip.compress((EXAMPLE / "model.cif").read_bytes()),
    }


@pytest.fixture
def archive(deposited):
    with serving(Archive()) as server:
        server.files.update(deposited)
        yield server


@pytest.fixture
def cache(tmp_path):
    quick = Manners(pause=0.0, attempts=2, backoff=0.0, timeout=0.5)
    return Cache(tmp_path / "cache", Client(manners=quick, sleep=lambda seconds: None))


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def servers(archive: Archive) -> Servers:
    return Servers(*(f"{archive.address}/{name}" for name in ("pdb", "redo", "emdb")))


def test_a_crystal_entry_comes_with_both_archives_files_and_can_be_read(archive, cache, out, deposited):
    record = fetch("7ec8", out, cache, servers=servers(archive))
    assert [(f.role, f.name) for f in record.files] == [
        ("model", "7ec8.cif.gz"),
        ("amplitudes", "r7ec8sf.ent.gz"),
        ("redo model", "7ec8_final.cif"),
        ("redo data", "7ec8_final.mtz"),
    ]
    assert record.absent == []
    for path in (MODEL, AMPLITUDES, REDO_MODEL, REDO_DATA):
        assert (out / Path(path).name).read_bytes() == deposited[path]
    assert len(read_model(out / "7ec8.cif.gz", altloc="B").topology) == len(
        read_model(out / "7ec8_final.cif", altloc="B").topology
    )
    assert len(read_reflections(out / "r7ec8sf.ent.gz")) == len(read_reflections(out / "7ec8_final.mtz"))
    assert len(read_coefficients(out / "7ec8_final.mtz")) > 0
    assert f"densemble scan {out / '7ec8_final.cif'} {out / '7ec8_final.mtz'}" in summary(record, out)


def test_the_record_says_where_each_file_came_from(archive, cache, out, deposited):
    fetch("7EC8", out, cache, servers=servers(archive))
    record = json.loads((out / "fetched.json").read_text())
    assert (record["schema"], record["entry"]) == ("densemble.fetched/1", "7EC8")
    data = record["files"][3]
    assert data["url"] == archive.address + REDO_DATA
    assert data["sha256"] == sha256(deposited[REDO_DATA]).hexdigest()
    assert data["size"] == len(deposited[REDO_DATA])
    assert data["date"].endswith("+00:00")


def test_a_map_entry_comes_with_half_maps_model_and_what_it_states(archive, cache, out):
    record = fetch("EMD-40226", out, cache, servers=servers(archive))
    assert {f.role: f.name for f in record.files} == {
        "header": "emd-40226.xml",
        "map": "emd_40226.map.gz",
        "half map 1": "emd_40226_half_map_1.map.gz",
        "half map 2": "emd_40226_half_map_2.map.gz",
        "fitted model": "8gmg.cif.gz",
    }
    assert (record.resolution, record.contour) == (4.3, 0.32)
    assert read_map(out / "emd_40226.map.gz").grid.shape == (12, 14, 16)
    assert len(read_model(out / "8gmg.cif.gz").topology) > 2000
    assert f"--resolution 4.3 --half1 {out}" in summary(record, out)


def test_a_map_without_half_maps_and_model(archive, cache, out):
    start, end = HEADER_TEXT.index("<interpretation>"), HEADER_TEXT.index("</interpretation>")
    text = HEADER_TEXT[:start] + HEADER_TEXT[end + len("</interpretation>") :]
    text = text.replace("<pdb_id>8gmg</pdb_id>", "").replace("4.3<", "<").replace("<level>0.32</level>", "")
    archive.files[HEADER] = text.encode()
    record = fetch("EMD-40226", out, cache, servers=servers(archive))
    assert [f.role for f in record.files] == ["header", "map"]
    assert [a.role for a in record.absent] == ["half map 1", "half map 2", "fitted model"]
    assert (record.resolution, record.contour) == (None, 0.9)


def test_a_second_time_nothing_is_asked_for(archive, cache, out, tmp_path):
    first = fetch("7EC8", out, cache, servers=servers(archive))
    asked = len(archive.asked)
    second = fetch("7EC8", tmp_path / "again", cache, servers=servers(archive))
    assert len(archive.asked) == asked
    assert second == first
    assert (tmp_path / "again" / "7ec8_final.mtz").read_bytes() == archive.files[REDO_DATA]


def test_the_archive_is_asked_for_a_newer_version_with_force_only(archive, cache, out, deposited):
    fetch("7EC8", out, cache, servers=servers(archive))
    archive.files[MODEL] = gzip.compress((EXAMPLE / "model.cif").read_bytes())
    fetch("7EC8", out, cache, servers=servers(archive))
    assert (out / "7ec8.cif.gz").read_bytes() == deposited[MODEL]
    before = len(archive.asked)
    fetch("7EC8", out, cache, servers=servers(archive), force=True)
    assert (out / "7ec8.cif.gz").read_bytes() == archive.files[MODEL]
    asked = archive.asked[before:]
    assert [path for path, _ in asked] == [MODEL, AMPLITUDES, REDO_MODEL, REDO_DATA]
    assert all("If-None-Match" in headers for _, headers in asked)


def test_a_cached_file_that_was_damaged_is_fetched_again(archive, cache, out, deposited):
    fetch("7EC8", out, cache, servers=servers(archive))
    damaged = cache.place(crystal_files("7EC8", SERVERS)[3])
    damaged.write_bytes(damaged.read_bytes()[:-1])
    fetch("7EC8", out, cache, servers=servers(archive))
    assert damaged.read_bytes() == deposited[REDO_DATA]
    assert len(archive.requests(REDO_DATA)) == 2


def test_a_stopped_fetch_goes_on(archive, cache, out, deposited):
    half = len(deposited[REDO_DATA]) // 2
    archive.faults[REDO_DATA] = [Fault(cut=half)] + [Fault(status=503)] * 2
    record = fetch("7EC8", out, cache, servers=servers(archive))
    assert [a.role for a in record.absent] == ["redo data"]
    assert "503" in record.absent[0].why
    fetch("7EC8", out, cache, servers=servers(archive))
    assert archive.requests(REDO_DATA)[-1]["Range"] == f"bytes={half}-"
    assert (out / "7ec8_final.mtz").read_bytes() == deposited[REDO_DATA]


def test_what_pdb_redo_lacks_is_said_and_left_out(archive, cache, out):
    del archive.files[REDO_MODEL], archive.files[AMPLITUDES]
    archive.faults[REDO_DATA] = [Fault(status=500)] * 2  # what it answers for entries that it does not have
    record = fetch("7EC8", out, cache, servers=servers(archive))
    assert [f.role for f in record.files] == ["model"]
    assert [a.role for a in record.absent] == ["amplitudes", "redo model", "redo data"]
    assert "redo data: none, " in summary(record, out)


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        (MODEL, Fault(body=b"<html>please log in</html>")),
        (MODEL, Fault(body=gzip.compress(b"<html>please log in</html>"))),
        (HEADER, Fault(body=b"<html></html>")),
        (HEADER, Fault(body=b"not XML")),
        (MAP, Fault(body=gzip.compress(b"MAP of nothing" * 200))),
    ],
)
def test_what_is_not_what_it_should_be_is_not_kept(archive, cache, out, path, fault, deposited):
    entry = "EMD-40226" if path.startswith(EMD) else "7EC8"
    archive.faults[path] = [fault]
    with pytest.raises(ArchiveError, match="what came is not a"):
        fetch(entry, out, cache, servers=servers(archive))
    assert not out.exists()
    assert not (cache.folder / entry / Path(path).name).exists()
    fetch(entry, out, cache, servers=servers(archive))
    assert (out / Path(path).name).read_bytes() == deposited[path]


@pytest.mark.parametrize("path", [MODEL, AMPLITUDES, MAP, REDO_DATA])
def test_a_file_cut_short_at_the_source_is_found_out(archive, cache, out, path, deposited):
    """The length is right for HTTP: only the content tells."""
    archive.faults[path] = [Fault(body=deposited[path][: len(deposited[path]) * 3 // 4])]
    if path == REDO_DATA:
        record = fetch("7EC8", out, cache, servers=servers(archive))
        assert [a.role for a in record.absent] == ["redo data"]
    else:
        with pytest.raises(ArchiveError, match="or not all of it"):
            fetch("EMD-40226" if path == MAP else "7EC8", out, cache, servers=servers(archive))


def test_a_damaged_bit_is_found_out_by_the_check_sum(archive, cache, out, deposited):
    data = bytearray(deposited[MAP])
    data[len(data) // 2] ^= 4
    archive.faults[MAP] = [Fault(body=bytes(data))]
    with pytest.raises(ArchiveError, match=r"emd_40226\.map\.gz: what came is not a CCP4 map"):
        fetch("EMD-40226", out, cache, servers=servers(archive))


def test_gzip_of_the_server_and_of_the_archive_are_told_apart(archive, cache, out, deposited):
    label = {"Content-Encoding": "gzip"}
    archive.faults[MODEL] = [Fault(body=deposited[MODEL], headers=label)]  # says so of a .gz file
    archive.faults[REDO_MODEL] = [Fault(body=gzip.compress(deposited[REDO_MODEL]), headers=label)]
    fetch("7EC8", out, cache, servers=servers(archive))
    assert (out / "7ec8.cif.gz").read_bytes() == deposited[MODEL]
    assert (out / "7ec8_final.cif").read_bytes() == deposited[REDO_MODEL]


def test_no_such_entry(archive, cache, out):
    del archive.files[MODEL]
    with pytest.raises(NotInArchiveError, match="see that 7EC8 is a released entry"):
        fetch("7EC8", out, cache, servers=servers(archive))


def test_without_network_it_says_what_to_put_where_and_takes_it(archive, cache, out, deposited):
    nowhere = Servers(*["http://127.0.0.1:9"] * 3)
    with pytest.raises(ArchiveError) as caught:
        fetch("7EC8", out, cache, servers=nowhere)
    first, *lines = str(caught.value).splitlines()
    assert first.startswith("cannot reach 127.0.0.1:9: ")
    assert lines[:-1] == [f"  {s.url} as {cache.place(s)}" for s in crystal_files("7EC8", nowhere)]
    assert lines[-1] == "and run this again"
    assert not list(cache.folder.rglob("*.lock"))
    files = (MODEL, AMPLITUDES, REDO_MODEL, REDO_DATA)
    for source, path in zip(crystal_files("7EC8", nowhere), files, strict=True):
        cache.place(source).write_bytes(deposited[path])
    record = fetch("7EC8", out, cache, servers=nowhere)
    assert [f.url for f in record.files] == [None] * 4
    assert (out / "7ec8_final.mtz").read_bytes() == deposited[REDO_DATA]


def test_without_network_a_map_needs_its_header_first(cache, out):
    nowhere = Servers(*["http://127.0.0.1:9"] * 3)
    with pytest.raises(ArchiveError, match=r"(?s)emd-40226\.xml as .*then the files that it names, and run"):
        fetch("EMD-40226", out, cache, servers=nowhere)
    cache.place(header_file("EMD-40226", nowhere)).write_text(HEADER_TEXT, encoding="utf-8")
    with pytest.raises(
        ArchiveError, match=r"(?s)emd_40226\.map\.gz as .*half_map_2\.map\.gz as .*8gmg\.cif\.gz as"
    ):
        fetch("EMD-40226", out, cache, servers=nowhere)


def test_a_file_put_there_by_hand_is_looked_at(cache, out):
    nowhere = Servers(*["http://127.0.0.1:9"] * 3)
    place = cache.place(crystal_files("7EC8", nowhere)[0])
    place.parent.mkdir(parents=True)
    place.write_text("no model")
    with pytest.raises(
        InputError, match=r"is not a model in mmCIF.*; replace it by .*/7ec8\.cif\.gz, or remove"
    ):
        fetch("7EC8", out, cache, servers=nowhere)


def test_a_cache_that_cannot_be_used(archive, cache, out):
    cache.folder.write_text("a file in the way")
    with pytest.raises(InputError, match=r"cannot be used .*--cache"):
        fetch("7EC8", out, cache, servers=servers(archive))


def test_other_files_of_the_folder_are_not_replaced(archive, cache, out):
    out.mkdir()
    (out / "7ec8_final.mtz").write_text("mine")
    with pytest.raises(InputError, match=r"7ec8_final\.mtz exists and is another file"):
        fetch("7EC8", out, cache, servers=servers(archive))
    assert [p.name for p in out.iterdir()] == ["7ec8_final.mtz"]
    assert (out / "7ec8_final.mtz").read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "entry"),
    [("7ec8", "7EC8"), ("pdb_00007ec8", "7EC8"), ("emd-3488", "EMD-3488"), ("EMD40226", "EMD-40226")],
)
def test_entries(text, entry):
    assert parse_entry(text) == entry


@pytest.mark.parametrize("text", ["", "7ec", "ec87", "EMD-1", "../7ec8", "7ec8/..", "EMD-40226.map"])
def test_what_is_no_entry(text):
    with pytest.raises(InputError, match="is no entry"):
        parse_entry(text)


def test_addresses_are_those_of_the_archives():
    assert [source.url for source in crystal_files("7EC8", SERVERS)] == [
        "https://files.wwpdb.org/pub/pdb/data/structures/divided/mmCIF/ec/7ec8.cif.gz",
        "https://files.wwpdb.org/pub/pdb/data/structures/divided/structure_factors/ec/r7ec8sf.ent.gz",
        "https://pdb-redo.eu/db/7ec8/7ec8_final.cif",
        "https://pdb-redo.eu/db/7ec8/7ec8_final.mtz",
    ]
    header = header_file("EMD-3488", SERVERS)
    assert header.url == "https://files.wwpdb.org/pub/emdb/structures/EMD-3488/header/emd-3488.xml"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("<file>emd_40226.map.gz</file>", "<file>../../x.map.gz</file>", "not the name of a file"),
        ("<file>emd_40226.map.gz</file>", "", "names 0 maps"),
        ("4.3<", "high<", "'high' should be a number"),
    ],
)
def test_headers_that_make_no_sense(tmp_path, old, new, said):
    (tmp_path / "h.xml").write_text(HEADER_TEXT.replace(old, new), encoding="utf-8")
    with pytest.raises(InputError, match=said):
        read_header(tmp_path / "h.xml")


def test_on_the_command_line(archive, tmp_path, deposited, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = servers(archive)
    options = ["--pdb-server", own.pdb + "/", "--redo-server", own.redo, "--emdb-server", own.emdb]
    done = invoke("fetch", "emd-40226", "--cache", "kept", "--quiet", *options)
    assert done.exit_code == 0, done.stderr
    assert done.stderr == ""
    assert "map: EMD-40226/emd_40226.map.gz" in done.stdout
    assert (tmp_path / "EMD-40226" / "emd_40226.map.gz").read_bytes() == deposited[MAP]
    shutil.rmtree("kept")
    said = sentence(invoke("fetch", "1xyz", "--cache", "kept", "--quiet", *options))
    assert "no such file (404)" in said
