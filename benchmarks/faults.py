"""What may go wrong while sixteen callers are served: no answer may be wrong, and no call may go without an end.

    python -m benchmarks.faults [SCENARIO ...] [--json FILE]

Each scenario has a server of its own in another process, and the bundled model. Every call has to end with the right
detections or with one of the codes that the scenario may cause. Exit code 1 if one does not, or if the fault did not
have its effect.
"""

import asyncio
import shutil
import signal
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.callers import Callers, crops
from benchmarks.engines import Switches
from benchmarks.serving import MODEL, NO_PROXY, Server, copy_bundled, end_of, made_server, real_server, report
from damoserve.v1 import admin_pb2, admin_pb2_grpc
from damoserve.v1 import detection_pb2 as pb
from damoserve.v1 import detection_pb2_grpc as pb_grpc
from tests.support.authority import Authority, replace

CALLERS = 16
PATIENCE = 60.0
VANISHING = 4
ROTATIONS = 3
HANG_PATIENCE = 3.0
GRACE = 1.0
OWN_CONNECTION = ("grpc.use_local_subchannel_pool", 1)


@dataclass
class Result:
    """What the callers saw; `may` has the ends that the fault may cause besides OK."""

    callers: Callers
    may: frozenset[str] = frozenset()
    effects: dict[str, bool] = field(default_factory=dict)
    """What the fault has to bring about, and whether it did."""

    def wrong(self) -> list[str]:
        ends = [f"{count} x {end}" for end, count in self.callers.ends.items() if end not in {"OK", *self.may}]
        answers = [f"{self.callers.wrong} wrong answers"] * bool(self.callers.wrong)
        lost = [f"{self.callers.lost} lost calls"] * bool(self.callers.lost)
        return ends + answers + lost + [f"not so: {effect}" for effect, so in self.effects.items() if not so]


Scenario = Callable[[Path], Coroutine[Any, Any, Result]]


def _connect(server: Server) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(server.address, (*NO_PROXY, OWN_CONNECTION))


async def _admin(server: Server, method: str, request: Any) -> str:
    """How the operation ended."""
    async with grpc.aio.insecure_channel(server.admin, NO_PROXY) as channel:
        try:
            await getattr(admin_pb2_grpc.AdminServiceStub(channel), method)(request, timeout=PATIENCE)
        except grpc.aio.AioRpcError as error:
            return end_of(error)
    return "OK"


async def reload_good(folder: Path) -> Result:
    with real_server(repository=copy_bundled(folder, versions=(1, 2)), default_deadline_seconds=30) as (server, _):
        await _admin(server, "ReloadModel", admin_pb2.ReloadModelRequest(model=MODEL, version=1))
        async with Callers(lambda: _connect(server), CALLERS) as callers:
            ended = await _admin(server, "ReloadModel", admin_pb2.ReloadModelRequest(model=MODEL, version=2))
            before = callers.versions[2]
            await callers.more()
    effects = {"the reload succeeded": ended == "OK", "the new version serves": callers.versions[2] > before}
    return Result(callers, effects=effects | {"the old version served": callers.versions[1] > 0})


async def reload_corrupt(folder: Path) -> Result:
    with real_server(repository=copy_bundled(folder)) as (server, _):
        bad = Path(shutil.copytree(folder / MODEL / "1", folder / MODEL / "2"))
        for manifest in bad.glob("*/manifest.json"):
            manifest.write_text(manifest.read_text().replace('"version": 1', '"version": 2'))
        model = bad / "pruned" / "model.onnx"
        content = bytearray(model.read_bytes())
        content[len(content) // 2] ^= 1
        model.write_bytes(content)
        async with Callers(lambda: _connect(server), CALLERS) as callers:
            ended = await _admin(server, "ReloadModel", admin_pb2.ReloadModelRequest(model=MODEL, version=2))
            await callers.more()
    effects = {"the reload was refused": ended == "FAILED_PRECONDITION VERSION_REFUSED"}
    return Result(callers, effects=effects | {"the old version serves": set(callers.versions) == {1}})


async def unload_busy(folder: Path) -> Result:
    refused = "FAILED_PRECONDITION PROFILE_UNAVAILABLE"
    with real_server(repository=copy_bundled(folder)) as (server, _):
        async with Callers(lambda: _connect(server), CALLERS) as callers:
            request = admin_pb2.UnloadProfileRequest(model=MODEL, profile="int8")
            ended = await _admin(server, "UnloadProfile", request)
            await callers.more()
    effects = {"it was unloaded": ended == "OK", "its requests are refused": callers.ends[refused] > 0}
    return Result(callers, frozenset({refused}), effects)


async def sigterm(folder: Path) -> Result:
    with real_server(grace_seconds=GRACE) as (server, process):
        async with _connect(server) as channel, Callers(lambda: _connect(server), CALLERS) as callers:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            states = aiter(watch)
            await anext(states)
            process.send_signal(signal.SIGTERM)
            said = await anext(states)
            served = callers.ends["OK"]
            await callers.more(1)
            served = callers.ends["OK"] - served
            code = await asyncio.to_thread(process.wait, PATIENCE)
    effects = {"it said NOT_SERVING": said.status == health_pb2.HealthCheckResponse.NOT_SERVING}
    effects |= {"it served on meanwhile": served > 0, "it ended with 0": code == 0}
    return Result(callers, frozenset({"UNAVAILABLE SHUTTING_DOWN", "UNAVAILABLE"}), effects)


@contextmanager
def _switched(folder: Path, **settings: Any) -> Iterator[tuple[Server, Switches]]:
    switches = Switches(folder)
    with made_server({"repository": copy_bundled(folder / "repository")} | settings, switches) as server:
        yield server, switches


async def hang(folder: Path) -> Result:
    with _switched(folder, workers=2, worker_timeout_seconds=HANG_PATIENCE) as (server, switches):
        async with Callers(lambda: _connect(server), CALLERS) as callers:
            switches.arm("hang")
            async with asyncio.timeout(PATIENCE):
                while not (restarts := server.samples().sum("damoserve_worker_restarts_total")):
                    await callers.more(1)
                while (workers := server.samples().sum("damoserve_workers")) < 2:
                    await callers.more(1)
            await callers.more()
    effects = {"one worker was replaced": restarts == 1, "all workers work again": workers == 2}
    effects["its requests were told"] = callers.ends["UNAVAILABLE WORKERS_LOST"] > 0
    # Two workers do the work of 16 callers; while one hangs some of the accepted cannot be in time.
    return Result(callers, frozenset({"UNAVAILABLE WORKERS_LOST"}), effects)


async def engine_raises(folder: Path) -> Result:
    with _switched(folder) as (server, switches):
        async with Callers(lambda: _connect(server), CALLERS) as callers:
            for _ in range(5):
                switches.arm("raise")
                await callers.more(2)
    effects = {"its requests were told": 5 <= callers.ends["INTERNAL INTERNAL"] <= 5 * 4}
    return Result(callers, frozenset({"INTERNAL INTERNAL"}), effects)


async def client_vanishes(folder: Path) -> Result:
    with real_server() as (server, _):
        async with Callers(lambda: _connect(server), CALLERS) as callers:
            vanished = 0
            for _ in range(VANISHING):
                vanished += await asyncio.to_thread(_vanish, server.address)
                await callers.more(1)
        async with asyncio.timeout(PATIENCE):
            while leased := server.samples().sum("damoserve_pool_slots", state="leased"):
                await asyncio.sleep(0.1)
            cut = {"grpc_method": "DetectStream", "grpc_code": "CANCELLED"}
            while server.samples().sum("grpc_server_handled_total", **cut) < vanished:
                await asyncio.sleep(0.1)
    return Result(callers, effects={"all memory came back": leased == 0, "streams were open": vanished == VANISHING})


def _vanish(address: str) -> bool:
    """A client in a process of its own that is killed in the middle of a stream. False if it never got so far."""
    spawn = get_context("spawn")
    ours, theirs = spawn.Pipe()
    client = spawn.Process(target=_stream, args=(address, theirs), daemon=True)
    client.start()
    theirs.close()
    arrived = ours.poll(PATIENCE) and client.is_alive()
    client.kill()
    client.join()
    return arrived


def _stream(address: str, pipe: Connection) -> None:
    image = crops(1)[0]

    async def frames() -> AsyncIterator[pb.DetectStreamRequest]:
        yield pb.DetectStreamRequest(options=pb.StreamOptions())
        for number in range(10_000):
            yield pb.DetectStreamRequest(frame=pb.Frame(id=number, image=pb.Image(content=image)))

    async def run() -> None:
        async with grpc.aio.insecure_channel(address, NO_PROXY) as channel:
            async for answer in pb_grpc.DetectionServiceStub(channel).DetectStream(frames()):
                if answer.frame_id == 3:
                    pipe.send(True)

    asyncio.run(run())


async def certificate_rotation(folder: Path) -> Result:
    authority = Authority()
    paths = authority.issue().write(folder)
    trusted = replace(folder / "ca.crt", authority.certificate).read_bytes()
    tls = {"tls__certificate": paths["certificate"], "tls__key": paths["key"]}
    with real_server(**tls) as (server, _):
        port = int(server.address.rpartition(":")[2])

        def connect() -> grpc.aio.Channel:
            credentials = grpc.ssl_channel_credentials(trusted)
            return grpc.aio.secure_channel(f"localhost:{port}", credentials, (*NO_PROXY, OWN_CONNECTION))

        taken = 0
        async with Callers(connect, CALLERS) as callers:
            for _ in range(ROTATIONS):
                pair = authority.issue()
                pair.write(folder)
                await callers.more(5)
                shown = await asyncio.to_thread(ssl.get_server_certificate, ("localhost", port), timeout=PATIENCE)
                taken += shown.encode() == pair.certificate
    return Result(callers, effects={f"new connections got each new certificate ({taken})": taken == ROTATIONS})


SCENARIOS: dict[str, Scenario] = {
    "reload of a good version": reload_good,
    "reload of a corrupt version": reload_corrupt,
    "unload of a busy profile": unload_busy,
    "SIGTERM": sigterm,
    "a worker hangs": hang,
    "an engine raises": engine_raises,
    "a client vanishes mid-stream": client_vanishes,
    "certificates rotate": certificate_rotation,
}


def main(
    chosen: Annotated[list[str] | None, typer.Argument(help="Parts of names of scenarios. Default: all.")] = None,
    file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """Put every fault to a server under load, and print how all calls ended."""
    unknown = [part for part in chosen or () if not any(part in name for name in SCENARIOS)]
    if unknown:
        raise typer.BadParameter(f"no scenario is called {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")
    table: list[tuple[object, ...]] = [("fault", "calls", "OK", "wrong", "lost", "other ends", "verdict")]
    figures: dict[str, Any] = {}
    for name, scenario in SCENARIOS.items():
        if chosen and not any(part in name for part in chosen):
            continue
        with tempfile.TemporaryDirectory() as folder:
            result = asyncio.run(scenario(Path(folder)))
        seen, wrong = result.callers, result.wrong()
        others = {end: count for end, count in seen.ends.items() if end != "OK"}
        said = ", ".join(f"{count} {end}" for end, count in others.items())
        table.append(
            (name, seen.ends.total(), seen.ends["OK"], seen.wrong, seen.lost, said, "; ".join(wrong) or "as it should")
        )
        figures[name] = {"ends": seen.ends, "wrong": seen.wrong, "lost": seen.lost, "faults": wrong}
    report(figures, table, file)
    raise typer.Exit(1 if any(found["faults"] for found in figures.values()) else 0)


if __name__ == "__main__":
    typer.run(main)
