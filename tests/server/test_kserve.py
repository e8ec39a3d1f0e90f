"""The KServe v2 service, called by Triton's own client."""

import asyncio
import queue

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2

from damoserve.kserve.v2 import inference_pb2

triton = pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed")
triton_aio = pytest.importorskip("tritonclient.grpc.aio")
triton_pb = pytest.importorskip("tritonclient.grpc.service_pb2")
triton_config_pb = pytest.importorskip("tritonclient.grpc.model_config_pb2")
InferenceServerException = triton.InferenceServerException

PATIENCE = 20.0
COLOURS = ["red", "lime", "blue", "yellow", "cyan"]


def files_input(images, shape=None):
    tensor = triton.InferInput("images", shape or [len(images)], "BYTES")
    tensor.set_data_from_numpy(np.array(images, np.object_).reshape(tensor.shape()))
    return tensor


def pixels_input(array):
    tensor = triton.InferInput("pixels", array.shape, "UINT8")
    tensor.set_data_from_numpy(array)
    return tensor


def found(result):
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


def detected(response):
    return (
        (response.image_width_px, response.image_height_px),
        [
            (d.label, d.label_id, d.score, (d.box.x_min, d.box.y_min, d.box.x_max, d.box.y_max))
            for d in response.detections
        ],
    )


def parameters(result):
    return {
        name: getattr(value, value.WhichOneof("parameter_choice"))
        for name, value in result.get_response().parameters.items()
    }


@pytest.fixture
def call():
    """Runs `work(client, ...)` with Triton's synchronous client, beside the server."""

    async def call(server, work, *args, **options):
        def run():
            with triton.InferenceServerClient(f"127.0.0.1:{server.application.port}") as client:
                return work(client, *args, **options)

        return await asyncio.to_thread(run)

    return call


def infer(client, inputs, model="colours", **options):
    return client.infer(model, inputs if isinstance(inputs, list) else [inputs], client_timeout=PATIENCE, **options)


def refusal(client, *args, **options):
    with pytest.raises(InferenceServerException) as caught:
        infer(client, *args, **options)
    return caught.value.status().removeprefix("StatusCode."), caught.value.message()


@pytest.fixture
def images(pictures):
    drawn = [pictures.draw(*COLOURS[start : start + 4], size=(40 + 8 * start, 30)) for start in range(2)]
    return [pictures.encode(image) for image in [*drawn, pictures.draw("red"), pictures.draw("black")]]


def test_every_image_of_a_request_is_answered_as_detect_answers_it(serve, call, images):
    async def scenario():
        async with serve() as server:
            expected = [detected(await server.detect(image, profile="quick")) for image in images]
            flat = await call(server, infer, files_input(images), model="colours/quick")
            column = await call(server, infer, files_input(images, [len(images), 1]), parameters={"profile": "quick"})
            return expected, flat, column

    expected, flat, column = asyncio.run(scenario())
    assert [len(objects) for _, objects in expected] == [5, 6, 4, 0]
    assert found(flat) == found(column) == expected
    assert flat.as_numpy("count").tolist() == [5, 6, 4, 0]
    assert parameters(flat) == parameters(column) | {
        name: parameters(flat)[name] for name in ("queue_us", "compute_us", "batch_size")
    }


def test_pixels_are_answered_like_the_same_image_in_a_file(serve, call, pictures):
    drawn = [pictures.draw("red", "lime", "blue", "black", size=(200, 100)), pictures.draw("white", size=(200, 100))]

    async def scenario():
        async with serve() as server:
            expected = [detected(await server.detect(pictures.encode(image))) for image in drawn]
            return expected, await call(server, infer, pixels_input(np.stack([np.asarray(image) for image in drawn])))

    expected, result = asyncio.run(scenario())
    assert found(result) == expected


@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (1, 1, 60_000, 3), (1, 60_000, 1, 3)])
def test_pixels_of_any_size_serve(serve, call, shape):
    async def scenario():
        async with serve() as server:
            return await call(server, infer, pixels_input(np.full(shape, 255, np.uint8)))

    result = asyncio.run(scenario())
    assert result.as_numpy("image_size").tolist() == [[shape[2], shape[1]]]


def test_no_objects_at_all(serve, call, pictures):
    async def scenario():
        async with serve() as server:
            return await call(server, infer, files_input([pictures.encode(pictures.draw("black"))] * 2))

    result = asyncio.run(scenario())
    assert result.as_numpy("count").tolist() == [0, 0]
    assert result.as_numpy("boxes").shape == (2, 0, 4)
    assert result.as_numpy("label_names").shape == (2, 0)


def test_only_the_outputs_that_are_asked_for_come_in_their_order(serve, call, images):
    async def scenario():
        async with serve() as server:
            wanted = [triton.InferRequestedOutput(name) for name in ("scores", "count")]
            return await call(server, infer, files_input(images), outputs=wanted)

    response = asyncio.run(scenario()).get_response()
    assert [(output.name, output.datatype) for output in response.outputs] == [("scores", "FP32"), ("count", "INT32")]
    assert len(response.raw_output_contents) == 2


def test_the_answer_says_who_served_and_how(serve, call, pictures):
    async def scenario():
        async with serve() as server:
            inputs = files_input([pictures.red])
            named = await call(server, infer, inputs, parameters={"profile": "quick"}, request_id="mine")
            chosen = await call(server, infer, inputs, model_version="3", parameters={"latency_tier": "accurate"})
            return named.get_response(), parameters(named), parameters(chosen)

    response, named, chosen = asyncio.run(scenario())
    assert (response.model_name, response.model_version, response.id) == ("colours", "3", "mine")
    assert (named["profile"], named["selection_reason"], named["batch_size"]) == ("quick", "requested", 1)
    assert named["queue_us"] >= 0
    assert named["compute_us"] > 0
    assert (chosen["profile"], chosen["selection_reason"]) == ("accurate", "most_accurate_in_time")


def test_parameters_reach_the_detector(serve, call, pictures):
    image = pictures.encode(pictures.draw("red", "maroon", "blue", "#200000"))

    async def scenario():
        async with serve() as server:

            async def scores(**wishes):
                result = await call(server, infer, files_input([image]), **wishes)
                return [round(score, 2) for score in result.as_numpy("scores")[0].tolist()]

            return [
                await scores(priority=1, timeout=5_000_000),
                await scores(parameters={"score_threshold": 0.0}),
                await scores(parameters={"score_threshold": 1}),
                await scores(parameters={"max_detections": 1}),
                parameters(await call(server, infer, files_input([image]), parameters={"min_accuracy": 0.6})),
            ]

    *scores, accurate = asyncio.run(scenario())
    assert scores == [[1.0, 1.0, 0.5], [1.0, 1.0, 0.5, 0.13], [1.0, 1.0], [1.0]]
    assert accurate["profile"] == "accurate"


def test_a_timeout_that_cannot_be_kept_is_refused_at_once(serve, call, pictures, valve):
    async def scenario():
        async with serve(valve.load) as server:
            server.learn(1.0)
            valve.shut()
            outcome = await call(server, refusal, files_input([pictures.red]), timeout=100_000)
            return outcome, valve.sizes

    (code, message), runs = asyncio.run(scenario())
    assert code == "DEADLINE_EXCEEDED"
    assert "ms are left" in message
    assert runs == []


def test_requests_that_are_refused(serve, call, pictures):
    red = files_input([pictures.red])
    shared = triton.InferInput("images", [1], "BYTES")
    shared.set_shared_memory("region", 10)
    answer_in_shared = triton.InferRequestedOutput("boxes")
    answer_in_shared.set_shared_memory("region", 10)
    output = triton.InferRequestedOutput
    wrong_type = triton.InferInput("images", [1], "FP32")
    wrong_type.set_data_from_numpy(np.zeros(1, np.float32))
    unnamed = triton.InferInput("data", [1], "BYTES")
    unnamed.set_data_from_numpy(np.array([pictures.red], np.object_))
    grey = pixels_input(np.zeros((1, 4, 4, 1), np.uint8))
    cases = {
        "shared memory": (shared, {}, "UNIMPLEMENTED", "shared memory"),
        "answer in shared memory": (red, {"outputs": [answer_in_shared]}, "UNIMPLEMENTED", "shared memory"),
        "classes": (red, {"outputs": [output("scores", class_count=2)]}, "UNIMPLEMENTED", "classification"),
        "sequence": (red, {"sequence_id": 7, "sequence_start": True}, "UNIMPLEMENTED", "sequences"),
        "unknown parameter": (red, {"parameters": {"colour": 1}}, "INVALID_ARGUMENT", "'colour'"),
        "wrong type": (red, {"parameters": {"score_threshold": "high"}}, "INVALID_ARGUMENT", "string_param"),
        "bool is no number": (red, {"parameters": {"max_detections": True}}, "INVALID_ARGUMENT", "bool_param"),
        "threshold": (red, {"parameters": {"score_threshold": 1.5}}, "INVALID_ARGUMENT", "between 0 and 1"),
        "not a number": (red, {"parameters": {"min_accuracy": float("nan")}}, "INVALID_ARGUMENT", "between 0 and 1"),
        "detections": (red, {"parameters": {"max_detections": 0}}, "INVALID_ARGUMENT", "between 1 and"),
        "tier": (red, {"parameters": {"latency_tier": "warp"}}, "INVALID_ARGUMENT", "realtime, balanced, accurate"),
        "timeout": (red, {"timeout": -1}, "INVALID_ARGUMENT", "0 or more"),
        "profile and tier": (
            red,
            {"model": "colours/quick", "parameters": {"latency_tier": "realtime"}},
            "INVALID_ARGUMENT",
            "at most one",
        ),
        "two profiles": (
            red,
            {"model": "colours/quick", "parameters": {"profile": "accurate"}},
            "INVALID_ARGUMENT",
            "already names",
        ),
        "model": (red, {"model": "nothing"}, "NOT_FOUND", "'nothing'"),
        "profile": (red, {"model": "colours/nothing"}, "NOT_FOUND", "'nothing'"),
        "version": (red, {"model_version": "4"}, "NOT_FOUND", "version 3"),
        "output": (red, {"outputs": [output("masks")]}, "INVALID_ARGUMENT", "label_names"),
        "output twice": (red, {"outputs": [output("boxes"), output("boxes")]}, "INVALID_ARGUMENT", "twice"),
        "datatype": (wrong_type, {}, "INVALID_ARGUMENT", "must be BYTES"),
        "input": (unnamed, {}, "INVALID_ARGUMENT", "images or pixels"),
        "both inputs": ([red, grey], {}, "INVALID_ARGUMENT", "there must be one"),
        "no input": ([], {}, "INVALID_ARGUMENT", "there must be one"),
        "shape": (grey, {}, "INVALID_ARGUMENT", "[-1, -1, -1, 3]"),
        "no images": (pixels_input(np.zeros((0, 4, 4, 3), np.uint8)), {}, "INVALID_ARGUMENT", "0 images"),
        "no pixels": (pixels_input(np.zeros((1, 0, 4, 3), np.uint8)), {}, "INVALID_ARGUMENT", "[-1, -1, -1, 3]"),
        "too many images": (files_input([pictures.red] * 65), {}, "INVALID_ARGUMENT", "1 to 64"),
        "too many pixels": (pixels_input(np.zeros((1, 300, 300, 3), np.uint8)), {}, "INVALID_ARGUMENT", "300 x 300"),
        "broken image": (files_input([pictures.red, b"GIF"]), {}, "INVALID_ARGUMENT", "image 1: "),
        "empty image": (files_input([pictures.red, b""]), {}, "INVALID_ARGUMENT", "image 1: the image is empty"),
        "long id": (red, {"request_id": "x" * 257}, "INVALID_ARGUMENT", "256"),
    }

    async def scenario():
        outcomes = {}
        async with serve(max_pixels=80_000) as server:
            for name, (inputs, options, _, _) in cases.items():
                outcomes[name] = await call(server, refusal, inputs, **options)
            assert len((await server.detect(pictures.red)).detections) == 4
        return outcomes

    outcomes = asyncio.run(scenario())
    assert {name: code for name, (code, _) in outcomes.items()} == {name: case[2] for name, case in cases.items()}
    for name, (_, message) in outcomes.items():
        assert cases[name][3] in message, name


def test_triton_aio_client(serve, images):
    async def scenario():
        async with serve() as server:
            expected = [detected(await server.detect(image, profile="quick")) for image in images]
            address = f"127.0.0.1:{server.application.port}"
            async with triton_aio.InferenceServerClient(address) as client:
                assert await client.is_server_live()
                assert await client.is_model_ready("colours/quick")
                calls = [client.infer("colours/quick", [files_input([image])]) for image in images]
                return expected, await asyncio.gather(*calls)

    expected, results = asyncio.run(scenario())
    assert [found(result) for result in results] == [[one] for one in expected]


def stream(client, requests):
    """Sends all requests over one stream; what came back, in its order."""
    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put(error if result is None else result), stream_timeout=PATIENCE)
    for request in requests:
        client.async_stream_infer(**request)
    received = [answers.get(timeout=PATIENCE) for _ in requests]
    client.stop_stream()
    assert answers.empty()
    return received


def test_a_stream_is_answered_in_order_and_survives_what_fails(serve, call, images):
    inputs = [files_input([image]) for image in images]
    good = [{"model_name": "colours/quick", "inputs": [one]} for one in inputs]
    bad = {"model_name": "colours", "inputs": [files_input([b"GIF"])]}
    unknown = {"model_name": "nothing", "inputs": inputs[:1]}

    async def scenario():
        async with serve() as server:
            expected = [detected(await server.detect(image, profile="quick")) for image in images]
            requests = [*good[:2], bad, unknown, *good[2:]] * 5
            answers = await call(server, stream, requests)
            metrics = await server.metrics()
            refused = [
                metrics.sum("damoserve_refused_total", reason=r) for r in ("IMAGE_UNDECODABLE", "MODEL_NOT_FOUND")
            ]
            return expected, answers, refused

    expected, answers, refused = asyncio.run(scenario())
    for turn in range(5):
        first, second, broken, nowhere, *rest = answers[turn * 6 : turn * 6 + 6]
        assert [found(result) for result in (first, second, *rest)] == [[one] for one in expected]
        assert broken.message().startswith("IMAGE_UNDECODABLE: image 0: ")
        assert nowhere.message() == "MODEL_NOT_FOUND: there is no model 'nothing'"
    assert refused == [5, 5]


def test_a_stream_that_its_client_leaves_ends_its_work(serve, pictures, valve):
    async def scenario():
        async with serve(valve.load, workers=1, max_batch_size=1) as server:
            valve.shut()
            address = f"127.0.0.1:{server.application.port}"

            async def endless():
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
            return valve.sizes

    assert asyncio.run(scenario()) == [1]


def test_one_request_never_fills_the_queue_of_an_idle_server(serve, call, pictures):
    async def scenario():
        async with serve(max_queue=2, max_batch_size=4) as server:
            return await call(server, infer, files_input([pictures.red] * 64))

    assert asyncio.run(scenario()).as_numpy("count").tolist() == [4] * 64


@pytest.mark.parametrize("unavailable", [True, False])
def test_a_full_queue(serve, call, pictures, valve, unavailable):
    async def scenario():
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
            return outcome[0], failure, refused

    seen, failure, refused = asyncio.run(scenario())
    assert seen == ("UNAVAILABLE" if unavailable else "RESOURCE_EXHAUSTED")
    assert failure.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert failure.detail(error_details_pb2.RetryInfo) is not None
    assert refused == 2


def test_what_triton_tools_read(serve, call, repository, new_profile):
    new_profile(repository, "broken", ap=0.9, model=b"no network")

    def read(client):
        return {
            "server": client.get_server_metadata(as_json=True),
            "metadata": client.get_model_metadata("colours", as_json=True),
            "config": client.get_model_config("colours/quick", as_json=True)["config"],
            "index": client.get_model_repository_index(as_json=True)["models"],
            "ready": [
                client.is_model_ready(name) for name in ("colours", "colours/quick", "colours/broken", "nothing")
            ],
            "versions": [client.is_model_ready("colours", version) for version in ("3", "2")],
            "alive": (client.is_server_live(), client.is_server_ready()),
        }

    async def scenario():
        async with serve() as server:
            return await call(server, read)

    seen = asyncio.run(scenario())
    assert seen["server"]["name"] == "damoserve"
    assert "statistics" in seen["server"]["extensions"]
    assert "model_repository" not in seen["server"]["extensions"]
    assert seen["metadata"]["versions"] == ["3"]
    assert [(tensor["name"], tensor["datatype"], tensor["shape"]) for tensor in seen["metadata"]["inputs"]] == [
        ("images", "BYTES", ["-1", "1"]),
        ("pixels", "UINT8", ["-1", "-1", "-1", "3"]),
    ]
    assert [tensor["name"] for tensor in seen["metadata"]["outputs"]] == [
        *("count", "boxes", "scores", "labels", "label_names", "image_size")
    ]
    assert seen["config"]["name"] == "colours/quick"
    assert seen["config"]["max_batch_size"] == 64
    assert "dynamic_batching" in seen["config"]
    assert all(tensor["optional"] for tensor in seen["config"]["input"])
    assert {entry["name"]: (entry["state"], bool(entry.get("reason"))) for entry in seen["index"]} == {
        "colours": ("READY", False),
        "colours/accurate": ("READY", False),
        "colours/quick": ("READY", False),
        "colours/broken": ("UNAVAILABLE", True),
    }
    assert seen["ready"] == [True, True, False, False]
    assert seen["versions"] == [True, False]
    assert seen["alive"] == (True, True)


def test_statistics(serve, call, pictures):
    def statistics(client, name=""):
        stats = client.get_inference_statistics(name).model_stats
        return {one.name: one for one in stats}

    async def scenario():
        async with serve() as server:
            await call(server, infer, files_input([pictures.red] * 3), parameters={"profile": "quick"})
            await call(server, infer, files_input([pictures.red]), model="colours/quick")
            await call(server, refusal, files_input([b"GIF"]), parameters={"profile": "quick"})
            return await call(server, statistics), await call(server, statistics, "colours/quick")

    every, quick = asyncio.run(scenario())
    assert every.keys() == {"colours", "colours/accurate", "colours/quick"}
    assert quick["colours/quick"] == every["colours/quick"]
    for one in (every["colours"], every["colours/quick"]):
        stages = one.inference_stats
        assert (one.version, one.inference_count, stages.success.count, stages.fail.count) == ("3", 4, 2, 1)
        assert stages.queue.count == stages.compute_input.count == stages.compute_infer.count == 2
        assert stages.success.ns >= stages.compute_infer.ns > 0
        assert 2 <= one.execution_count <= 4
        assert sum(batch.compute_infer.count * batch.batch_size for batch in one.batch_stats) == 4
        assert one.last_inference > 1.7e12
    assert every["colours/accurate"].inference_count == 0


def test_what_is_not_offered_says_so(serve, call):
    def refused(method, *args, **options):
        with pytest.raises(InferenceServerException) as caught:
            method(*args, **options)
        return caught.value.status(), caught.value.message()

    def attempts(client):
        return [
            refused(client.get_system_shared_memory_status),
            refused(client.register_system_shared_memory, "name", "/key", 10),
            refused(client.unregister_cuda_shared_memory),
            refused(client.get_trace_settings),
            refused(client.update_log_settings, {"log_info": True}),
            refused(client.load_model, "colours"),
            refused(client.unload_model, "colours"),
        ]

    async def scenario():
        async with serve() as server:
            outcomes = await call(server, attempts)
            metrics = await server.metrics()
            return outcomes, metrics.sum("damoserve_refused_total", reason="NOT_OFFERED")

    outcomes, counted = asyncio.run(scenario())
    assert {code for code, _ in outcomes} == {"StatusCode.UNIMPLEMENTED"}
    assert [message.split(" ")[0] for _, message in outcomes] == ["shared"] * 3 + ["traces", "the", "models", "models"]
    assert counted == len(outcomes)


def test_a_server_that_loads_is_alive_but_not_ready(application, call, client_of):
    def state(client):
        return client.is_server_live(), client.is_server_ready(), client.is_model_ready("colours")

    async def scenario():
        server = application()
        await server.listen()
        async with client_of(server) as connected:
            loading = await call(connected, state)
            await server.load()
            loaded = await call(connected, state)
        await server.stop()
        return loading, loaded

    loading, loaded = asyncio.run(scenario())
    assert loading == (True, False, False)
    assert loaded == (True, True, True)


def test_a_server_that_drains_is_no_longer_ready(serve, call, pictures, valve):
    async def scenario():
        async with serve(valve.load) as server:
            valve.shut()
            held = asyncio.ensure_future(server.detect(pictures.red))
            await valve.entered()
            stopping = asyncio.ensure_future(server.application.stop())
            ready = True
            async with asyncio.timeout(PATIENCE):
                while ready:
                    ready = await call(server, lambda client: client.is_server_ready())
            code, _ = await call(server, refusal, files_input([pictures.red]))
            valve.open()
            await held
            await stopping
            return code

    assert asyncio.run(scenario()) == "UNAVAILABLE"


def test_the_service_can_be_switched_off(serve, call, pictures):
    async def scenario():
        async with serve(kserve=False) as server:
            return await call(server, refusal, files_input([pictures.red]))

    assert asyncio.run(scenario())[0] == "UNIMPLEMENTED"


def messages(file):
    waiting = list(file.message_types_by_name.values())
    while waiting:
        message = waiting.pop()
        waiting.extend(message.nested_types)
        yield message.full_name.removeprefix(f"{file.package}."), message


def kinds(message):
    """Every field of a message with all that decides about its bytes."""
    for field in message.fields:
        nested = field.message_type or field.enum_type
        name = nested.full_name.removeprefix(f"{message.file.package}.") if nested else None
        yield field.name, field.number, field.type, field.is_repeated, name


def test_our_messages_are_on_the_wire_what_tritons_are():
    theirs = dict(messages(triton_pb.DESCRIPTOR)) | dict(messages(triton_config_pb.DESCRIPTOR))
    ours = dict(messages(inference_pb2.DESCRIPTOR))
    assert len(ours) > 30
    for name, message in ours.items():
        missing = set(kinds(message)) - set(kinds(theirs[name]))
        assert not missing, name
    values = {value.name: value.number for value in triton_config_pb.DESCRIPTOR.enum_types_by_name["DataType"].values}
    assert dict(inference_pb2.DataType.items()) == values
