"""Both clients against a real gRPC server with canned answers; every test runs for the sync and the async client."""

import asyncio
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import grpc
import numpy as np
import pytest
from PIL import ExifTags, Image

from damoserve.v1 import detection_pb2 as pb
from damoserve_client import (
    AsyncClient,
    Cancelled,
    Client,
    DeadlineExceeded,
    InvalidArray,
    InvalidImage,
    NoAnswer,
    Unavailable,
)
from damoserve_client.types import Box, Detection, DetectionResult, Timings
from tests.support.fake_server import DETECTIONS, FakeServer, Refusal, refusal

Call = Callable[..., Any]


def call_sync(address: str, method: str, *args: Any, client: dict[str, Any] | None = None, **kwargs: Any) -> Any:
    with Client(address, **(client or {})) as connected:
        return getattr(connected, method)(*args, **kwargs)


def call_async(address: str, method: str, *args: Any, client: dict[str, Any] | None = None, **kwargs: Any) -> Any:
    async def run() -> Any:
        async with AsyncClient(address, **(client or {})) as connected:
            return await getattr(connected, method)(*args, **kwargs)

    return asyncio.run(run())


@pytest.fixture(params=[call_sync, call_async], ids=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Call:
    return request.param  # type: ignore[no-any-return]


def test_detect_returns_what_the_server_said(call: Call, server: FakeServer, smear: bytes) -> None:
    assert call(server.address, "detect", smear, profile="int8") == DetectionResult(
        detections=(
            Detection("RBC", 0, 0.75, Box(40, 30, 100, 90)),
            Detection("WBC", 1, 0.5, Box(120, 40, 180, 110)),
            Detection("RBC", 0, 0.25, Box(10, 120, 50, 140)),
        ),
        image_size=(200, 150),
        model="blood-cells",
        model_version=1,
        profile="int8",
        selection_reason="requested",
        batch_size=4,
        timings=Timings(
            decode=0.001,
            queue=0.002,
            inference=0.03,
            postprocess=0.004,
            total=0.038,
            decode_wait=0.0001,
            batch_wait=0.0002,
            respond=0.0007,
        ),
    )


def test_the_options_of_detect_arrive(call: Call, server: FakeServer, smear: bytes) -> None:
    call(
        server.address,
        "detect",
        smear,
        model="blood-cells",
        tier="balanced",
        budget=0.25,
        min_accuracy=0.5,
        score_threshold=0.0,
        max_detections=7,
        priority=2,
    )
    expected = pb.DetectRequest(
        image=pb.Image(content=smear),
        model="blood-cells",
        latency_tier=pb.LATENCY_TIER_BALANCED,
        min_accuracy=0.5,
        score_threshold=0.0,
        max_detections=7,
        priority=2,
    )
    expected.latency_budget.FromMilliseconds(250)
    assert server.service.requests == [expected]


def test_options_left_out_or_none_are_not_set(call: Call, server: FakeServer, smear: bytes) -> None:
    call(server.address, "detect", smear)
    call(server.address, "detect", smear, model=None, profile=None, tier=None, budget=None, score_threshold=None)
    assert server.service.requests == [pb.DetectRequest(image=pb.Image(content=smear))] * 2


@pytest.mark.parametrize("as_type", [str, Path])
def test_an_image_may_be_a_path(
    call: Call, server: FakeServer, smear_file: Path, as_type: Callable[[Path], str | Path]
) -> None:
    assert call(server.address, "detect", as_type(smear_file)).image_size == (200, 150)


def test_wrong_keywords_never_reach_the_server(call: Call, server: FakeServer, smear: bytes) -> None:
    with pytest.raises(TypeError, match="profil"):
        call(server.address, "detect", smear, profil="int8")
    with pytest.raises(TypeError, match="it takes budget, max_detections, min_accuracy, model, priority, profile, "):
        call(server.address, "detect", smear, profil="int8")
    for tier in ("fast", "REALTIME", "", 3):
        with pytest.raises(ValueError, match=f"tier is {tier!r}; it must be one of 'realtime', 'balanced', 'accurate'"):
            call(server.address, "detect", smear, tier=tier)
    with pytest.raises(FileNotFoundError):
        call(server.address, "detect", "no/such/file.png")
    assert server.service.requests == []


def sent_to(server: FakeServer) -> Image.Image:
    """The picture in the last request."""
    picture = Image.open(io.BytesIO(server.service.requests[-1].image.content))
    picture.load()
    return picture


class TestPixels:
    """Arrays and other pictures in memory, of 3 x 2 pixels."""

    PIXELS = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)

    class Foreign:
        """An array of another library: no buffer, no `dtype`."""

        __array_interface__: ClassVar = {"shape": (2, 3, 3), "typestr": "|u1", "version": 3}

        def tobytes(self) -> bytes:
            return TestPixels.PIXELS.tobytes()

    @pytest.mark.parametrize(
        "source",
        [
            PIXELS,
            np.asfortranarray(PIXELS),
            np.ascontiguousarray(PIXELS[..., ::-1])[..., ::-1],  # OpenCV's order, turned
            np.zeros((4, 6, 3), np.uint8)[::2, ::2] + PIXELS,
            PIXELS.data,
            Foreign(),
            Image.fromarray(PIXELS),
        ],
        ids=["array", "by column", "turned", "slice", "memoryview", "foreign", "Pillow"],
    )
    def test_arrive_as_they_are(self, call: Call, server: FakeServer, source: Any) -> None:
        assert call(server.address, "detect", source).image_size == (3, 2)
        sent = sent_to(server)
        assert sent.mode == "RGB"
        assert np.array_equal(np.asarray(sent), self.PIXELS)

    def test_of_many_megabytes_are_packed_and_lose_nothing(self, call: Call, server: FakeServer) -> None:
        large = np.zeros((2000, 3000, 3), np.uint8)
        large[::7, ::5] = 200
        assert call(server.address, "detect", large).image_size == (3000, 2000)
        sent = sent_to(server)
        assert sent.format == "PNG"
        assert np.array_equal(np.asarray(sent), large)

    def test_of_a_pillow_image_are_sent_as_displayed(self, call: Call, server: FakeServer) -> None:
        lying = Image.fromarray(self.PIXELS)
        lying.getexif()[ExifTags.Base.Orientation] = 6
        assert call(server.address, "detect", lying).image_size == (2, 3)
        assert call(server.address, "detect", Image.new("RGBA", (5, 4))).image_size == (5, 4)

    @pytest.mark.parametrize(
        ("array", "what"),
        [
            (PIXELS.astype(np.float32), r"float32 \[2, 3, 3\]"),
            (PIXELS.astype(np.int8), r"int8 \[2, 3, 3\]"),
            (PIXELS[..., 0], r"uint8 \[2, 3\]"),
            (np.zeros((3, 4, 5), np.uint8), r"uint8 \[3, 4, 5\]"),
            (np.zeros((2, 3, 4), np.uint8), r"uint8 \[2, 3, 4\]"),
            (np.zeros((1, 2, 3, 3), np.uint8), r"uint8 \[1, 2, 3, 3\]"),
            (np.zeros((0, 3, 3), np.uint8), r"uint8 \[0, 3, 3\]"),
            (np.frombuffer(b"a file", np.uint8), r"uint8 \[6\]; of an encoded file give the bytes"),
            (PIXELS.astype(np.int32).data, r"format 'i' \[2, 3, 3\]"),
        ],
    )
    def test_of_another_kind_are_refused(self, call: Call, server: FakeServer, array: Any, what: str) -> None:
        expected = f"^an array must hold RGB pixels, uint8 \\[height, width, 3\\]; this one is {what}"
        with pytest.raises(InvalidArray, match=expected) as raised:
            call(server.address, "detect", array)
        assert "BGR" in raised.value.advice
        assert server.service.requests == []

    def test_the_content_of_a_file_may_be_any_bytes(self, call: Call, server: FakeServer, smear: bytes) -> None:
        for source in (bytearray(smear), memoryview(smear)):
            call(server.address, "detect", source)
            assert server.service.requests[-1].image.content == smear

    def test_what_is_no_image_at_all_is_a_wrong_type(self, call: Call, server: FakeServer) -> None:
        with pytest.raises(TypeError, match=r"^an image is the content or .* not list"):
            call(server.address, "detect", [[0, 0, 0]])


def test_profiles(call: Call, server: FakeServer) -> None:
    fp32, int8, pruned = call(server.address, "profiles", "blood-cells")
    assert server.service.requests == [pb.ListProfilesRequest(model="blood-cells")]
    assert (fp32.profile, fp32.active, int8.profile, int8.active) == ("fp32", True, "int8", True)
    assert (pruned.active, pruned.error) == (False, "wrong hash")
    assert (fp32.average_precision, fp32.average_precision_50, fp32.validation_image_count) == (0.625, 0.875, 87)
    assert (fp32.model_bytes, fp32.parameter_count, fp32.mac_count) == (2_500_000, 2_200_000, 1_500_000_000)
    assert (fp32.expected_latency, fp32.input_size) == (0.012, (416, 352))


def test_profile_is_one_of_profiles(call: Call, server: FakeServer) -> None:
    assert call(server.address, "profile", "int8") == call(server.address, "profiles")[1]


@pytest.mark.parametrize(("method", "argument"), [("detect", b""), ("profiles", None), ("profile", "int8")])
def test_every_call_has_a_deadline(call: Call, server: FakeServer, method: str, argument: Any, smear: bytes) -> None:
    argument = smear if method == "detect" else argument
    call(server.address, method, argument)
    call(server.address, method, argument, client={"timeout": 5000.0})
    call(server.address, method, argument, client={"timeout": 5000.0}, timeout=2000.0)
    default, of_client, of_call = server.service.deadlines
    # On the wire a timeout has few digits and is rounded up.
    assert 0 < default < 11
    assert 2200 < of_client < 5500
    assert 11 < of_call < 2200


def test_a_call_ends_at_its_deadline(call: Call, server: FakeServer, smear: bytes) -> None:
    server.service.gate.clear()
    with pytest.raises(DeadlineExceeded) as raised:
        call(server.address, "detect", smear, timeout=0.05)
    assert raised.value.reason == ""


def test_unavailable_is_retried_even_for_a_large_image(call: Call, server: FakeServer, smear: bytes) -> None:
    server.service.refusals += [Refusal(grpc.StatusCode.UNAVAILABLE)] * 2
    photo = smear + bytes(2_000_000)  # what follows the end of a PNG is ignored
    assert call(server.address, "detect", photo).image_size == (200, 150)
    assert len(server.service.requests) == 3


def test_retries_come_to_an_end(call: Call, server: FakeServer) -> None:
    server.service.refusals += [Refusal(grpc.StatusCode.UNAVAILABLE)] * 10
    with pytest.raises(Unavailable):
        call(server.address, "profiles")
    assert len(server.service.requests) == 4


@pytest.mark.parametrize("code", [each for each in grpc.StatusCode if each.name not in ("OK", "UNAVAILABLE")])
def test_nothing_else_is_retried(call: Call, server: FakeServer, code: grpc.StatusCode) -> None:
    server.service.refusals.append(Refusal(code))
    with pytest.raises(Exception, match=code.name):
        call(server.address, "profiles")
    assert len(server.service.requests) == 1


def test_a_message_above_the_servers_limit_is_an_invalid_image(call: Call, server: FakeServer) -> None:
    with pytest.raises(InvalidImage, match=r"^the request has 50000\d\d bytes; the server accepts at most 4194304 \["):
        call(server.address, "detect", bytes(5_000_000))


def test_no_server(call: Call, unused_address: str) -> None:
    with pytest.raises(Unavailable):
        call(unused_address, "profiles")
    with pytest.raises(DeadlineExceeded):
        call(unused_address, "wait_until_ready", 0.05)


class TestSilence:
    """No answer within the timeout: of a server, or of nobody."""

    def test_of_an_address_is_not_called_slow(self, call: Call, silent_address: str) -> None:
        expected = rf"^nothing answered at {silent_address} within 0\.2 s \(is it a damoserve server\?\)"
        with pytest.raises(NoAnswer, match=expected) as raised:
            call(silent_address, "profiles", timeout=0.2)
        assert "Allow more time" not in raised.value.advice
        with pytest.raises(NoAnswer, match=expected):
            call(silent_address, "profiles", client={"timeout": 0.2})

    def test_of_a_server_is_no_answer_in_time(self, call: Call, server: FakeServer) -> None:
        server.service.gate.clear()
        with pytest.raises(DeadlineExceeded, match=f"^no answer came from {server.address} within 2 s") as raised:
            call(server.address, "profiles", timeout=2.0)
        assert type(raised.value) is DeadlineExceeded
        assert "Allow more time" in raised.value.advice

    def test_what_a_server_says_of_a_deadline_is_left_as_it_is(self, call: Call, server: FakeServer) -> None:
        server.service.refusals.append(refusal(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_UNREACHABLE"))
        with pytest.raises(DeadlineExceeded, match=r"^no \[") as raised:
            call(server.address, "profiles")
        assert (type(raised.value), raised.value.reason) == (DeadlineExceeded, "DEADLINE_UNREACHABLE")


def test_a_proxy_is_not_asked_for_this_machine(
    call: Call, server: FakeServer, unused_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://{unused_address}")
    assert call(server.address, "profile", "int8").active


def test_wait_until_ready_survives_a_server_that_starts_later(call: Call, unused_address: str) -> None:
    with ThreadPoolExecutor(1) as pool:
        ready = pool.submit(call, unused_address, "wait_until_ready", 30.0)
        with FakeServer(int(unused_address.rpartition(":")[2])):
            ready.result()


def test_credentials_are_used(call: Call, smear: bytes) -> None:
    with FakeServer(credentials=grpc.local_server_credentials()) as server:
        secure = {"credentials": grpc.local_channel_credentials()}
        assert len(call(server.address, "detect", smear, client=secure).detections) == len(DETECTIONS)


@pytest.mark.parametrize(("method", "argument"), [("detect", b""), ("profiles", None), ("profile", "int8")])
def test_every_call_carries_the_token(call: Call, server: FakeServer, method: str, argument: Any, smear: bytes) -> None:
    argument = smear if method == "detect" else argument
    call(server.address, method, argument)
    call(server.address, method, argument, client={"token": "abc"})
    assert server.service.tokens == [None, "Bearer abc"]


def test_a_token_goes_over_tls(call: Call) -> None:
    with FakeServer(credentials=grpc.local_server_credentials()) as server:
        call(server.address, "profiles", client={"credentials": grpc.local_channel_credentials(), "token": "abc"})
        assert server.service.tokens == ["Bearer abc"]


@pytest.mark.parametrize("host", ["gpu.example", "192.0.2.1", "127.0.0.1.evil.example", "[2001:db8::1]", "dns:///gpu"])
def test_a_token_never_leaves_this_machine_in_plain_text(call: Call, host: str) -> None:
    with pytest.raises(ValueError, match="plain text") as raised:
        call(f"{host}:50051", "profiles", client={"token": "s3cret"})
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize("token", ["s3cret\n", "s3crét"])
def test_a_token_that_no_header_can_hold_is_refused(call: Call, server: FakeServer, token: str) -> None:
    with pytest.raises(ValueError, match="one line of ASCII"):
        call(server.address, "profiles", client={"token": token})


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.8.8", "[::1]"])
def test_a_token_may_go_to_this_machine_in_plain_text(host: str) -> None:
    Client(f"{host}:50051", token="abc").close()


def test_closing_the_client_cancels_its_calls(server: FakeServer) -> None:
    server.service.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        client = Client(server.address)
        running = pool.submit(client.profiles)
        server.service.arrived.wait()
        client.close()
        with pytest.raises(Cancelled):
            running.result()
