"""Callers that never pause, and look whether what they get is right."""

import asyncio
import io
from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import grpc
from PIL import Image

from benchmarks.serving import PICTURE, PROFILES, end_of
from damoserve.v1 import detection_pb2 as pb
from damoserve.v1 import detection_pb2_grpc as pb_grpc

TIMEOUT = 10.0
LOST_SECONDS = 30.0
"""A call that has not ended by then, three times its deadline, is lost."""
SURE = 0.05
"""Detections whose score is nearer than this to the threshold may be missing from one of two answers."""
THRESHOLD = 0.5
SAME_IOU = 0.9

Options = dict[str, Any]
Connect = Callable[[], grpc.aio.Channel]
CHOICES: Sequence[Options] = ({}, {"latency_tier": 3}, *({"profile": name} for name in PROFILES))


def crops(count: int) -> list[bytes]:
    """So many different parts of the bundled picture."""
    whole = Image.open(PICTURE).convert("RGB")
    files = []
    for number in range(count):
        left, top = 20 * (number % 8), 60 * (number // 8)
        buffer = io.BytesIO()
        whole.crop((left, top, left + 400, top + 400)).save(buffer, "PNG")
        files.append(buffer.getvalue())
    return files


def agree(one: pb.DetectResponse, other: pb.DetectResponse) -> bool:
    """Whether two answers show the same objects, but for those at the threshold."""
    return _covers(one, other) and _covers(other, one)


def _covers(one: pb.DetectResponse, other: pb.DetectResponse) -> bool:
    sure = [found for found in other.detections if found.score >= THRESHOLD + SURE]
    return all(any(_same(found, match) for match in one.detections) for found in sure)


def _same(one: pb.Detection, other: pb.Detection) -> bool:
    a, b = one.box, other.box
    width = min(a.x_max, b.x_max) - max(a.x_min, b.x_min)
    height = min(a.y_max, b.y_max) - max(a.y_min, b.y_min)
    shared = max(0.0, width) * max(0.0, height)
    areas = sum((box.x_max - box.x_min) * (box.y_max - box.y_min) for box in (a, b))
    return one.label == other.label and shared >= SAME_IOU * (areas - shared)


class Callers:
    """`async with Callers(connect, ...)`: so many callers, each with a picture and a connection of its own.

    The right answers are asked for before, picture by picture and profile by profile, from a server that nobody else
    disturbs: what is looked for is an answer that belongs to another request.
    """

    def __init__(self, connect: Connect, count: int = 16, choices: Sequence[Options] = CHOICES) -> None:
        self._connect = connect
        self._choices = choices
        self._pictures = crops(count)
        self._right: dict[tuple[int, str], pb.DetectResponse] = {}
        self._stop = False
        self.ends: Counter[str] = Counter()
        self.versions: Counter[int] = Counter()
        self.wrong = 0
        self.lost = 0

    async def __aenter__(self) -> Self:
        async with self._connect() as channel:
            for number in range(len(self._pictures)):
                for profile in PROFILES:
                    self._right[number, profile] = await self._detect(channel, number, {"profile": profile})
        self._tasks = [asyncio.create_task(self._call(number)) for number in range(len(self._pictures))]
        await self.more()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Lets every caller end the call that it is in."""
        self._stop = True
        await asyncio.gather(*self._tasks)

    async def more(self, rounds: int = 4) -> None:
        """Returns after so many more calls of each caller, on average."""
        wanted = self.ends.total() + rounds * len(self._pictures)
        while self.ends.total() < wanted:
            await asyncio.sleep(0.01)

    async def _call(self, number: int) -> None:
        turn = number
        while not self._stop:
            async with self._connect() as channel:  # a new one now and then: handshakes are part of what may fail
                for _ in range(5):
                    turn += 1
                    await self._once(channel, number, self._choices[turn % len(self._choices)])

    async def _once(self, channel: grpc.aio.Channel, number: int, options: Options) -> None:
        try:
            answer = await asyncio.wait_for(self._detect(channel, number, options), LOST_SECONDS)
        except grpc.aio.AioRpcError as error:
            self.ends[end_of(error)] += 1
            await asyncio.sleep(0.02)  # as any client that is refused; and a dead server refuses quickly
        except TimeoutError:
            self.lost += 1
        else:
            self.ends["OK"] += 1
            self.versions[answer.model_version] += 1
            asked = options.get("profile", answer.profile)
            self.wrong += answer.profile != asked or not agree(self._right[number, answer.profile], answer)

    async def _detect(self, channel: grpc.aio.Channel, number: int, options: Options) -> pb.DetectResponse:
        request = pb.DetectRequest(image=pb.Image(content=self._pictures[number]), **options)
        stub: Any = pb_grpc.DetectionServiceStub(channel)
        answer: pb.DetectResponse = await stub.Detect(request, timeout=TIMEOUT)
        return answer
