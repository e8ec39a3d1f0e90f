"""Downloads, against a server in this process that breaks off, forgets and changes its mind."""

import errno
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from damoserve_compress.fetch import SourceGone, SourceInvalid, TargetUnusable, TransferFailed, WrongContent
from damoserve_compress.fetch.sources import fetch
from damoserve_compress.fetch.web import RetryPolicy
from tests.support.compress.web_server import CONTENT, SHA256, Web, serving

AT_ONCE = RetryPolicy(count=3, wait=0)


@pytest.fixture
def web() -> Iterator[Web]:
    with serving() as web:
        yield web


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_arrives_whole(web: Web, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    out = tmp_path / "new" / "weights.pth"
    assert fetch(web.address, out, report=lambda done, total: seen.append((done, total))) == SHA256
    assert out.read_bytes() == CONTENT
    assert left(out.parent) == {"weights.pth"}
    assert seen[0] == (0, len(CONTENT))
    assert seen[-1] == (len(CONTENT), len(CONTENT))


def test_a_broken_connection_is_resumed(web: Web, tmp_path: Path) -> None:
    web.breaks = [1000, 0, 5000]
    assert fetch(web.address, tmp_path / "w", SHA256, attempts=AT_ONCE) == SHA256
    assert web.ranges == [None, "bytes=1000-", "bytes=1000-", "bytes=6000-"]
    assert left(tmp_path) == {"w"}


@pytest.mark.parametrize(("tag", "wanted"), [('"one"', None), ('W/"one"', SHA256), (None, SHA256)])
def test_a_later_call_goes_on_where_the_last_one_gave_up(
    web: Web, tmp_path: Path, tag: str | None, wanted: str | None
) -> None:
    web.tag, web.breaks = tag, [1000, 0, 0, 0]
    with pytest.raises(TransferFailed, match="goes on from byte 1000"):
        fetch(web.address, tmp_path / "w", wanted, attempts=AT_ONCE)
    assert not (tmp_path / "w").exists()
    web.breaks = []
    assert fetch(web.address, tmp_path / "w", wanted, attempts=AT_ONCE) == SHA256
    assert web.ranges[-1] == "bytes=1000-"


@pytest.mark.parametrize("tag", ['W/"one"', None])
def test_without_a_tag_or_a_hash_every_try_begins_anew(web: Web, tmp_path: Path, tag: str | None) -> None:
    web.tag, web.breaks = tag, [1000, 500, 900]
    with pytest.raises(TransferFailed, match=r"Ask again$"):
        fetch(web.address, tmp_path / "w", attempts=AT_ONCE)
    web.content = CONTENT[::-1]
    fetch(web.address, tmp_path / "w", attempts=AT_ONCE)
    assert (tmp_path / "w").read_bytes() == CONTENT[::-1]
    assert web.ranges == [None] * 4


def test_a_hash_tells_that_versions_were_mixed_and_the_next_call_begins_anew(web: Web, tmp_path: Path) -> None:
    web.tag, web.breaks, web.content = None, [1000, 0, 0], CONTENT[::-1]
    with pytest.raises(TransferFailed):
        fetch(web.address, tmp_path / "w", SHA256, attempts=AT_ONCE)
    web.content = CONTENT
    with pytest.raises(WrongContent):
        fetch(web.address, tmp_path / "w", SHA256, attempts=AT_ONCE)
    assert fetch(web.address, tmp_path / "w", SHA256, attempts=AT_ONCE) == SHA256
    assert left(tmp_path) == {"w"}


def test_another_range_than_was_asked_for_is_not_appended(web: Web, tmp_path: Path) -> None:
    web.breaks, web.shift = [1000], 1
    assert fetch(web.address, tmp_path / "w", attempts=AT_ONCE) == SHA256
    assert web.ranges == [None, "bytes=1000-", None]


@pytest.mark.parametrize("rest", ["[::1/w", "host/a b", "host:port/w", "host/wäights", "", "/w", "a@host/w"])
def test_what_is_no_address_is_refused_at_once(rest: str, tmp_path: Path) -> None:
    with pytest.raises(SourceInvalid, match="is no address: it needs a host, and %XX for spaces"):
        fetch(f"http://{rest}", tmp_path / "w")


def test_what_arrived_stays_where_it_cannot_be_put_in_place(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", full)
        with pytest.raises(TargetUnusable, match="w cannot be written: No space left on device"):
            fetch(web.address, tmp_path / "w", SHA256)
    assert left(tmp_path) == {"w.part", "w.part.json"}
    assert fetch(web.address, tmp_path / "w", SHA256, attempts=AT_ONCE) == SHA256


def test_a_part_that_cannot_be_written_is_not_the_servers_fault(web: Web, tmp_path: Path) -> None:
    (tmp_path / "w.part").mkdir()
    with pytest.raises(TargetUnusable, match=r"w\.part cannot be written: Is a directory"):
        fetch(web.address, tmp_path / "w")
    assert web.ranges == [None]


def test_versions_are_not_mixed(web: Web, tmp_path: Path) -> None:
    web.breaks = [1000, 0, 0, 0]
    with pytest.raises(TransferFailed):
        fetch(web.address, tmp_path / "w", attempts=AT_ONCE)
    web.breaks, web.content, web.tag = [], CONTENT[::-1], '"two"'
    fetch(web.address, tmp_path / "w", attempts=AT_ONCE)
    assert (tmp_path / "w").read_bytes() == CONTENT[::-1]


def test_what_arrived_from_another_address_is_not_gone_on_with(web: Web, tmp_path: Path) -> None:
    (tmp_path / "w.part").write_bytes(b"something else")
    (tmp_path / "w.part.json").write_text('{"url": "http://elsewhere/w", "version": null}')
    assert fetch(web.address, tmp_path / "w") == SHA256
    assert web.ranges == [None]


def test_a_part_that_is_too_long_is_begun_anew(web: Web, tmp_path: Path) -> None:
    web.breaks = [1000, 0, 0, 0]
    with pytest.raises(TransferFailed):
        fetch(web.address, tmp_path / "w", attempts=AT_ONCE)
    web.breaks, web.content = [], CONTENT[:500]
    fetch(web.address, tmp_path / "w", attempts=AT_ONCE)
    assert (tmp_path / "w").read_bytes() == CONTENT[:500]


def test_a_busy_server_is_asked_again(web: Web, tmp_path: Path) -> None:
    web.statuses = [503, 429]
    assert fetch(web.address, tmp_path / "w", attempts=AT_ONCE) == SHA256
    web.statuses = [503] * 3
    with pytest.raises(TransferFailed, match="503"):
        fetch(web.address, tmp_path / "v", attempts=AT_ONCE)


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_dead_link_is_told_at_once_and_with_what_to_try(web: Web, tmp_path: Path, status: int) -> None:
    web.statuses = [status]
    with pytest.raises(SourceGone, match=f"the server says {status}.* dead since 2025: try modelscope:"):
        fetch(web.address, tmp_path / "w", attempts=AT_ONCE)
    assert web.ranges == [None]
    assert left(tmp_path) == set()


def test_a_host_that_nobody_knows_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unknown(*arguments: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(SourceGone, match="cannot be had: its host is unknown, or this machine has no network"):
        fetch("http://gone.example/w.bin", tmp_path / "w", attempts=AT_ONCE)


def test_the_wrong_file_is_refused_and_what_was_there_stays(web: Web, tmp_path: Path) -> None:
    out = tmp_path / "w"
    out.write_bytes(b"old")
    with pytest.raises(WrongContent, match=f"its SHA-256 is {SHA256}, not {'0' * 64}"):
        fetch(web.address, out, "0" * 64, attempts=AT_ONCE)
    assert out.read_bytes() == b"old"
    assert left(tmp_path) == {"w"}


def test_a_file_with_the_wanted_hash_is_not_asked_for_again(web: Web, tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(CONTENT)
    assert fetch(web.address, tmp_path / "w", SHA256.upper()) == SHA256
    assert web.ranges == []
    (tmp_path / "w").write_bytes(b"old")
    assert fetch(web.address, tmp_path / "w", SHA256) == SHA256
