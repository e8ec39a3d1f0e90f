"""Traffic of every kind at once: what is answered, and what ends in every other way that a request can end."""

import asyncio
import io
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image

from damoserve.kserve.v2 import inference_pb2
from damoserve.v1 import admin_pb2, admin_pb2_grpc
from damoserve.v1 import detection_pb2 as pb
from damoserve.v1 import detection_pb2_grpc as pb_grpc
from tests.support.expressions import ROOT

MODEL = "blood-cells"
PROFILES = ("fp32", "int8", "pruned", "int8+pruned")
CHOICES: tuple[dict[str, Any], ...] = (
    *(
        {"latency_tier": tier}
        for tier in (pb.LATENCY_TIER_REALTIME, pb.LATENCY_TIER_BALANCED, pb.LATENCY_TIER_ACCURATE)
    ),
    *({"profile": profile} for profile in PROFILES),
)
TIMEOUT = 20.0
BURST = 24
NO_PROXY = (("grpc.enable_http_proxy", 0),)
INFER = "/inference.GRPCInferenceService/ModelInfer"


def picture(width: int) -> bytes:
    """The bundled picture as a PNG of that many pixels in width."""
    whole = Image.open(ROOT / "docs/images/smear.jpg").convert("RGB")
    buffer = io.BytesIO()
    whole.resize((width, width * whole.height // whole.width)).save(buffer, "PNG")
    return buffer.getvalue()


async def mixed(address: str, admin: str, seconds: float, broken_version: int) -> Counter[str]:
    """All kinds side by side for so long; in between a reload, and one to a version that cannot be loaded.

    The server is to have a queue of less than BURST. Returns the ends by code.
    """
    async with grpc.aio.insecure_channel(address, NO_PROXY) as channel:
        traffic = Traffic(channel)
        async with grpc.aio.insecure_channel(admin, NO_PROXY) as administration:
            await traffic.all_kinds(administration, seconds, broken_version)
        return traffic.ends


class Traffic:
    """Calls over one channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._stub: Any = pb_grpc.DetectionServiceStub(channel)
        self._small, self._large = picture(400), picture(4000)
        self.ends: Counter[str] = Counter()

    async def all_kinds(self, admin: grpc.aio.Channel, seconds: float, broken_version: int) -> None:
        kinds = (self._answered, self._burst, self._hasty, self._leaving, self._invalid, self._stream, self._other)
        end = asyncio.get_running_loop().time() + seconds
        await asyncio.gather(
            *(self._repeat(kind, end) for kind in kinds), self._reloads(admin, seconds, broken_version)
        )

    async def _repeat(self, kind: Callable[[], Awaitable[object]], end: float) -> None:
        while asyncio.get_running_loop().time() < end:
            await kind()
            await asyncio.sleep(0.02)

    async def _detect(self, content: bytes, timeout: float = TIMEOUT, **fields: Any) -> None:
        request = pb.DetectRequest(image=pb.Image(content=content), **fields)
        await self._ended(self._stub.Detect(request, timeout=timeout))

    async def _ended(self, call: Awaitable[object]) -> None:
        try:
            await call
        except grpc.aio.AioRpcError as error:
            self.ends[error.code().name] += 1
        else:
            self.ends["OK"] += 1

    async def _answered(self) -> None:
        for choice in CHOICES:
            await self._detect(self._small, **choice)

    async def _burst(self) -> None:
        """More at once than the queue holds."""
        await asyncio.gather(*(self._detect(self._small, **CHOICES[number % len(CHOICES)]) for number in range(BURST)))
        await asyncio.sleep(0.5)

    async def _hasty(self) -> None:
        """Less time than any profile takes; and less than the image takes to decode."""
        await self._detect(self._small, latency_budget=Duration(nanos=1_000_000))
        await self._detect(
            self._large, latency_budget=Duration(nanos=60_000_000), latency_tier=pb.LATENCY_TIER_REALTIME
        )
        await asyncio.sleep(0.2)

    async def _leaving(self) -> None:
        """The caller leaves before its answer comes."""
        call = self._stub.Detect(pb.DetectRequest(image=pb.Image(content=self._large)), timeout=TIMEOUT)
        await asyncio.sleep(0.02)
        call.cancel()
        self.ends["CANCELLED"] += 1
        await asyncio.sleep(0.1)

    async def _invalid(self) -> None:
        await self._detect(self._small[:1000])
        await self._detect(b"no image")
        await self._detect(b"")
        await self._detect(self._small, profile="none such")
        await asyncio.sleep(0.1)

    async def _stream(self) -> None:
        """Eight frames, and only then a look at the answers."""
        call = self._stub.DetectStream(timeout=TIMEOUT)
        try:
            await call.write(pb.DetectStreamRequest(options=pb.StreamOptions()))
            for number in range(8):
                frame = pb.Frame(id=number, image=pb.Image(content=self._small))
                await call.write(pb.DetectStreamRequest(frame=frame))
            await call.done_writing()
            async for _ in call:
                self.ends["OK"] += 1
        except grpc.aio.AioRpcError as error:
            self.ends[error.code().name] += 1

    async def _other(self) -> None:
        """KServe's protocol, what is served, and the health."""
        infer = self._channel.unary_unary(
            INFER, inference_pb2.ModelInferRequest.SerializeToString, inference_pb2.ModelInferResponse.FromString
        )
        request = inference_pb2.ModelInferRequest(model_name=MODEL)
        tensor = request.inputs.add(name="images", datatype="BYTES", shape=[1])
        tensor.contents.bytes_contents.append(self._small)
        await self._ended(infer(request, timeout=TIMEOUT))
        catalogue: Any = pb_grpc.ProfileServiceStub(self._channel)
        await self._ended(catalogue.ListProfiles(pb.ListProfilesRequest(), timeout=TIMEOUT))
        health: Any = health_pb2_grpc.HealthStub(self._channel)
        await self._ended(health.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT))
        await asyncio.sleep(0.1)

    async def _reloads(self, channel: grpc.aio.Channel, seconds: float, broken_version: int) -> None:
        await asyncio.sleep(seconds / 4)
        admin: Any = admin_pb2_grpc.AdminServiceStub(channel)
        await self._ended(admin.ReloadModel(admin_pb2.ReloadModelRequest(model=MODEL, version=1), timeout=TIMEOUT))
        broken = admin_pb2.ReloadModelRequest(model=MODEL, version=broken_version)
        await self._ended(admin.ReloadModel(broken, timeout=TIMEOUT))
