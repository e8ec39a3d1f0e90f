"""Triton's own client against the server under test. Importing this skips tests where it is not installed."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.server import ServerClient
from tests.support.timeouts import TIMEOUT

triton = pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed")
InferenceServerException = triton.InferenceServerException
P = ParamSpec("P")
T = TypeVar("T")


async def call(server: ServerClient, work: Callable[Concatenate[Any, P], T], *args: P.args, **options: P.kwargs) -> T:
    """Runs `work(client, ...)` with the synchronous client, beside the server."""

    def run() -> T:
        with triton.InferenceServerClient(f"127.0.0.1:{server.application.port}") as client:
            return work(client, *args, **options)

    return await asyncio.to_thread(run)


def files_input(images: Sequence[bytes], shape: Sequence[int] | None = None) -> Any:
    tensor = triton.InferInput("images", shape or [len(images)], "BYTES")
    tensor.set_data_from_numpy(np.array(images, np.object_).reshape(tensor.shape()))
    return tensor


def pixels_input(array: NDArray[np.uint8]) -> Any:
    tensor = triton.InferInput("pixels", array.shape, "UINT8")
    tensor.set_data_from_numpy(array)
    return tensor


def infer(client: Any, /, inputs: Any, model: str = "colours", **options: Any) -> Any:
    return client.infer(model, inputs if isinstance(inputs, list) else [inputs], client_timeout=TIMEOUT, **options)


def refusal(client: Any, *args: Any, **options: Any) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as caught:
        infer(client, *args, **options)
    return caught.value.status().removeprefix("StatusCode."), caught.value.message()
