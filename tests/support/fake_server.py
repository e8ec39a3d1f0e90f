"""A server with canned answers that speaks the real protocol; run as a script it is a process of its own."""

import argparse
import io
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from PIL import Image, ImageOps

from damoserve.v1 import detection_pb2 as pb
from damoserve.v1 import detection_pb2_grpc as services

REQUEST_ID = "request-7"
DETECTIONS = (
    pb.Detection(label="RBC", label_id=0, score=0.75, box=pb.BoundingBox(x_min=40, y_min=30, x_max=100, y_max=90)),
    pb.Detection(label="WBC", label_id=1, score=0.5, box=pb.BoundingBox(x_min=120, y_min=40, x_max=180, y_max=110)),
    pb.Detection(label="RBC", label_id=0, score=0.25, box=pb.BoundingBox(x_min=10, y_min=120, x_max=50, y_max=140)),
)
PROFILE_OF_TIER = {
    pb.LATENCY_TIER_UNSPECIFIED: "fp32",
    pb.LATENCY_TIER_REALTIME: "int8",
    pb.LATENCY_TIER_BALANCED: "fp32",
    pb.LATENCY_TIER_ACCURATE: "fp32",
}


def milliseconds(value: int) -> Duration:
    return Duration(nanos=value * 1_000_000)


def profile(name: str, state: "pb.Profile.State.ValueType" = pb.Profile.STATE_ACTIVE, error: str = "") -> pb.Profile:
    return pb.Profile(
        model="blood-cells",
        model_version=1,
        profile=name,
        state=state,
        error=error,
        labels=["RBC", "WBC", "Platelets"],
        average_precision=0.625,
        average_precision_50=0.875,
        validation_image_count=87,
        model_bytes=2_500_000,
        parameter_count=2_200_000,
        mac_count=1_500_000_000,
        expected_latency=milliseconds(12),
        input_width_px=416,
        input_height_px=352,
    )


PROFILES = (profile("fp32"), profile("int8"), profile("pruned", pb.Profile.STATE_FAILED, "wrong hash"))


@dataclass(frozen=True)
class Refusal:
    """How a call fails: with a code, and with details if there are any."""

    code: grpc.StatusCode
    message: str = "no"
    details: tuple[Message, ...] = ()

    def status(self) -> status_pb2.Status:
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        for detail in self.details:
            status.details.add().Pack(detail)
        return status

    def abort(self, context: grpc.ServicerContext) -> None:
        status = self.status()
        # Not `abort_with_status`, which replaces all other trailing metadata.
        context.set_trailing_metadata(
            (("x-request-id", REQUEST_ID), ("grpc-status-details-bin", status.SerializeToString()))
        )
        context.abort(self.code, self.message)


def refusal(code: grpc.StatusCode, reason: str, *, domain: str = "damoserve", retry_ms: int | None = None) -> Refusal:
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata={"profile": "int9"})]
    if retry_ms is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay=milliseconds(retry_ms)))
    return Refusal(code, details=tuple(details))


@dataclass
class FakeService(services.DetectionServiceServicer, services.ProfileServiceServicer):
    """Answers every image with the same detections, after it has used up its refusals."""

    detections: tuple[pb.Detection, ...] = DETECTIONS
    profiles: tuple[pb.Profile, ...] = PROFILES
    refusals: list[Refusal] = field(default_factory=list)
    requests: list[Any] = field(default_factory=list)
    deadlines: list[float] = field(default_factory=list)
    tokens: list[str | bytes | None] = field(default_factory=list)
    # Calls wait here.
    gate: threading.Event = field(default_factory=threading.Event)
    arrived: threading.Event = field(default_factory=threading.Event)
    stream_ended: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    def Detect(self, request: pb.DetectRequest, context: grpc.ServicerContext) -> pb.DetectResponse:
        self._receive(request, context)
        try:
            with Image.open(io.BytesIO(request.image.content)) as image:
                width, height = ImageOps.exif_transpose(image).size
        except OSError:
            refusal(grpc.StatusCode.INVALID_ARGUMENT, "IMAGE_UNDECODABLE").abort(context)
        return pb.DetectResponse(
            detections=self.detections,
            image_width_px=width,
            image_height_px=height,
            model="blood-cells",
            model_version=1,
            profile=request.profile or PROFILE_OF_TIER[request.latency_tier],
            selection_reason=(
                pb.SELECTION_REASON_REQUESTED if request.profile else pb.SELECTION_REASON_MOST_ACCURATE_IN_TIME
            ),
            batch_size=4,
            timings=pb.StageTimings(
                decode=milliseconds(1),
                queue=milliseconds(2),
                inference=milliseconds(30),
                postprocess=milliseconds(4),
                total=milliseconds(38),
                decode_wait=Duration(nanos=100_000),
                batch_wait=Duration(nanos=200_000),
                respond=Duration(nanos=700_000),
            ),
        )

    def DetectStream(
        self, request_iterator: Iterator[pb.DetectStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.DetectStreamResponse]:
        """Frames without an image are dropped; those that are no image fail. A refusal comes after the last frame."""
        context.add_callback(self.stream_ended.set)
        self.requests.append(next(request_iterator))
        for request in request_iterator:
            self.requests.append(request)
            frame = request.frame
            if not frame.image.content:
                drop = pb.DetectStreamResponse.DROP_REASON_CLIENT_BEHIND
                yield pb.DetectStreamResponse(frame_id=frame.id, dropped=drop)
            elif frame.image.content.startswith((b"\x89PNG", b"\xff\xd8", b"BM")):
                yield pb.DetectStreamResponse(
                    frame_id=frame.id, result=pb.DetectResponse(profile="int8", detections=self.detections)
                )
            else:
                status = refusal(grpc.StatusCode.INVALID_ARGUMENT, "IMAGE_UNDECODABLE").status()
                status.details.add().Pack(error_details_pb2.RequestInfo(request_id=REQUEST_ID))
                yield pb.DetectStreamResponse(frame_id=frame.id, error=status)
        if self.refusals:
            self.refusals.pop(0).abort(context)

    def ListProfiles(self, request: pb.ListProfilesRequest, context: grpc.ServicerContext) -> pb.ListProfilesResponse:
        self._receive(request, context)
        return pb.ListProfilesResponse(profiles=self.profiles)

    def GetProfile(self, request: pb.GetProfileRequest, context: grpc.ServicerContext) -> pb.Profile:
        self._receive(request, context)
        found = [each for each in self.profiles if each.profile == request.profile]
        if not found:
            refusal(grpc.StatusCode.NOT_FOUND, "PROFILE_NOT_FOUND").abort(context)
        return found[0]

    def _receive(self, request: Message, context: grpc.ServicerContext) -> None:
        self.requests.append(request)
        self.deadlines.append(context.time_remaining())
        self.tokens.append(dict(context.invocation_metadata()).get("authorization"))
        self.arrived.set()
        self.gate.wait()
        if self.refusals:
            self.refusals.pop(0).abort(context)


class FakeServer:
    """The fake service behind a real gRPC server, as long as the context lasts."""

    def __init__(self, port: int = 0, credentials: grpc.ServerCredentials | None = None) -> None:
        self.service = FakeService()
        self._server = grpc.server(ThreadPoolExecutor(4))
        services.add_DetectionServiceServicer_to_server(self.service, self._server)
        services.add_ProfileServiceServicer_to_server(self.service, self._server)
        address = f"127.0.0.1:{port}"
        self.port = (
            self._server.add_secure_port(address, credentials)
            if credentials
            else self._server.add_insecure_port(address)
        )
        self.address = f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.service.gate.set()
        self._server.stop(None).wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--metrics-port", type=int, required=True)
    parser.add_argument("--farewell", type=Path, required=True, help="Gets our environment's names at an orderly end.")
    parser.add_argument("--terminate-parent", action="store_true", help="During the first call.")
    arguments = parser.parse_args()
    # Not a handler that sets an event: where the main thread just starts to wait for it, it holds the event's lock.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    server = FakeServer(arguments.port)
    if arguments.terminate_parent:
        server.service.gate.clear()
    with server:
        print(f"serving cells (fp32, int8) on {server.address}, metrics on http://127.0.0.1:0/metrics", flush=True)
        if arguments.terminate_parent:
            server.service.arrived.wait()
            os.kill(os.getppid(), signal.SIGTERM)
            server.service.gate.set()
        signal.sigwait({signal.SIGTERM})
    arguments.farewell.write_text("\n".join(os.environ))
