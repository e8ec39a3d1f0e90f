import platform
from importlib.metadata import version

import grpc
from google.protobuf.duration_pb2 import Duration

from damoserve.v1 import admin_pb2
from damoserve.v1 import detection_pb2 as pb
from damoserve_server.app import SERVICES
from damoserve_server.kserve.descriptor import SERVICE as KSERVE
from damoserve_server.kserve.methods import NOT_OFFERED
from damoserve_server.metrics.requests import STAGES
from tests.support.pictures import Pictures
from tests.support.quarters import HEIGHT, WIDTH
from tests.support.server import Samples, Serve

NEVER = {grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.OUT_OF_RANGE, grpc.StatusCode.DATA_LOSS}
"""Codes that nothing in the server ends with."""


async def test_series_exist_at_zero_before_the_first_call(serve: Serve) -> None:
    async with serve() as client:
        now = await client.metrics()
    detect = {"grpc_type": "unary", "grpc_service": "damoserve.v1.DetectionService", "grpc_method": "Detect"}
    colours = {"model": "colours", "profile": "quick"}
    assert now.sum("grpc_server_started_total", **detect) == 0
    assert now.sum("grpc_server_handled_total", **detect, grpc_code="RESOURCE_EXHAUSTED") == 0
    assert now.sum("damoserve_refused_total", reason="QUEUE_FULL") == 0
    assert now.sum("damoserve_routed_total", **colours, tier="realtime", reason="quickest") == 0
    assert now.sum("damoserve_batch_size_count", **colours) == 0
    assert now.sum("damoserve_queued_requests", state="decoding") == 0
    assert now.sum("damoserve_queued_requests", state="ready") == 0
    assert now.sum("damoserve_workers") == 1
    assert now.sum("damoserve_worker_restarts_total") == 0
    assert now.sum("damoserve_profile_state", **colours, state="active") == 1
    assert now.sum("damoserve_profile_state", **colours, state="failed") == 0
    assert now.sum("damoserve_profile_info", **colours, version="3", variant="P") == 1
    assert now.sum("damoserve_pool_slots", state="leased") == 0
    assert now.sum("damoserve_pool_slots", state="free") == 64 + 4
    assert now.sum("damoserve_pool_slots_high_water") == 0
    assert now.sum("damoserve_pool_bytes") == (64 + 4) * WIDTH * HEIGHT * 3
    assert now.sum("damoserve_requests_total", tier="none", outcome="cancelled") == 0
    assert now.sum("damoserve_requests_in_flight") == 0
    assert now.sum("damoserve_batches_total", **colours, reason="waited") == 0
    assert now.sum("damoserve_unused_answers_total", **colours) == 0
    assert now.sum("damoserve_decode_failures_total", kind="undecodable") == 0
    assert now.sum("damoserve_served_accuracy_count", model="colours", tier="accurate") == 0
    assert now.sum("damoserve_profile_accuracy", **colours) == 0.4


async def test_a_histogram_of_seconds_has_what_has_a_value(serve: Serve, pictures: Pictures) -> None:
    """Zeros of every method, profile, tier and stage were most of what an idle server showed."""

    def rows(samples: Samples) -> list[tuple[str, str]]:
        kinds = (
            "damoserve_request_seconds_count",
            "damoserve_stage_seconds_count",
            "grpc_server_handling_seconds_count",
        )
        return [(name, labels) for name, labels in sorted(samples.series()) if name in kinds]

    async with serve() as client:
        before = await client.metrics()
        await client.detect(pictures.red, profile="quick")
        after = await client.metrics()
    assert rows(before) == []
    assert [name for name, _ in rows(after)] == [
        "damoserve_request_seconds_count",
        *["damoserve_stage_seconds_count"] * len(STAGES),
        "grpc_server_handling_seconds_count",
    ]
    assert after.sum("damoserve_request_seconds_count", profile="quick", tier="none") == 1


async def test_every_method_has_every_code_from_the_start(serve: Serve) -> None:
    async with serve(admin_port=0) as client:
        now = await client.metrics()
    services = [*SERVICES, KSERVE, *admin_pb2.DESCRIPTOR.services_by_name.values()]
    methods = [(service.full_name, method.name) for service in services for method in service.methods]
    methods += [(KSERVE.full_name, name) for name in NOT_OFFERED]
    assert len(methods) > 20
    for service, method in methods:
        labels = {"grpc_service": service, "grpc_method": method}
        for name in ("started_total", "msg_received_total", "msg_sent_total"):
            assert now.sum(f"grpc_server_{name}", **labels) == 0
        for code in set(grpc.StatusCode) - NEVER:
            assert now.sum("grpc_server_handled_total", **labels, grpc_code=code.name) == 0


async def test_objectives_are_shown_and_are_edges_of_the_histograms(serve: Serve, pictures: Pictures) -> None:
    tiers = {"realtime": {"objective_ms": 37, "accuracy_floor": 0.3}, "balanced": {"objective_ms": 12_345}}
    async with serve(tiers=tiers) as client:
        await client.detect(pictures.red)
        now = await client.metrics()
    for tier, edge in {"realtime": 0.037, "balanced": 12.345, "accurate": 1.0}.items():
        assert now.sum("damoserve_tier_objective_seconds", tier=tier) == edge
        for name in ("damoserve_request_seconds", "damoserve_stage_seconds", "grpc_server_handling_seconds"):
            assert now.sum(f"{name}_bucket", le=str(edge)) >= 0
    assert now.sum("damoserve_tier_accuracy_floor", tier="realtime") == 0.3
    in_time = now.sum("damoserve_requests_total", tier="balanced", outcome="in_time")
    assert in_time == now.sum("damoserve_request_seconds_bucket", tier="balanced", le="12.345") == 1


async def test_what_the_server_is_made_of(serve: Serve) -> None:
    async with serve() as client:
        now = await client.metrics()
    made_of = {"version": version("damoserve"), "grpc": version("grpcio"), "python": platform.python_version()}
    assert now.sum("damoserve_build_info", **made_of) == 1
    assert now.sum("process_resident_memory_bytes") > 1e6
    assert now.sum("python_gc_collections_total") > 0


async def test_sums_after_calls(serve: Serve, pictures: Pictures) -> None:
    async with serve(tiers={"balanced": {"objective_ms": 5000}}) as client:
        for _ in range(3):
            await client.detect(pictures.red, profile="quick")
        await client.detect(pictures.red)
        await client.failure(client.detect(b""))
        await client.failure(client.detect(pictures.red, latency_budget=Duration(nanos=1)))
        await client.failure(client.detect(pictures.red, model="birds"))
        await client.profiles.ListProfiles(pb.ListProfilesRequest())
        await client.health()
        assert (await client.failure(client.health("unknown"))).reason is None
        now = await client.metrics()
    assert now.sum("grpc_server_started_total", grpc_method="Detect") == 7
    assert now.sum("grpc_server_handled_total", grpc_method="Detect") == 7
    assert now.sum("grpc_server_handled_total", grpc_method="Detect", grpc_code="OK") == 4
    assert now.sum("grpc_server_handled_total", grpc_method="Detect", grpc_code="INVALID_ARGUMENT") == 1
    assert now.sum("grpc_server_handled_total", grpc_method="Check", grpc_code="NOT_FOUND") == 1
    assert now.sum("grpc_server_handling_seconds_count") == 10
    assert now.sum("damoserve_refused_total") == 3
    assert now.sum("damoserve_refused_total", reason="MODEL_NOT_FOUND") == 1
    assert now.sum("damoserve_routed_total") == 4
    assert now.sum("damoserve_routed_total", profile="quick", tier="none", reason="requested") == 3
    assert now.sum("damoserve_request_seconds_count", profile="quick", tier="none") == 3
    assert now.sum("damoserve_request_seconds_count", profile="accurate", tier="balanced") == 1
    for stage in STAGES:
        assert now.sum("damoserve_stage_seconds_count", stage=stage) == 4
    assert now.sum("damoserve_request_seconds_sum") <= now.sum("grpc_server_handling_seconds_sum")
    assert now.sum("damoserve_batch_size_sum") == 4


async def test_no_caller_can_make_a_series(serve: Serve, pictures: Pictures) -> None:
    """Otherwise names that a caller makes up would fill the memory, here and in Prometheus."""
    async with serve() as client:
        await client.detect(pictures.red)
        await client.health()
        before = (await client.metrics()).series()
        for method in ("/evil.Service/Evil", "/damoserve.v1.DetectionService/Evil"):
            metadata = (("x-request-id", "evil"), ("authorization", "Bearer evil"))
            evil: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = client.channel.unary_unary(method)
            await client.failure(evil(b"", metadata=metadata))
        await client.failure(client.detect(pictures.red, model="evil"))
        await client.failure(client.detect(pictures.red, profile="evil"))
        await client.failure(client.health("evil"))
        after = (await client.metrics()).series()
    assert before == after
