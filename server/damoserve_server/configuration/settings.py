"""All settings of the server: by option, environment (`DAMOSERVE_...`) or YAML file, in this order of precedence.

docs/settings.md lists them.
"""

import os
from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, FilePath, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    YamlConfigSettingsSource,
)

from damoserve_profiles.imaging import DEFAULT_MAX_PIXELS
from damoserve_profiles.recipe import Fraction
from damoserve_profiles.repository import BUNDLED
from damoserve_profiles.runtimes import EngineName
from damoserve_server.access.connections import ConnectionSettings
from damoserve_server.access.settings import AccessSettings
from damoserve_server.access.tls import TlsSettings
from damoserve_server.engines.engine import CPU_PROVIDER
from damoserve_server.fidelity.settings import FidelitySettings
from damoserve_server.scheduling.selection import Tier
from damoserve_server.telemetry.settings import LogFormat, LogLevel, TracingSettings

Positive = Annotated[int, Field(gt=0)]
Port = Annotated[int, Field(ge=0, le=65535)]
"""The number of a port; 0 lets the system choose."""

CGROUP_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""The file with the CPU quota of this container."""


class TierSettings(BaseModel):
    """The promise of a latency tier."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    objective_ms: Annotated[float, Field(gt=0)]
    """Milliseconds in which the tier is meant to answer."""
    accuracy_floor: Fraction = 0.0
    """Least average precision, 0 to 1, of the profiles that may serve the tier."""


class Tiers(BaseModel):
    """The tiers by name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    realtime: TierSettings = TierSettings(objective_ms=40)
    balanced: TierSettings = TierSettings(objective_ms=100)
    accurate: TierSettings = TierSettings(objective_ms=1000)

    def __getitem__(self, tier: Tier) -> TierSettings:
        return {Tier.REALTIME: self.realtime, Tier.BALANCED: self.balanced, Tier.ACCURATE: self.accurate}[tier]


def usable_cores(quota: Path = CGROUP_CPU_QUOTA) -> int:
    """Returns the number of usable cores, by affinity and the container's quota (cgroup v2), rounded down."""
    cores = len(os.sched_getaffinity(0))
    try:
        granted, period = quota.read_text().split()
        return max(1, min(cores, int(granted) // int(period)))
    except (OSError, ValueError):  # no cgroup v2, or "max": no quota
        return cores


class Settings(BaseSettings):
    """All settings of the server. Nested ones are set as `DAMOSERVE_TIERS__REALTIME__OBJECTIVE_MS`."""

    model_config = SettingsConfigDict(
        env_prefix="DAMOSERVE_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    config: FilePath | None = None
    """A YAML file with any of the other settings."""

    repository: Path = BUNDLED
    default_model: str | None = None
    """The model of requests that name none. Unset: the first by name."""
    default_tier: Tier = Tier.BALANCED
    """The tier of requests that name neither a tier nor a profile."""
    tiers: Tiers = Tiers()

    host: str = "127.0.0.1"
    port: Port = 50051
    metrics_host: str = "127.0.0.1"
    metrics_port: Port = 9464
    reflection: bool = True
    """Lets tools such as grpcurl ask for the contract."""
    kserve: bool = True
    """Serves the KServe v2 protocol on the same port."""
    kserve_admin: bool = False
    """Lets models be loaded and unloaded by that protocol; where there are tokens, with the right `admin`."""
    kserve_unavailable_when_full: bool = False
    """Refuses with UNAVAILABLE, as Triton does, what came by that protocol and does not fit into the queue."""
    admin_host: str = "127.0.0.1"
    admin_port: Port | None = None
    """Port of the admin service. Unset: there is none."""

    workers: Positive | None = None
    """Batches that are computed at the same time. Unset: what goes with the threads, or is measured to be fastest."""
    threads_per_worker: Positive | None = None
    """Threads that compute one batch. Unset: what goes with the workers, or is measured to be fastest."""
    split_seconds: Annotated[float, Field(ge=0)] = 2.0
    """Seconds in which a start may measure how many workers and threads are fastest. 0: a worker for each core."""
    engine: EngineName | None = None
    """The engine of all profiles. Unset: what a profile's manifest prefers, if that is installed, else ONNX Runtime."""
    providers: Annotated[tuple[str, ...], Field(min_length=1)] = (CPU_PROVIDER,)
    """ONNX Runtime execution providers, the preferred first."""
    gpu_device: Annotated[int, Field(ge=0)] = 0
    """Number of the GPU, among those that the process sees."""
    gpu_memory_bytes: Positive | None = None
    """Most memory of one engine: ONNX Runtime's arena, or TensorRT's scratch memory. Unset: what the GPU has."""
    engine_cache: Path | None = None
    """Folder where engines that were built for a GPU are kept. Unset: they are built at every start."""

    max_batch_size: Positive = 4
    """Most images of one batch."""
    max_batch_wait_ms: Annotated[float, Field(ge=0)] = 25.0
    """Most milliseconds that a free worker waits to fill a batch, where larger batches have measured a gain at all."""
    max_queue: Positive = 64
    """Most requests that wait, of all profiles.

    For each input size, buffers for so many and for a batch of each worker have to fit into memory.
    """
    max_concurrent_calls: Positive = 256
    """Calls that may be open; gRPC refuses more, unread.

    Above what can wait or run, so that a busy server can give its own reasons.
    """
    max_streams: Positive = 32
    """Detection streams that are open at the same time, and as many of KServe; they count as calls, too."""
    stream_window: Positive = 8
    """Frames of one stream that are being computed, or whose answers wait for the client."""
    stream_idle_seconds: Annotated[float, Field(gt=0)] = 60.0
    """Seconds for which a stream may bring no frame, or accept no answer."""
    default_deadline_seconds: Annotated[float, Field(gt=0)] = 10.0
    """Seconds for a call or a frame with neither a deadline nor a latency budget."""
    worker_timeout_seconds: Annotated[float, Field(gt=0)] = 30.0
    """Seconds that one batch may take before its worker is given up and replaced."""
    drain_seconds: Annotated[float, Field(ge=0)] = 10.0
    """Seconds that a stopping server waits for the requests it has accepted."""
    grace_seconds: Annotated[float, Field(ge=0)] = 0.0
    """Seconds in which a stopping server accepts new requests, for balancers to notice that it says NOT_SERVING."""
    watch_seconds: Annotated[float, Field(ge=0)] = 0.0
    """Seconds between two looks for changes of the repository. 0: only at the start and when asked to."""

    max_image_bytes: Positive = 16 * 2**20
    """Largest file of an image."""
    max_pixels: Positive = DEFAULT_MAX_PIXELS
    """Most pixels of an image."""
    max_message_bytes: Positive = 16 * 2**20 + 64 * 2**10
    """Largest message; gRPC refuses larger ones unread.

    Above `max_image_bytes`, so that a large image gets our own error.
    """

    tls: TlsSettings | None = None
    """Certificates of the port. Unset: plain text."""
    access: AccessSettings = AccessSettings()
    tracing: TracingSettings = TracingSettings()
    log_level: LogLevel = LogLevel.INFO
    log_format: LogFormat = LogFormat.TEXT
    access_log: bool = False
    """Logs a line for each call, frame of a stream and image of several."""
    connections: ConnectionSettings = ConnectionSettings()
    fidelity: FidelitySettings = FidelitySettings()

    @model_validator(mode="after")
    def _image_fits_into_message(self) -> Self:
        if self.max_message_bytes <= self.max_image_bytes:
            raise ValueError("max_message_bytes must be larger than max_image_bytes")
        return self

    @model_validator(mode="after")
    def _engine_suits_the_device(self) -> Self:
        if self.engine == "openvino" and self.providers != (CPU_PROVIDER,):
            raise ValueError("providers are ONNX Runtime's: leave them unset with the engine openvino")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        path = init_settings().get("config") or env_settings().get("config")
        try:
            file = YamlConfigSettingsSource(settings_cls, path)
        except (yaml.YAMLError, TypeError, ValueError) as error:  # the latter two: no text, or no names with values
            raise SettingsError(f"{path} is not a YAML file of settings: {error}") from error
        except AttributeError as error:  # pydantic takes every name for text
            raise SettingsError(f"{path} is not a YAML file of settings: a name in it is no text") from error
        return init_settings, env_settings, file
