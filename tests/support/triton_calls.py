"""Triton's own client against the server under test. Importing this skips tests where it is not installed."""

import asyncio

import numpy as np
import pytest

from tests.support.timeouts import TIMEOUT

triton = pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed")
InferenceServerException = triton.InferenceServerException


async def call(server, work, *args, **options):
    """Runs `work(client, ...)` with the synchronous client, beside the server."""

    def run():
        with triton.InferenceServerClient(f"127.0.0.1:{server.application.port}") as client:
            return work(client, *args, **options)

    return await asyncio.to_thread(run)


def files_input(images, shape=None):
    tensor = triton.InferInput("images", shape or [len(images)], "BYTES")
    tensor.set_data_from_numpy(np.array(images, np.object_).reshape(tensor.shape()))
    return tensor


def pixels_input(array):
    tensor = triton.InferInput("pixels", array.shape, "UINT8")
    tensor.set_data_from_numpy(array)
    return tensor


def infer(client, inputs, model="colours", **options):
    return client.infer(model, inputs if isinstance(inputs, list) else [inputs], client_timeout=TIMEOUT, **options)


def refusal(client, *args, **options):
    with pytest.raises(InferenceServerException) as caught:
        infer(client, *args, **options)
    return caught.value.status().removeprefix("StatusCode."), caught.value.message()
