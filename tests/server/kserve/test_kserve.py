"""Detection over the KServe v2 service, with Triton's own client."""

import asyncio
import queue
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2

from damoserve.v1 import detection_pb2 as pb
from tests.support.pictures import Pictures
from tests.support.server import Serve
from tests.support.timeouts import TIMEOUT
from tests.support.triton_calls import (
    InferenceServerException,
    call,
    files_input,
    infer,
    pixels_input,
    refusal,
    triton,
)
from tests.support.valve import Valve

triton_aio = pytest.importorskip("tritonclient.grpc.aio")

COLOURS = ["red", "lime", "blue", "yellow", "cyan"]
Found = tuple[tuple[int, ...], list[tuple[str, int, float, tuple[float, ...]]]]


def found(result: Any) -> list[Found]:
    """What was found in each image, as `detected` has it."""
    counts, boxes, scores = (result.as_numpy(name) for name in ("count", "boxes", "scores"))
    labels, names, sizes = (result.as_numpy(name) for name in ("labels", "label_names", "image_size"))
    assert boxes.shape[:2] == scores.shape == labels.shape == names.shape
    for row, count in enumerate(counts):
        assert not boxes[row, count:].any()
        assert not scores[row, count:].any()
        assert (labels[row, count:] == -1).all()
        assert (names[row, count:] == b"").all()
    return [
        (
            tuple(size.tolist()),
            [
                (name.decode(), int(label), score, tuple(box))
                for name, label, score, box in zip(
                    names[row, :count],
                    labels[row, :count],
                    scores[row, :count].tolist(),
                    boxes[row, :count].tolist(),
                    strict=True,
                )
            ],
        )
        for row, (count, size) in enumerate(zip(counts, sizes, strict=True))
    ]


def detected(response: pb.DetectResponse) -> Found:
    return (
        (response.image_width_px, response.image_height_px),
        [
            (d.label, d.label_id, d.score, (d.box.x_min, d.box.y_min, d.box.x_max, d.box.y_max))
            for d in response.detections
        ],
    )


def parameters(result: Any) -> dict[str, Any]:
    return {
        name: getattr(value, value.WhichOneof("parameter_choice"))
        for name, value in result.get_response().parameters.items()
    }


@pytest.fixture
def images(pictures: Pictures) -> list[bytes]:
    drawn = [pictures.draw(*COLOURS[start : start + 4], size=(40 + 8 * start, 30)) for start in range(2)]
    return [pictures.encode(image) for image in [*drawn, pictures.draw("red"), pictures.draw("black")]]


async def test_every_image_of_a_request_is_answered_as_detect_answers_it(serve: Serve, images: list[bytes]) -> None:
    async with serve() as server:
        expected = [detected(await server.detect(image, profile="quick")) for image in images]
        flat = await call(server, infer, files_input(images), model="colours/quick")
        column = await call(server, infer, files_input(images, [len(images), 1]), parameters={"profile": "quick"})
    assert [len(objects) for _, objects in expected] == [5, 6, 4, 0]
    assert found(flat) == found(column) == expected
    assert flat.as_numpy("count").tolist() == [5, 6, 4, 0]
    assert parameters(flat) == parameters(column) | {
        name: parameters(flat)[name] for name in ("queue_us", "compute_us", "batch_size")
    }


async def test_pixels_are_answered_like_the_same_image_in_a_file(serve: Serve, pictures: Pictures) -> None:
    drawn = [pictures.draw("red", "lime", "blue", "black", size=(200, 100)), pictures.draw("white", size=(200, 100))]
    async with serve() as server:
        expected = [detected(await server.detect(pictures.encode(image))) for image in drawn]
        result = await call(server, infer, pixels_input(np.stack([np.asarray(image) for image in drawn])))
    assert found(result) == expected


@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (1, 1, 60_000, 3), (1, 60_000, 1, 3)])
async def test_pixels_of_any_size_serve(serve: Serve, shape: tuple[int, int, int, int]) -> None:
    async with serve() as server:
        result = await call(server, infer, pixels_input(np.full(shape, 255, np.uint8)))
    assert result.as_numpy("image_size").tolist() == [[shape[2], shape[1]]]


async def test_no_objects_at_all(serve: Serve, pictures: Pictures) -> None:
    async with serve() as server:
        result = await call(server, infer, files_input([pictures.encode(pictures.draw("black"))] * 2))
    assert result.as_numpy("count").tolist() == [0, 0]
    assert result.as_numpy("boxes").shape == (2, 0, 4)
    assert result.as_numpy("label_names").shape == (2, 0)


async def test_only_the_outputs_that_are_asked_for_come_in_their_order(serve: Serve, images: list[bytes]) -> None:
    async with serve() as server:
        wanted = [triton.InferRequestedOutput(name) for name in ("scores", "count")]
        result = await call(server, infer, files_input(images), outputs=wanted)
    response = result.get_response()
    assert [(output.name, output.datatype) for output in response.outputs] == [("scores", "FP32"), ("count", "INT32")]
    assert len(response.raw_output_contents) == 2


async def test_the_answer_says_who_served_and_how(serve: Serve, pictures: Pictures) -> None:
    async with serve() as server:
        inputs = files_input([pictures.red])
        named = await call(server, infer, inputs, parameters={"profile": "quick"}, request_id="mine")
        chosen = await call(server, infer, inputs, model_version="3", parameters={"latency_tier": "accurate"})
        response, named, chosen = named.get_response(), parameters(named), parameters(chosen)
    assert (response.model_name, response.model_version, response.id) == ("colours", "3", "mine")
    assert (named["profile"], named["selection_reason"], named["batch_size"]) == ("quick", "requested", 1)
    assert named["queue_us"] >= 0
    assert named["compute_us"] > 0
    assert (chosen["profile"], chosen["selection_reason"]) == ("accurate", "most_accurate_in_time")


async def test_parameters_reach_the_detector(serve: Serve, pictures: Pictures) -> None:
    image = pictures.encode(pictures.draw("red", "maroon", "blue", "#200000"))
    async with serve() as server:

        async def scores(**wishes: Any) -> list[float]:
            result = await call(server, infer, files_input([image]), **wishes)
            return [round(score, 2) for score in result.as_numpy("scores")[0].tolist()]

        scored = [
            await scores(priority=1, timeout=5_000_000),
            await scores(parameters={"score_threshold": 0.0}),
            await scores(parameters={"score_threshold": 1}),
            await scores(parameters={"max_detections": 1}),
        ]
        accurate = parameters(await call(server, infer, files_input([image]), parameters={"min_accuracy": 0.6}))
    assert scored == [[1.0, 1.0, 0.5], [1.0, 1.0, 0.5, 0.13], [1.0, 1.0], [1.0]]
    assert accurate["profile"] == "accurate"


async def test_a_timeout_that_cannot_be_kept_is_refused_at_once(serve: Serve, pictures: Pictures, valve: Valve) -> None:
    async with serve(valve.load) as server:
        server.learn(1.0)
        valve.shut()
        outcome = await call(server, refusal, files_input([pictures.red]), timeout=100_000)
        (code, message), runs = outcome, valve.sizes
    assert code == "DEADLINE_EXCEEDED"
    assert "ms are left" in message
    assert runs == []


async def test_triton_aio_client(serve: Serve, images: list[bytes]) -> None:
    async with serve() as server:
        expected = [detected(await server.detect(image, profile="quick")) for image in images]
        address = f"127.0.0.1:{server.application.port}"
        async with triton_aio.InferenceServerClient(address) as client:
            assert await client.is_server_live()
            assert await client.is_model_ready("colours/quick")
            calls = [client.infer("colours/quick", [files_input([image])]) for image in images]
            results = await asyncio.gather(*calls)
    assert [found(result) for result in results] == [[one] for one in expected]


def stream(client: Any, requests: Sequence[dict[str, Any]]) -> list[Any]:
    """Sends all requests over one stream; what came back, in its order."""
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: answers.put(error if result is None else result), stream_timeout=TIMEOUT)
    for request in requests:
        client.async_stream_infer(**request)
    received = [answers.get(timeout=TIMEOUT) for _ in requests]
    client.stop_stream()
    assert answers.empty()
    return received


async def test_a_stream_is_answered_in_order_and_survives_what_fails(serve: Serve, images: list[bytes]) -> None:
    inputs = [files_input([image]) for image in images]
    good = [{"model_name": "colours/quick", "inputs": [one]} for one in inputs]
    bad = {"model_name": "colours", "inputs": [files_input([b"GIF"])]}
    unknown = {"model_name": "nothing", "inputs": inputs[:1]}
    async with serve() as server:
        expected = [detected(await server.detect(image, profile="quick")) for image in images]
        requests = [*good[:2], bad, unknown, *good[2:]] * 5
        answers = await call(server, stream, requests)
        metrics = await server.metrics()
        refused = [metrics.sum("damoserve_refused_total", reason=r) for r in ("IMAGE_UNDECODABLE", "MODEL_NOT_FOUND")]
    for turn in range(5):
        first, second, broken, nowhere, *rest = answers[turn * 6 : turn * 6 + 6]
        assert [found(result) for result in (first, second, *rest)] == [[one] for one in expected]
        assert broken.message().startswith("IMAGE_UNDECODABLE: image 0: ")
        assert nowhere.message() == "MODEL_NOT_FOUND: there is no model 'nothing'"
    assert refused == [5, 5]


async def test_a_stream_says_nothing_of_faults_inside(serve: Serve, pictures: Pictures, valve: Valve) -> None:
    async with serve(valve.load) as server:
        valve.fault = RuntimeError("secret")
        request = {"model_name": "colours", "inputs": [files_input([pictures.red])]}
        (error,) = await call(server, stream, [request])
    assert error.message() == "INTERNAL: internal error"


async def test_a_stream_that_its_client_leaves_ends_its_work(serve: Serve, pictures: Pictures, valve: Valve) -> None:
    async with serve(valve.load, workers=1, max_batch_size=1) as server:
        valve.shut()
        address = f"127.0.0.1:{server.application.port}"

        async def endless() -> AsyncIterator[dict[str, Any]]:
            while True:
                yield {"model_name": "colours", "inputs": [files_input([pictures.red])]}

        async with triton_aio.InferenceServerClient(address) as client:
            answers = client.stream_infer(endless())
            waiting = asyncio.ensure_future(anext(answers))
            await server.until(lambda now: now.sum("damoserve_pool_slots", state="leased") == 2)
            answers.cancel()
            with pytest.raises((asyncio.CancelledError, InferenceServerException)):
                await waiting
        await server.until(lambda now: now.sum("damoserve_queued_requests") == 0)
        valve.open()
        await server.until(lambda now: now.sum("damoserve_pool_slots", state="leased") == 0)
        result = valve.sizes
    assert result == [1]


async def test_one_request_never_fills_the_queue_of_an_idle_server(serve: Serve, pictures: Pictures) -> None:
    async with serve(max_queue=2, max_batch_size=4) as server:
        result = await call(server, infer, files_input([pictures.red] * 64))
    assert result.as_numpy("count").tolist() == [4] * 64


@pytest.mark.parametrize("unavailable", [True, False])
async def test_a_full_queue(serve: Serve, pictures: Pictures, valve: Valve, unavailable: bool) -> None:
    settings = {"max_queue": 1, "max_batch_size": 1, "kserve_unavailable_when_full": unavailable}
    async with serve(valve.load, **settings) as server:
        valve.shut()
        held = [asyncio.ensure_future(server.detect(pictures.red, profile="quick"))]
        await valve.entered()
        held.append(asyncio.ensure_future(server.detect(pictures.red, profile="quick")))
        await server.until(lambda now: now.sum("damoserve_queued_requests") == 1)
        outcome = await call(server, refusal, files_input([pictures.red]), model="colours/quick")
        failure = await server.failure(server.detect(pictures.red, profile="quick"))
        refused = (await server.metrics()).sum("damoserve_refused_total", reason="QUEUE_FULL")
        valve.open()
        await asyncio.gather(*held)
        seen = outcome[0]
    assert seen == ("UNAVAILABLE" if unavailable else "RESOURCE_EXHAUSTED")
    assert failure.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert failure.detail(error_details_pb2.RetryInfo) is not None
    assert refused == 2
