"""Detect and the profile service over a real connection."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

from damoserve.v1 import detection_pb2 as pb
from damoserve_server.detection import detector
from damoserve_server.inputs.buffers import RETRY_AFTER_SECONDS
from damoserve_server.inputs.images import bytes_to_decode
from tests.support.pictures import Pictures
from tests.support.server import Serve
from tests.support.valve import Valve

COLOURS = ["red", "lime", "blue", "yellow", "cyan", "magenta", "white", "black"]


def found(response: pb.DetectResponse) -> set[tuple[str, tuple[float, ...]]]:
    return {(d.label, (d.box.x_min, d.box.y_min, d.box.x_max, d.box.y_max)) for d in response.detections}


async def test_boxes_are_in_pixels_of_the_image(serve: Serve, pictures: Pictures) -> None:
    async with serve() as client:
        response = await client.detect(pictures.encode(pictures.draw("red", "lime", "blue", "black", size=(200, 100))))
    assert found(response) == {
        ("red", (0, 0, 100, 50)),
        ("green", (100, 0, 200, 50)),
        ("blue", (0, 50, 100, 100)),
    }
    assert (response.image_width_px, response.image_height_px) == (200, 100)
    assert (response.model, response.model_version) == ("colours", 3)
    timings = response.timings
    stages = [timings.decode, timings.queue, timings.inference, timings.postprocess]
    assert all(stage.ToNanoseconds() > 0 for stage in stages)
    assert sum(stage.ToNanoseconds() for stage in stages) <= timings.total.ToNanoseconds()


async def test_who_serves(serve: Serve, pictures: Pictures) -> None:
    async with serve(tiers={"realtime": {"objective_ms": 1e-3}, "balanced": {"objective_ms": 5000}}) as client:

        async def served(**fields: Any) -> tuple[str, str]:
            response = await client.detect(pictures.red, **fields)
            return response.profile, pb.SelectionReason.Name(response.selection_reason)

        answers = [
            await served(profile="quick"),
            await served(),
            await served(latency_tier=pb.LATENCY_TIER_REALTIME),
            await served(latency_tier=pb.LATENCY_TIER_REALTIME, min_accuracy=0.6),
            await served(latency_tier=pb.LATENCY_TIER_ACCURATE, latency_budget=Duration(seconds=5)),
            await served(model="colours", profile="accurate", latency_budget=Duration(seconds=5)),
        ]
    assert answers[0] == ("quick", "SELECTION_REASON_REQUESTED")
    assert answers[1] == ("accurate", "SELECTION_REASON_MOST_ACCURATE_IN_TIME")
    assert answers[2][1] == "SELECTION_REASON_QUICKEST"
    assert answers[3] == ("accurate", "SELECTION_REASON_QUICKEST")
    assert answers[4] == ("accurate", "SELECTION_REASON_MOST_ACCURATE_IN_TIME")
    assert answers[5] == ("accurate", "SELECTION_REASON_REQUESTED")


async def test_a_tier_excludes_profiles_below_its_floor(serve: Serve, pictures: Pictures) -> None:
    tiers = {"realtime": {"objective_ms": 1e-3, "accuracy_floor": 0.5}}
    async with serve(tiers=tiers, default_tier="realtime") as client:
        result = [(await client.detect(pictures.red)).profile for _ in range(3)]
    assert result == ["accurate"] * 3


async def test_profiles_of_different_inputs_serve_one_model_each_when_in_time(
    serve: Serve, pictures: Pictures, repository: Path, new_profile: Callable[..., None]
) -> None:
    """`padded` is the most accurate, and alone in wanting its input."""
    new_profile(repository, "padded", ap=0.9, resize="fit")
    image = pictures.encode(pictures.draw("red", "lime", "blue", "black", size=(200, 100)))
    async with serve(tiers={"balanced": {"objective_ms": 5000}}) as client:
        client.learn(0.01)
        first = await client.detect(image)
        for profile in client.application._detector.result().catalogue.active():
            if profile.name == "padded":
                for _ in range(32):
                    profile.latency.observe(6.0)
        tier = await client.detect(image)
        named = await client.detect(image, profile="padded")
        short = await client.failure(client.detect(image, profile="padded", timeout=5.0))
        fitting = await client.detect(image, timeout=5.0, min_accuracy=0.5)
    assert [answer.profile for answer in (first, tier, named, fitting)] == ["padded", "accurate", "padded", "accurate"]
    assert short.reason == "DEADLINE_UNREACHABLE"
    assert found(first) == found(tier) == found(named), "boxes of the image, whatever the input"


async def test_min_accuracy_is_never_undercut(serve: Serve, pictures: Pictures, valve: Valve) -> None:
    """However late it makes them: of many at once, each has a profile that it allows."""
    async with serve(valve.load, tiers={"balanced": {"objective_ms": 1}}) as client:
        for profile in client.application._detector.result().catalogue.active():
            for size in (1, 2, 3, 4) * 32:
                profile.latency.observe(0.5 if profile.name == "accurate" else 0.01, size)
        valve.shut()
        wanted = [0.6, 0.0] * 6
        calls = [asyncio.ensure_future(client.detect(pictures.red, min_accuracy=least)) for least in wanted]
        await client.until(lambda now: now.sum("damoserve_queued_requests") == len(calls) - sum(valve.sizes))
        valve.open()
        served = [answer.profile for answer in await asyncio.gather(*calls)]
    assert {profile for least, profile in zip(wanted, served, strict=True) if least} == {"accurate"}
    assert {profile for least, profile in zip(wanted, served, strict=True) if not least} == {"quick"}


async def test_thresholds_of_the_request_replace_those_of_the_model(serve: Serve, pictures: Pictures) -> None:
    async with serve() as client:
        image = pictures.encode(pictures.draw("red", "maroon", "blue", "#200000"))

        async def scores(**thresholds: float) -> list[float]:
            return [round(d.score, 2) for d in (await client.detect(image, **thresholds)).detections]

        result = [
            await scores(),
            await scores(score_threshold=0.0),
            await scores(score_threshold=1.0),
            await scores(max_detections=1),
        ]
    assert result == [[1.0, 1.0, 0.5], [1.0, 1.0, 0.5, 0.13], [1.0, 1.0], [1.0]]


async def test_every_caller_of_a_batch_gets_its_own_answer(serve: Serve, pictures: Pictures, valve: Valve) -> None:
    async with serve(valve.load, max_batch_size=4) as client:
        client.learn(0.01)
        valve.shut()
        first = asyncio.ensure_future(client.detect(pictures.red, profile="quick"))
        await valve.entered()
        images = [pictures.encode(pictures.draw(colour)) for colour in COLOURS]
        together = [asyncio.ensure_future(client.detect(image, profile="quick")) for image in images]
        await client.until(lambda now: now.sum("damoserve_queued_requests", state="ready") == len(images))
        valve.open()
        alone = [await client.detect(image, profile="quick") for image in images]
        first, together = await first, await asyncio.gather(*together)
    assert first.batch_size == 1
    assert [response.batch_size for response in together] == [4] * 8
    assert valve.sizes[:3] == [1, 4, 4]
    assert [found(response) for response in together] == [found(response) for response in alone]
    assert len({frozenset(found(response)) for response in together}) == len(COLOURS)


async def test_calls_that_fit_no_batch_run_at_the_same_time_on_all_workers(
    serve: Serve, pictures: Pictures, valve: Valve
) -> None:
    async with serve(valve.load, workers=2, max_batch_size=1) as client:
        valve.shut()
        calls = [asyncio.ensure_future(client.detect(pictures.red)) for _ in range(3)]
        await client.until(lambda now: len(valve.sizes) == 2 and now.sum("damoserve_queued_requests") == 1)
        valve.open()
        result = await asyncio.gather(*calls)
    assert [len(response.detections) for response in result] == [4, 4, 4]


async def test_the_time_to_decode_is_learned_and_counts_in_admission(serve: Serve, pictures: Pictures) -> None:
    async with serve() as client:
        answer = await client.detect(pictures.red)
        estimate, size = client.application._detector.result()._decoding, bytes_to_decode(pictures.red)
        learned = estimate.expected(size)
        for _ in range(3):
            estimate.observe(30.0, size)
        refused = await client.failure(client.detect(pictures.red, timeout=20.0))
    assert learned == pytest.approx(answer.timings.decode.ToNanoseconds() / 1e9, abs=1e-9)
    assert refused.reason == "DEADLINE_UNREACHABLE"
    expected = float(refused.detail(error_details_pb2.ErrorInfo).metadata["expected_ms"])
    assert expected == pytest.approx(30_000, rel=0.05)


async def test_without_a_buffer_a_request_is_refused_and_leaves_the_queue(
    serve: Serve, pictures: Pictures, valve: Valve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the container's memory has room for fewer buffers than requests may wait."""
    monkeypatch.setattr(detector, "affordable_slots", lambda wanted, least, size: 1)
    async with serve(valve.load, max_batch_size=1) as client:
        valve.shut()
        first = asyncio.ensure_future(client.detect(pictures.red))
        await valve.entered()
        full = await client.failure(client.detect(pictures.red))
        queued = (await client.metrics()).sum("damoserve_queued_requests")
        valve.open()
        await first
        await client.until(lambda now: now.sum("damoserve_pool_slots", state="leased") == 0)
        answer = await client.detect(pictures.red)
    assert (full.code, full.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    assert full.detail(error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() == 1000 * RETRY_AFTER_SECONDS
    assert queued == 0
    assert len(answer.detections) == 4


async def test_profiles_are_listed_the_most_accurate_first(serve: Serve) -> None:
    async with serve() as client:
        listed = await client.profiles.ListProfiles(pb.ListProfilesRequest())
        got = await client.profiles.GetProfile(pb.GetProfileRequest(profile="quick"))
        listed, quick = listed.profiles, got
    assert [profile.profile for profile in listed] == ["accurate", "quick"]
    assert quick == listed[1]
    assert (quick.model, quick.model_version, quick.state) == ("colours", 3, pb.Profile.STATE_ACTIVE)
    assert list(quick.labels) == ["red", "green", "blue"]
    assert quick.average_precision == pytest.approx(0.4)
    assert (quick.input_width_px, quick.input_height_px, quick.validation_image_count) == (64, 32, 5)
    assert quick.model_bytes > 0
    assert quick.expected_latency.ToNanoseconds() > 0
