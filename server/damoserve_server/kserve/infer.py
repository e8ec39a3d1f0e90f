"""Answers one request: with the results of all of its images, or with the first error."""

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
from damoserve_server.kserve.targets import Target, find_target
from damoserve_server.telemetry.records import current


class InferHandler:
    """Answers requests and counts what they did in the statistics."""

    def __init__(
        self, startup: Startup, requests: RequestAccounting, statistics: Statistics, unavailable_when_full: bool
    ) -> None:
        """`unavailable_when_full` gives QueueFull the code that Triton's clients expect, UNAVAILABLE."""
        self._startup = startup
        self._requests = requests
        self._statistics = statistics
        self._unavailable_when_full = unavailable_when_full

    async def answer(
        self, request: pb.ModelInferRequest, time_remaining: float | None, permits: asyncio.Semaphore
    ) -> pb.ModelInferResponse:
        """Answers a request. `permits` bounds the images in work at the same time. Raises any DamoserveError."""
        call = to_call(request, time.monotonic(), time_remaining, self._startup.default_budget)
        with self._requests.answering(call.detections) as results:
            detector = await self._startup.detector(call.deadline)
            try:
                results.extend(await self._by_one_version(call, request.model_version, detector, permits))
            except QueueFull as error:
                if self._unavailable_when_full:
                    error.code = grpc.StatusCode.UNAVAILABLE
                raise
            return to_response(request, results, call.outputs)

    async def _by_one_version(
        self, call: Call, version: str, detector: Detector, permits: asyncio.Semaphore
    ) -> Sequence[DetectionResult]:
        """Detects on all images by one version, as the answer names one: again, if another took over in between."""
        while True:
            target = find_target(detector.catalogue, call.target, version)
            results = await self._counted(call, detector, target, permits)
            if len({result.profile.manifest.version for result in results}) == 1:
                return results

    async def _counted(
        self, call: Call, detector: Detector, target: Target, permits: asyncio.Semaphore
    ) -> Sequence[DetectionResult]:
        arrival = call.detections[0].arrival
        try:
            results = await _detect_all(call.detections, detector, permits)
        except BaseException:  # cancelled calls count too
            self._statistics.failed(target, time.monotonic() - arrival)
            raise
        self._statistics.succeeded(results, time.monotonic() - arrival)
        return results


async def _detect_all(
    requests: Sequence[DetectionRequest], detector: Detector, permits: asyncio.Semaphore
) -> Sequence[DetectionResult]:
    """Detects on all images at the same time. The first that fails ends the others, and its error is raised."""

    async def detect(number: int, request: DetectionRequest) -> DetectionResult:
        record = current.get()
        async with permits:
            try:
                with record.part("image", number, request.arrival) if len(requests) > 1 else nullcontext():
                    return await detector.detect(request)
            except InvalidRequest as error:
                numbered = _for_image(number, error)
                forget_origin(error)
                raise numbered from None

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(detect(number, request)) for number, request in enumerate(requests)]
    except BaseExceptionGroup as failures:
        failures.__traceback__ = None  # a frame of the group holds it, and so would keep what the images hold
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


def _for_image(number: int, error: InvalidRequest) -> InvalidRequest:
    return type(error)(f"inputs[0][{number}]", f"image {number}: {error}", **error.details)
