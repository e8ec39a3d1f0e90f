"""One request: all of its images, or none."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import nullcontext

import grpc

from damoserve.kserve.v2 import inference_pb2 as pb
from damoserve_server.detection.detector import Detector
from damoserve_server.detection.outcomes import RequestAccounting
from damoserve_server.detection.request import DetectionRequest, DetectionResult
from damoserve_server.detection.startup import Startup
from damoserve_server.errors import InvalidRequest, QueueFull, forget_origin
from damoserve_server.kserve.decode import Call, to_call
from damoserve_server.kserve.encode import to_response
from damoserve_server.kserve.statistics import Statistics
from damoserve_server.kserve.targets import Target, find
from damoserve_server.telemetry.records import current


class InferHandler:
    """Answers requests. `unavailable_when_full` gives QueueFull the code that Triton's clients expect."""

    def __init__(
        self, startup: Startup, requests: RequestAccounting, statistics: Statistics, unavailable_when_full: bool
    ) -> None:
        self._startup = startup
        self._requests = requests
        self._statistics = statistics
        self._unavailable_when_full = unavailable_when_full

    async def answer(
        self, request: pb.ModelInferRequest, time_remaining: float | None, places: asyncio.Semaphore
    ) -> pb.ModelInferResponse:
        """`places` bounds the images that are worked on at the same time. Raises any DamoserveError."""
        call = to_call(request, time.monotonic(), time_remaining, self._startup.default_budget)
        with self._requests.answering(call.detections) as results:
            detector = await self._startup.detector(call.deadline)
            try:
                results.extend(await self._by_one_version(call, request.model_version, detector, places))
            except QueueFull as error:
                if self._unavailable_when_full:
                    error.code = grpc.StatusCode.UNAVAILABLE
                raise
            return to_response(request, results, call.outputs)

    async def _by_one_version(
        self, call: Call, version: str, detector: Detector, places: asyncio.Semaphore
    ) -> Sequence[DetectionResult]:
        """All again if another version has taken over between two images: their answer names one."""
        while True:
            target = find(detector.catalogue, call.target, version)
            results = await self._counted(call, detector, target, places)
            if len({result.profile.manifest.version for result in results}) == 1:
                return results

    async def _counted(
        self, call: Call, detector: Detector, target: Target, places: asyncio.Semaphore
    ) -> Sequence[DetectionResult]:
        arrival = call.detections[0].arrival
        try:
            results = await _detect_all(call.detections, detector, places)
        except BaseException:  # cancelled calls count too
            self._statistics.failed(target, time.monotonic() - arrival)
            raise
        self._statistics.succeeded(results, time.monotonic() - arrival)
        return results


async def _detect_all(
    requests: Sequence[DetectionRequest], detector: Detector, places: asyncio.Semaphore
) -> Sequence[DetectionResult]:
    """The first failure withdraws the others."""

    async def detect(number: int, request: DetectionRequest) -> DetectionResult:
        record = current.get()
        async with places:
            try:
                with record.part("image", number, request.arrival) if len(requests) > 1 else nullcontext():
                    return await detector.detect(request)
            except InvalidRequest as error:
                said = _of_image(number, error)
                forget_origin(error)
                raise said from None

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(detect(number, request)) for number, request in enumerate(requests)]
    except BaseExceptionGroup as failures:
        failures.__traceback__ = None  # a frame of the group holds it, and so would keep what the images hold
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


def _of_image(number: int, error: InvalidRequest) -> InvalidRequest:
    return type(error)(f"inputs[0][{number}]", f"image {number}: {error}", **error.details)
