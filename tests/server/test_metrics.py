import asyncio

from google.protobuf.duration_pb2 import Duration

from damoserve.v1 import detection_pb2 as pb


def test_series_exist_at_zero_before_the_first_call(serve):
    async def scenario():
        async with serve() as client:
            return await client.metrics()

    now = asyncio.run(scenario())
    detect = {"grpc_type": "unary", "grpc_service": "damoserve.v1.DetectionService", "grpc_method": "Detect"}
    colours = {"model": "colours", "profile": "quick"}
    assert now.sum("grpc_server_started_total", **detect) == 0
    assert now.sum("grpc_server_handled_total", **detect, grpc_code="RESOURCE_EXHAUSTED") == 0
    assert now.sum("grpc_server_handling_seconds_count", **detect) == 0
    assert now.sum("damoserve_refused_total", reason="QUEUE_FULL") == 0
    assert now.sum("damoserve_request_seconds_count", **colours, tier="none") == 0
    assert now.sum("damoserve_routed_total", **colours, tier="realtime", reason="quickest") == 0
    assert now.sum("damoserve_stage_seconds_count", **colours, stage="queue") == 0
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


def test_sums_after_calls(serve, pictures):
    async def scenario():
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
            return await client.metrics()

    now = asyncio.run(scenario())
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
    for stage in ("decode", "queue", "inference", "postprocess"):
        assert now.sum("damoserve_stage_seconds_count", stage=stage) == 4
    assert now.sum("damoserve_stage_seconds_sum") <= now.sum("damoserve_request_seconds_sum")
    assert now.sum("damoserve_request_seconds_sum") <= now.sum("grpc_server_handling_seconds_sum")
    assert now.sum("damoserve_batch_size_sum") == 4


def test_no_caller_can_make_a_series(serve, pictures):
    """Otherwise names that a caller makes up would fill the memory, here and in Prometheus."""

    async def scenario():
        async with serve() as client:
            await client.detect(pictures.red)
            before = (await client.metrics()).series()
            for method in ("/evil.Service/Evil", "/damoserve.v1.DetectionService/Evil"):
                metadata = (("x-request-id", "evil"), ("authorization", "Bearer evil"))
                await client.failure(client.channel.unary_unary(method)(b"", metadata=metadata))
            await client.failure(client.detect(pictures.red, model="evil"))
            await client.failure(client.detect(pictures.red, profile="evil"))
            await client.failure(client.health("evil"))
            return before, (await client.metrics()).series()

    before, after = asyncio.run(scenario())
    assert before == after
