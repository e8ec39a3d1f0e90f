"""A real server with certificates that were just made, and clients that trust it or not."""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from pydantic import ValidationError

from damoserve.v1 import detection_pb2 as pb
from damoserve.v1 import detection_pb2_grpc as pb_grpc
from damoserve_server.configuration.settings import Settings
from tests.support.authority import Authority, Pair, replace
from tests.support.pictures import Pictures
from tests.support.server import Serve, ServerClient
from tests.support.timeouts import TIMEOUT

CALLERS = 16
COLOURS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@asynccontextmanager
async def channel_to(
    client: ServerClient, authority: Authority, mine: Pair | None = None
) -> AsyncIterator[grpc.aio.Channel]:
    """A connection of its own; `mine` is the certificate that the client shows."""
    credentials = grpc.ssl_channel_credentials(
        authority.certificate, mine.key if mine else None, mine.certificate if mine else None
    )
    options = [("grpc.use_local_subchannel_pool", 1)]
    address = f"localhost:{client.application.port}"
    async with grpc.aio.secure_channel(address, credentials, options) as channel:
        yield channel


async def detect(channel: grpc.aio.Channel, image: bytes, model: str = "") -> pb.DetectResponse:
    request = pb.DetectRequest(image=pb.Image(content=image), model=model)
    return await pb_grpc.DetectionServiceStub(channel).Detect(request, timeout=TIMEOUT)


async def refused(client: ServerClient, channel: grpc.aio.Channel, image: bytes) -> None:
    failure = await client.failure(detect(channel, image))
    assert failure.code == grpc.StatusCode.UNAVAILABLE


def presented(port: int) -> bytes:
    return ssl.get_server_certificate(("localhost", port), timeout=TIMEOUT).encode()


async def test_only_a_client_that_trusts_the_certificate_talks_to_the_server(
    serve: Serve, pictures: Pictures, authority: Authority, tmp_path: Path
) -> None:
    async with serve(tls=authority.issue().write(tmp_path)) as plain:
        await refused(plain, plain.channel, pictures.red)
        async with channel_to(plain, Authority()) as channel:
            await refused(plain, channel, pictures.red)
        async with channel_to(plain, authority) as channel:
            assert len((await detect(channel, pictures.red)).detections) == 4
        result = (await plain.metrics()).sum("grpc_server_started_total")
    assert result == 1  # what fails before the call is gRPC's, and is not counted


async def test_mutual_tls_wants_a_certificate_of_the_authority_in_force(
    serve: Serve, pictures: Pictures, authority: Authority, tmp_path: Path
) -> None:
    stranger, successor = Authority(), Authority()
    ca = replace(tmp_path / "ca.crt", authority.certificate)
    tls = {**authority.issue().write(tmp_path), "client_ca": ca}
    async with serve(tls=tls) as client:

        async def outcome(mine: Pair | None) -> None:
            async with channel_to(client, authority, mine) as channel:
                if mine in accepted:
                    assert len((await detect(channel, pictures.red)).detections) == 4
                else:
                    await refused(client, channel, pictures.red)

        old, new = authority.issue("camera"), successor.issue("camera")
        accepted = [old]
        for mine in (None, stranger.issue("camera"), new, old):
            await outcome(mine)
        replace(ca, successor.certificate)
        accepted = [new]
        for mine in (old, new):
            await outcome(mine)


async def test_rotation_under_load_loses_no_answer(
    serve: Serve, pictures: Pictures, authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Connections live a fifth of a second, so that all of them come back to each new pair; one pair is broken."""
    images = {colour: pictures.encode(pictures.draw(colour)) for colour in COLOURS}
    pairs = [authority.issue() for _ in range(4)]
    paths = pairs[0].write(tmp_path)
    answered: list[str] = []

    async def call_until(done: asyncio.Event, client: ServerClient, colour: str) -> None:
        async with channel_to(client, authority) as channel:
            while not done.is_set():
                answer = await detect(channel, images[colour])
                assert {found.label for found in answer.detections} == {colour}
                answered.append(colour)

    connections = {"max_age_seconds": 0.2}
    with caplog.at_level(logging.ERROR):
        async with serve(tls=paths, connections=connections, max_queue=CALLERS) as client:
            done = asyncio.Event()
            async with asyncio.TaskGroup() as callers:
                for number in range(CALLERS):
                    callers.create_task(call_until(done, client, COLOURS[number % 3]))
                for pair in (pairs[1], Pair(pairs[2].certificate, pairs[1].key), pairs[3]):
                    pair.write(tmp_path)
                    current = pair if pair in pairs else pairs[1]
                    while await asyncio.to_thread(presented, client.application.port) != current.certificate:
                        pass
                    count = len(answered)
                    while len(answered) < count + 10 * CALLERS:
                        await asyncio.sleep(0)
                done.set()
            metrics = await client.metrics()
            taken = metrics.sum("damoserve_credential_reloads_total", file="certificate", result="taken")
            broken = metrics.sum("damoserve_credential_reloads_total", file="certificate", result="refused")
            handled = metrics.sum("grpc_server_handled_total", grpc_code="OK")
    assert taken >= 2
    assert broken >= 1
    assert handled == len(answered)
    assert "are not a certificate and its key" in caplog.text
    assert not any(pair.key.decode() in caplog.text for pair in pairs)


def spoil(name: str, folder: Path) -> dict[str, Path]:
    """TLS settings with one mistake."""
    authority = Authority()
    tls = authority.issue().write(folder)
    match name:
        case "no key":
            del tls["key"]
        case "missing file":
            tls["key"] = folder / "absent.key"
        case "folder":
            tls["certificate"] = folder
        case "another key":
            replace(tls["key"], authority.issue().key)
        case "no certificate":
            replace(tls["certificate"], b"hello")
        case "locked key":
            authority.issue(password=b"secret").write(folder)
        case "no authority":
            tls["client_ca"] = replace(folder / "ca.crt", b"hello")
    return tls


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("no key", r"tls\.key"),
        ("missing file", r"absent\.key cannot be read: No such file"),
        ("folder", "cannot be read: Is a directory"),
        ("another key", "are not a certificate and its key"),
        ("no certificate", "are not a certificate and its key"),
        ("locked key", "are not a certificate and its key"),
        ("no authority", r"ca\.crt has no certificates of authorities"),
    ],
)
def test_a_server_does_not_start_with_files_that_nobody_could_connect_to(
    tmp_path: Path, mistake: str, message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        Settings(tls=spoil(mistake, tmp_path))


def test_tls_is_set_by_the_environment(tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = authority.issue().write(tmp_path)
    monkeypatch.setenv("DAMOSERVE_TLS__CERTIFICATE", str(paths["certificate"]))
    monkeypatch.setenv("DAMOSERVE_TLS__KEY", str(paths["key"]))
    tls = Settings().tls
    assert tls is not None
    assert (tls.certificate, tls.key, tls.client_ca) == (paths["certificate"], paths["key"], None)
