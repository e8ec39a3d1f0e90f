"""Streams of both clients against a real gRPC server with canned answers."""

import asyncio
import io
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from damoserve.v1 import detection_pb2 as pb
from damoserve_client import (
    AsyncClient,
    Client,
    Frame,
    FrameAnswer,
    InvalidArray,
    InvalidImage,
    NoAnswer,
    Overloaded,
    Unavailable,
)
from tests.support.fake_server import DETECTIONS, REQUEST_ID, FakeServer, refusal

Answers = tuple[list[FrameAnswer], BaseException | None]
Stream = Callable[..., Answers]


def stream_sync(address: str, frames: Iterable[Any], **options: Any) -> Answers:
    answers: list[FrameAnswer] = []
    try:
        with Client(address) as client:
            answers.extend(client.stream(frames, **options))
    except Exception as error:
        return answers, error
    return answers, None


def stream_async(address: str, frames: Iterable[Any], **options: Any) -> Answers:
    answers: list[FrameAnswer] = []

    async def run() -> None:
        async with AsyncClient(address) as client:
            async for answer in client.stream(frames, **options):
                answers.append(answer)

    try:
        asyncio.run(run())
    except Exception as error:
        return answers, error
    return answers, None


@pytest.fixture(params=[stream_sync, stream_async], ids=["sync", "async"])
def stream(request: pytest.FixtureRequest) -> Stream:
    return request.param  # type: ignore[no-any-return]


def test_answers_come_in_order_with_results_errors_and_drops(stream: Stream, server: FakeServer, smear: bytes) -> None:
    answers, error = stream(server.address, [smear, b"no image", Frame(b"", id=77), smear])
    assert error is None
    assert [answer.frame_id for answer in answers] == [0, 1, 77, 3]
    good, bad, dropped, _ = answers
    assert good.result is not None
    assert len(good.result.detections) == len(DETECTIONS)
    assert (good.error, good.dropped) == (None, None)
    assert isinstance(bad.error, InvalidImage)
    assert (bad.error.reason, bad.error.request_id) == ("IMAGE_UNDECODABLE", REQUEST_ID)
    assert dropped == FrameAnswer(77, dropped="client_behind")


def test_a_frame_keeps_the_id_that_it_was_given_even_zero(stream: Stream, server: FakeServer, smear: bytes) -> None:
    answers, error = stream(server.address, [smear, Frame(smear, id=0), Frame(smear, id=2**64 - 1), smear])
    assert error is None
    assert [answer.frame_id for answer in answers] == [0, 0, 2**64 - 1, 3]


def test_the_options_come_first_and_budgets_with_their_frames(
    stream: Stream, server: FakeServer, smear: bytes, smear_file: Path
) -> None:
    frames = [Frame(smear_file, budget=0.05), smear]
    stream(server.address, frames, tier="realtime", budget=0.25, score_threshold=0.0, on_overload="drop_oldest")
    options, first, second = server.service.requests
    expected = pb.StreamOptions(
        latency_tier=pb.LATENCY_TIER_REALTIME, score_threshold=0.0, on_overload=pb.StreamOptions.OVERLOAD_DROP_OLDEST
    )
    expected.latency_budget.FromMilliseconds(250)
    assert options == pb.DetectStreamRequest(options=expected)
    assert (first.frame.image.content, second.frame.image.content) == (smear, smear)
    assert first.frame.latency_budget.ToMilliseconds() == 50
    assert not second.frame.HasField("latency_budget")


def test_frames_may_be_pixels(stream: Stream, server: FakeServer) -> None:
    pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    answers, error = stream(server.address, [pixels, Frame(pixels, id=9), pixels[..., 0]])
    assert [answer.frame_id for answer in answers if answer.result] == [0, 9]
    assert isinstance(error, InvalidArray)
    with Image.open(io.BytesIO(server.service.requests[1].frame.image.content)) as sent:
        assert np.array_equal(np.asarray(sent), pixels)


def test_a_silent_address_is_not_called_slow(stream: Stream, silent_address: str) -> None:
    assert isinstance(stream(silent_address, [], timeout=0.2)[1], NoAnswer)


def test_wrong_keywords_are_refused_before_anything_is_sent(server: FakeServer) -> None:
    with Client(server.address) as client:
        with pytest.raises(TypeError, match="image"):
            client.stream([], image=b"")  # type: ignore[call-arg]
        with pytest.raises(ValueError, match="on_overload is 'skip'; it must be one of 'wait', 'drop_oldest'"):
            client.stream([], on_overload="skip")  # type: ignore[arg-type]
    assert server.service.requests == []


async def test_every_frame_says_how_many_answers_were_taken(server: FakeServer, smear: bytes) -> None:
    taken: list[FrameAnswer] = []
    more = asyncio.Semaphore(1)

    async def frames() -> Any:
        for _ in range(3):
            await more.acquire()
            yield smear

    async with AsyncClient(server.address) as client:
        async for answer in client.stream(frames()):
            taken.append(answer)
            more.release()
    assert [request.frame.answers_taken for request in server.service.requests[1:]] == [0, 1, 2]


def test_what_the_frames_raise_comes_after_the_answers_before_it(
    stream: Stream, server: FakeServer, smear: bytes
) -> None:
    def frames() -> Iterator[bytes]:
        yield smear
        raise ZeroDivisionError("camera")

    answers, error = stream(server.address, frames())
    assert len(answers) == 1
    assert isinstance(error, ZeroDivisionError)
    answers, error = stream(server.address, [smear, "no/such/file.png", smear])
    assert len(answers) == 1
    assert isinstance(error, FileNotFoundError)


def test_a_stream_that_fails_raises_after_its_answers(stream: Stream, server: FakeServer, smear: bytes) -> None:
    server.service.refusals.append(refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_STREAMS", retry_ms=250))
    answers, error = stream(server.address, [smear])
    assert len(answers) == 1
    assert isinstance(error, Overloaded)
    assert (error.retry_after, error.request_id) == (0.25, REQUEST_ID)


def test_no_server(stream: Stream, unused_address: str) -> None:
    assert isinstance(stream(unused_address, [])[1], Unavailable)


def test_closing_the_iterator_ends_the_stream(server: FakeServer, smear: bytes) -> None:
    with ThreadPoolExecutor(1) as pool, Client(server.address) as client:
        ended = pool.submit(server.service.stream_ended.wait)

        def endless() -> Iterator[bytes]:
            while not server.service.stream_ended.is_set():
                yield smear

        with closing(client.stream(endless())) as answers:
            assert next(answers).result is not None
        assert ended.result()
