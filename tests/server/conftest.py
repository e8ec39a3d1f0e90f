"""A repository of tiny real ONNX models, and a real server in this process.

The network looks at the four quarters of an image: the box of a quarter has, for each of the labels red, green and
blue, the mean of that colour in the quarter as its score. So every answer shows which image it belongs to and how that
image was turned.
"""

import asyncio
import io
import shutil
import threading
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from socketserver import BaseServer
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from damoserve.v1 import detection_pb2 as pb
from damoserve.v1 import detection_pb2_grpc as pb_grpc
from damoserve_profiles.imaging import ResizeMode
from damoserve_profiles.manifest import MODEL_FILE, Accuracy, InputSpec, Latency, Manifest, Source, Thresholds
from damoserve_profiles.recipe import Recipe
from damoserve_profiles.repository import Repository, describe_file
from damoserve_server import app
from damoserve_server.app import Application
from damoserve_server.engines.engine import Engine, EngineOptions, Outputs
from damoserve_server.engines.onnxruntime import OnnxRuntimeEngine
from damoserve_server.settings import Settings
from damoserve_server.telemetry.spans import Tracer

WIDTH, HEIGHT = 64, 32
LABELS = ("red", "green", "blue")
PATIENCE = 20.0


def quarters_model() -> bytes:
    """The network as an ONNX file."""
    w, h = WIDTH / 2, HEIGHT / 2
    boxes = np.array([[x, y, x + w, y + h] for y in (0, h) for x in (0, w)], np.float32)
    constants = {"scale": np.float32(1 / 255), "zero": np.float32(0), "shape": np.array([0, 3, 4]), "boxes_": boxes}
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["planes", "scale"], ["scaled"]),
        helper.make_node("AveragePool", ["scaled"], ["means"], kernel_shape=[int(h), int(w)], strides=[int(h), int(w)]),
        helper.make_node("Reshape", ["means", "shape"], ["by_colour"]),
        helper.make_node("Transpose", ["by_colour"], ["scores"], perm=[0, 2, 1]),
        helper.make_node("ReduceSum", ["scores", "axes"], ["sum"], keepdims=1),
        helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "boxes_"], ["boxes"]),
    ]
    constants["axes"] = np.array([2])
    graph = helper.make_graph(
        nodes,
        "quarters",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", HEIGHT, WIDTH, 3])],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 4, 3]),
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["N", 4, 4]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def add_profile(
    root: Path,
    profile: str,
    ap: float,
    model: bytes | None = None,
    name: str = "colours",
    *,
    resize: ResizeMode = "stretch",
    version: int = 3,
    labels: tuple[str, ...] = LABELS,
) -> None:
    """Adds a profile to the repository; `model` is the file, if it is not to be the network above."""
    folder = Repository(root).folder(name, version, profile)
    folder.path.mkdir(parents=True)
    folder.model_path.write_bytes(quarters_model() if model is None else model)
    manifest = Manifest(
        model=name,
        version=version,
        profile=profile,
        variant="P",
        labels=labels,
        input=InputSpec(width=WIDTH, height=HEIGHT, resize=resize),
        candidates=4,
        thresholds=Thresholds(score=0.5, nms_iou=0.7, max_detections=100),
        parameters=1,
        macs=2,
        accuracy=Accuracy(dataset="none", images=5, ap=ap, ap50=ap, per_class={}),
        latency=Latency(median_ms=1, p90_ms=1, runs=1, threads=1, cpu="none", instruction_set="none", runtime="none"),
        recipe=Recipe(name=profile),
        source=Source(checkpoint="none", sha256="0" * 64),
        files={MODEL_FILE: describe_file(folder.model_path)},
    )
    folder.write(manifest)


@pytest.fixture(autouse=True)
def quick_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The metrics server looks every half second whether it is to stop, and the port stays open for calls on their way.

    Tests need not wait so long.
    """
    monkeypatch.setattr(BaseServer.serve_forever, "__defaults__", (0.01,))
    monkeypatch.setattr(app, "LAST_CALLS_SECONDS", 0.0)


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    add_profile(root, "accurate", ap=0.6)
    add_profile(root, "quick", ap=0.4)
    return root


@pytest.fixture
def repository(pristine: Path, tmp_path: Path) -> Path:
    """A repository of its own for each test: the model `colours`, version 3, profiles `accurate` and `quick`."""
    return Path(shutil.copytree(pristine, tmp_path / "repository"))


@pytest.fixture
def new_profile() -> Callable[..., None]:
    return add_profile


def picture(*colours: str, size: tuple[int, int] = (80, 60)) -> Image.Image:
    """An image with one colour, or four: top left, top right, bottom left, bottom right."""
    four = colours * 4 if len(colours) == 1 else colours
    image = Image.new("RGB", size)
    w, h = size[0] // 2, size[1] // 2
    for index, colour in enumerate(four):
        image.paste(colour, (index % 2 * w, index // 2 * h, index % 2 * w + w, index // 2 * h + h))
    return image


def encode(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@dataclass
class Pictures:
    """The helpers above, for tests."""

    draw: Callable[..., Image.Image] = picture
    encode: Callable[..., bytes] = encode
    red: bytes = field(default_factory=lambda: encode(picture("red")))


@pytest.fixture(scope="session")
def pictures() -> Pictures:
    return Pictures()


class Valve:
    """Holds engines up: while it is shut, every `run` waits inside. `sizes` has the batch of each run since `shut`."""

    def __init__(self) -> None:
        self._opened = threading.Event()
        self._entered = threading.Event()
        self.sizes: list[int] = []
        self.fault: Exception | None = None
        self.open()

    def open(self) -> None:
        self._opened.set()

    def shut(self) -> None:
        self.sizes.clear()
        self._entered.clear()
        self._opened.clear()

    async def entered(self) -> None:
        """Returns when a run waits inside."""
        assert await asyncio.to_thread(self._entered.wait, PATIENCE)

    def load(self, model: bytes, manifest: Manifest, options: EngineOptions) -> Engine:
        return ValvedEngine(OnnxRuntimeEngine(model, manifest, options), self)

    def pass_through(self, size: int) -> None:
        self.sizes.append(size)
        self._entered.set()
        assert self._opened.wait(PATIENCE)
        if self.fault is not None:
            raise self.fault


@dataclass
class ValvedEngine:
    engine: Engine
    valve: Valve

    def run(self, images: Any) -> Outputs:
        self.valve.pass_through(len(images))
        return self.engine.run(images)


@pytest.fixture
def valve() -> Iterator[Valve]:
    valve = Valve()
    yield valve
    valve.open()


@dataclass
class Failure:
    """What a failed call brought."""

    code: grpc.StatusCode
    message: str
    status: status_pb2.Status | None
    metadata: dict[str, str | bytes]

    @property
    def reason(self) -> str | None:
        info = self.detail(error_details_pb2.ErrorInfo)
        assert info is None or info.domain == "damoserve"
        return None if info is None else info.reason

    def detail(self, kind: type[Any]) -> Any:
        for packed in self.status.details if self.status is not None else ():
            if packed.Is(kind.DESCRIPTOR):
                detail = kind()
                packed.Unpack(detail)
                return detail
        return None


@dataclass
class Client:
    """Talks to the server under test."""

    application: Application
    channel: grpc.aio.Channel

    def detect(self, image: bytes, timeout: float | None = PATIENCE, **fields: Any) -> Any:
        """A call; awaiting it gives the response."""
        request = pb.DetectRequest(image=pb.Image(content=image), **fields)
        return pb_grpc.DetectionServiceStub(self.channel).Detect(request, timeout=timeout)

    @property
    def profiles(self) -> Any:
        return pb_grpc.ProfileServiceStub(self.channel)

    def learn(self, seconds: float) -> None:
        """From now on the server believes that every batch, whatever its size, takes so long."""
        for profile in self.application._detector.result().catalogue.active():
            for size in range(1, self.application._settings.max_batch_size + 1):
                profile.latency.observe(seconds, size)

    async def failure(self, call: Any) -> Failure:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        error = caught.value
        return Failure(
            error.code(), error.details() or "", rpc_status.from_call(error), dict(error.trailing_metadata())
        )

    async def health(self, service: str = "") -> str:
        request = health_pb2.HealthCheckRequest(service=service)
        answer = await health_pb2_grpc.HealthStub(self.channel).Check(request, timeout=PATIENCE)
        return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)

    async def metrics(self) -> "Samples":
        url = f"http://127.0.0.1:{self.application.metrics_port}/metrics"
        text = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=PATIENCE).read().decode())
        return Samples(text)

    async def until(self, condition: Callable[["Samples"], bool]) -> None:
        """Returns when the server's metrics meet the condition."""
        async with asyncio.timeout(PATIENCE):
            while not condition(await self.metrics()):
                pass


class Samples:
    """The metrics at one moment."""

    def __init__(self, text: str) -> None:
        self._families = list(text_string_to_metric_families(text))
        self._samples = [sample for family in self._families for sample in family.samples]

    def families(self) -> set[tuple[str, str, frozenset[str]]]:
        """The name, the type and the labels of each."""
        return {
            (
                f"{family.name}_total" if family.type == "counter" else family.name,
                family.type,
                frozenset(family.samples[0].labels) - {"le"},
            )
            for family in self._families
        }

    def series(self) -> set[tuple[str, str]]:
        return {(sample.name, str(sample.labels)) for sample in self._samples}

    def sum(self, name: str, **labels: str) -> float:
        """Over all series with these labels. There must be one."""
        found = [s.value for s in self._samples if s.name == name and labels.items() <= s.labels.items()]
        assert found, f"no series {name} {labels}"
        return sum(found)


Serve = Callable[..., AbstractAsyncContextManager[Client]]


@pytest.fixture
def serve(repository: Path) -> Serve:
    """`async with serve(max_queue=2) as client`: a server with these settings, and a client."""

    @asynccontextmanager
    async def running(load_engine: Any = OnnxRuntimeEngine, **settings: Any) -> AsyncIterator[Client]:
        application = make_application(repository, load_engine, **settings)
        async with (
            application,
            grpc.aio.insecure_channel(f"127.0.0.1:{application.port}") as channel,
        ):
            yield Client(application, channel)

    return running


def make_application(
    root: Path, load_engine: Any = OnnxRuntimeEngine, tracer: Tracer | None = None, **settings: Any
) -> Application:
    defaults = {"repository": root, "port": 0, "metrics_port": 0, "workers": 1}
    return Application(Settings(**(defaults | settings)), load_engine, tracer=tracer)


@pytest.fixture
def client_of() -> Callable[[Application], AbstractAsyncContextManager[Client]]:
    @asynccontextmanager
    async def connect(application: Application) -> AsyncIterator[Client]:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{application.port}") as channel:
            yield Client(application, channel)

    return connect


@pytest.fixture
def application(repository: Path) -> Callable[..., Application]:
    """Makes an application that is not started yet."""
    return partial(make_application, repository)
