"""Describes the server and its models as Triton's clients and tools expect: metadata, configuration and index.

Pure functions.
"""

from importlib.metadata import version

from damoserve.kserve.v2 import inference_pb2 as pb
from damoserve_server.configuration.settings import Settings
from damoserve_server.kserve.targets import Target
from damoserve_server.kserve.tensors import INPUTS, MAX_IMAGES, OUTPUTS, PIXELS, Tensor

NAME = "damoserve"
READY = "READY"
EXTENSIONS = ("schedule_policy", "model_configuration", "parameters", "statistics")
ADMINISTRATION_EXTENSION = "model_repository"

DATA_TYPES = {
    "BYTES": pb.TYPE_STRING,
    "FP32": pb.TYPE_FP32,
    "INT32": pb.TYPE_INT32,
    "UINT8": pb.TYPE_UINT8,
}


def server_metadata(administered: bool) -> pb.ServerMetadataResponse:
    extensions = [*EXTENSIONS, *([ADMINISTRATION_EXTENSION] if administered else [])]
    return pb.ServerMetadataResponse(name=NAME, version=version(NAME), extensions=extensions)


def model_metadata(target: Target) -> pb.ModelMetadataResponse:
    return pb.ModelMetadataResponse(
        name=target.name,
        versions=[target.version],
        platform=NAME,
        inputs=[_tensor_metadata(tensor) for tensor in INPUTS],
        outputs=[_tensor_metadata(tensor) for tensor in OUTPUTS],
    )


def _tensor_metadata(tensor: Tensor) -> pb.ModelMetadataResponse.TensorMetadata:
    shape = (-1, *tensor.dims)
    return pb.ModelMetadataResponse.TensorMetadata(name=tensor.name, datatype=tensor.datatype, shape=shape)


def model_config(target: Target, settings: Settings) -> pb.ModelConfig:
    return pb.ModelConfig(
        name=target.name,
        platform=NAME,
        backend=NAME,
        max_batch_size=MAX_IMAGES,
        input=[_model_input(tensor) for tensor in INPUTS],
        output=[
            pb.ModelOutput(name=tensor.name, data_type=DATA_TYPES[tensor.datatype], dims=tensor.dims)
            for tensor in OUTPUTS
        ],
        dynamic_batching=pb.ModelDynamicBatching(max_queue_delay_microseconds=round(1000 * settings.max_batch_wait_ms)),
        model_transaction_policy=pb.ModelTransactionPolicy(decoupled=False),
    )


def _model_input(tensor: Tensor) -> pb.ModelInput:
    return pb.ModelInput(
        name=tensor.name,
        data_type=DATA_TYPES[tensor.datatype],
        format=pb.ModelInput.FORMAT_NHWC if tensor is PIXELS else pb.ModelInput.FORMAT_NONE,
        dims=tensor.dims,
        optional=True,  # each stands in for the other
    )


def index_entry(target: Target) -> pb.RepositoryIndexResponse.ModelIndex:
    return pb.RepositoryIndexResponse.ModelIndex(
        name=target.name,
        version=target.version,
        state=READY if target.ready else "LOADING" if target.loading else "UNAVAILABLE",
        reason=target.reason,
    )
