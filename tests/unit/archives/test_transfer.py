"""Transfers against a server on this machine: whole, resumed, refused, cut off, silent."""

import socket
import time

import numpy as np
import pytest
from archive_server import MODIFIED, Archive, Fault, serving

from densemble.archives.transfer import ArchiveError, Client, Manners, NotInArchiveError, Version

QUICK = Manners(pause=0.0, attempts=3, backoff=1.0, timeout=0.3, longest_wait=60.0)
PATH = "/pub/file.bin"
DATA = np.random.default_rng(1).bytes(300_000)


@pytest.fixture
def archive():
    with serving(Archive()) as server:
        server.files[PATH] = DATA
        yield server


@pytest.fixture
def waits():
    return []


@pytest.fixture
def client(waits):
    return Client(manners=QUICK, sleep=waits.append)


@pytest.fixture
def part(tmp_path):
    return tmp_path / "file.bin"


def test_a_file_comes_whole_and_says_its_version(archive, client, part):
    version = client.download(archive.address + PATH, part)
    assert part.read_bytes() == DATA
    assert version == Version(etag=archive.etag(PATH), last_modified=MODIFIED)
    assert [p.name for p in part.parent.iterdir()] == ["file.bin"]


def test_it_says_who_asks_and_takes_bytes_as_they_are(archive, client, part):
    client.download(archive.address + PATH, part)
    (headers,) = archive.requests(PATH)
    assert headers["User-Agent"].startswith("densemble/")
    assert headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("chunked", [False, True])
def test_a_transfer_that_breaks_goes_on_where_it_stopped(archive, client, part, waits, chunked):
    archive.faults[PATH] = [Fault(cut=100_000, chunked=chunked)]
    client.download(archive.address + PATH, part)
    assert part.read_bytes() == DATA
    first, second = archive.requests(PATH)
    assert "Range" not in first
    assert second["If-Range"] == archive.etag(PATH)
    assert int(second["Range"].removeprefix("bytes=").removesuffix("-")) == 100_000
    assert waits == [1.0]


def test_it_goes_on_in_another_process(archive, part):
    archive.faults[PATH] = [Fault(cut=70_000)]
    with pytest.raises(ArchiveError, match="1 times in a row"):
        Client(manners=Manners(pause=0.0, attempts=1, timeout=1.0)).download(archive.address + PATH, part)
    Client(manners=QUICK).download(archive.address + PATH, part)
    assert part.read_bytes() == DATA
    assert archive.requests(PATH)[1]["Range"] == "bytes=70000-"


def test_a_weak_etag_is_not_trusted_but_a_date_is(archive, client, part):
    archive.weak = True
    archive.faults[PATH] = [Fault(cut=100_000)]
    client.download(archive.address + PATH, part)
    assert part.read_bytes() == DATA
    assert archive.requests(PATH)[1]["If-Range"] == MODIFIED


def test_without_a_version_it_begins_again(archive, client, part):
    archive.validators = False
    archive.faults[PATH] = [Fault(cut=100_000)]
    client.download(archive.address + PATH, part)
    assert part.read_bytes() == DATA
    assert "Range" not in archive.requests(PATH)[1]


def test_a_file_that_changed_in_between_is_fetched_anew(archive, client, part, waits):
    archive.faults[PATH] = [Fault(cut=100_000)]
    changed = DATA[::-1]
    client.sleep = lambda seconds: archive.files.update({PATH: changed})
    version = client.download(archive.address + PATH, part)
    assert part.read_bytes() == changed
    assert version is not None
    assert version.etag == archive.etag(PATH)


def test_a_server_without_ranges_sends_all_again(archive, client, part):
    archive.faults[PATH] = [Fault(cut=100_000), Fault(whole=True)]
    client.download(archive.address + PATH, part)
    assert part.read_bytes() == DATA


@pytest.mark.parametrize("fault", [Fault(shift=10), Fault(status=416)])
def test_a_rest_that_does_not_fit_is_dropped(archive, client, part, fault):
    archive.faults[PATH] = [Fault(cut=100_000), fault]
    client.download(archive.address + PATH, part)
    assert part.read_bytes() == DATA
    assert "Range" not in archive.requests(PATH)[2]


def test_a_server_that_stalls_is_asked_again(archive, client, part):
    archive.faults[PATH] = [Fault(cut=80_000, stall=True)]
    begin = time.monotonic()
    client.download(archive.address + PATH, part)
    assert part.read_bytes() == DATA
    assert time.monotonic() - begin < 5


def test_a_server_that_always_stalls_is_given_up(archive, client, part, waits):
    archive.faults[PATH] = [Fault(cut=0, stall=True)] * 3
    with pytest.raises(ArchiveError, match=r"timed out.*3 times in a row"):
        client.download(archive.address + PATH, part)
    assert waits == [1.0, 2.0]


def test_progress_resets_the_count_of_failures(archive, client, part):
    archive.faults[PATH] = [
        Fault(cut=70_000),
        *(Fault(cut=66_000) for _ in range(3)),
    ]  # four failures, three allowed
    client.download(archive.address + PATH, part)
    assert part.read_bytes() == DATA


@pytest.mark.parametrize("status", [404, 410])
def test_a_file_that_is_not_there(archive, client, part, status):
    archive.faults[PATH] = [Fault(status=status)]
    with pytest.raises(NotInArchiveError, match=f"no such file .{status}"):
        client.download(archive.address + PATH, part)
    assert len(archive.asked) == 1
    assert not part.exists()


def test_retry_after_is_honoured(archive, client, part, waits):
    later = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 30))
    archive.faults[PATH] = [
        Fault(status=429, headers={"Retry-After": "7"}),
        Fault(status=503, headers={"Retry-After": later}),
    ]
    client.download(archive.address + PATH, part)
    assert part.read_bytes() == DATA
    assert waits[0] == 7
    assert 25 <= waits[1] <= 30


def test_a_server_that_wants_to_be_left_alone_is(archive, client, part, waits):
    archive.faults[PATH] = [Fault(status=503, headers={"Retry-After": "3600"})]
    with pytest.raises(ArchiveError, match="wait for 3600 s"):
        client.download(archive.address + PATH, part)
    assert (len(archive.asked), waits) == (1, [])


def test_an_error_that_is_not_passing_is_final(archive, client, part):
    archive.faults[PATH] = [Fault(status=403)]
    with pytest.raises(ArchiveError, match="answers 403 Forbidden"):
        client.download(archive.address + PATH, part)
    assert len(archive.asked) == 1


def test_redirects_are_followed_and_circles_are_not(archive, client, part):
    archive.faults["/old"] = [Fault(status=301, headers={"Location": PATH})]
    client.download(archive.address + "/old", part)
    assert part.read_bytes() == DATA
    archive.faults["/circle"] = [Fault(status=302, headers={"Location": "/circle"})] * 40
    with pytest.raises(ArchiveError, match="circle"):
        client.download(archive.address + "/circle", part)


def test_what_is_known_is_not_sent_again(archive, client, part):
    known = Version(etag=archive.etag(PATH), last_modified=MODIFIED)
    assert client.download(archive.address + PATH, part, known=known) is None
    assert not part.exists()
    archive.files[PATH] = DATA[:1000]
    assert client.download(archive.address + PATH, part, known=known) is not None
    assert part.read_bytes() == DATA[:1000]


def test_nobody_there(client, part, waits):
    with pytest.raises(ArchiveError, match=r"cannot reach 127\.0\.0\.1:9: .*refused.*3 times in a row"):
        client.download("http://127.0.0.1:9/x", part)
    with pytest.raises(ArchiveError, match=r"cannot reach 127\.0\.0\.1:9: .*refused"):
        client.download("http://127.0.0.1:9/y", part)
    assert waits == [1.0, 2.0]


def test_a_name_that_cannot_be_resolved_is_asked_for_once(client, part, waits, monkeypatch):
    asked = []

    def nobody(host, *more, **options):
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    for name in ("x", "y"):
        with pytest.raises(
            ArchiveError, match=r"^cannot reach archive\.invalid: its name cannot be resolved$"
        ):
            client.download(f"http://archive.invalid/{name}", part)
    assert asked == ["archive.invalid"]
    assert waits == []


def test_an_address_that_is_none(client, part):
    with pytest.raises(ArchiveError, match="cannot be asked for"):
        client.download("files.wwpdb.org/x", part)


def test_pauses_between_requests_to_one_server(archive, part):
    waits = []
    client = Client(manners=Manners(pause=5.0), sleep=waits.append)
    for i in range(3):
        client.download(archive.address + PATH, part.with_name(str(i)))
    assert len(waits) == 2
    assert all(4 < wait <= 5 for wait in waits)
    assert archive.most_open == 1
