"""What a server keeps of the versions that it replaces: its memory after every reload, and after every unload.

    python benchmarks/memory.py --reloads 40

The server runs in this process, with the bundled model. Figures are MB of resident memory, this script's included.
"""

import argparse
import asyncio
import resource
from pathlib import Path

import grpc

from damoserve.v1 import admin_pb2 as pb
from damoserve.v1 import admin_pb2_grpc as pb_grpc
from damoserve_server.app import Application
from damoserve_server.configuration.settings import Settings

SETTLING_SECONDS = 1.0
"""What is dropped is given back to the system by a thread of its own."""


async def resident_mb() -> int:
    await asyncio.sleep(SETTLING_SECONDS)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() // 2**20


async def measure(reloads: int, workers: int) -> None:
    settings = Settings(port=0, metrics_port=0, admin_port=0, workers=workers, threads_per_worker=1)
    async with (
        Application(settings) as application,
        grpc.aio.insecure_channel(f"127.0.0.1:{application.admin_port}") as channel,
    ):
        admin = pb_grpc.AdminServiceStub(channel)
        (model,) = (await admin.ListModels(pb.ListModelsRequest())).models
        print("loaded:", await resident_mb())
        print("reloaded:", end="", flush=True)
        for _ in range(reloads):
            await admin.ReloadModel(pb.ReloadModelRequest(model=model.model))
            print("", await resident_mb(), end="", flush=True)
        for profile in model.profiles:
            await admin.UnloadProfile(pb.UnloadProfileRequest(model=model.model, profile=profile.profile))
        print("\nunloaded:", await resident_mb())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reloads", type=int, default=40)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    asyncio.run(measure(options.reloads, options.workers))


if __name__ == "__main__":
    main()
