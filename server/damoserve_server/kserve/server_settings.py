"""How the server traces and logs, as Triton's clients read it; they change nothing. Pure functions.

A setting that already holds is taken, as with it a caller has what it asks for; any other is refused.
"""

from collections.abc import Mapping, Sequence

from damoserve.kserve.v2 import inference_pb2 as pb
from damoserve_server.configuration.settings import Settings
from damoserve_server.errors import NotOffered
from damoserve_server.models.catalogue import MAX_SHOWN
from damoserve_server.telemetry.settings import LogLevel

VERBOSITY = {LogLevel.ERROR: 0, LogLevel.WARNING: 1, LogLevel.INFO: 2, LogLevel.DEBUG: 3}

LogValue = bool | int | str


def trace_settings(request: pb.TraceSettingRequest, settings: Settings) -> pb.TraceSettingResponse:
    """Raises NotOffered."""
    traced = settings.tracing.endpoint is not None
    held = {"trace_level": ["TIMESTAMPS" if traced else "OFF"], "trace_mode": ["opentelemetry"]}
    # Without a value a setting goes back to that of the whole server, which there is no other than.
    wanted = {name: list(given.value) for name, given in request.settings.items() if given.value}
    _refuse_changes("traces are", wanted, held)
    return pb.TraceSettingResponse(
        settings={name: pb.TraceSettingResponse.SettingValue(value=value) for name, value in held.items()}
    )


def log_settings(request: pb.LogSettingsRequest, settings: Settings) -> pb.LogSettingsResponse:
    """Raises NotOffered."""
    verbosity = VERBOSITY[settings.log_level]
    held: dict[str, LogValue] = {
        "log_file": "",  # stands for the console
        "log_error": True,
        "log_warning": verbosity >= VERBOSITY[LogLevel.WARNING],
        "log_info": verbosity >= VERBOSITY[LogLevel.INFO],
        "log_verbose_level": int(verbosity >= VERBOSITY[LogLevel.DEBUG]),
    }
    _refuse_changes("the log is", {name: _value(given) for name, given in request.settings.items()}, held)
    return pb.LogSettingsResponse(settings={name: _log_setting(value) for name, value in held.items()})


def _refuse_changes(
    what: str, wanted: Mapping[str, LogValue | Sequence[str] | None], held: Mapping[str, LogValue | Sequence[str]]
) -> None:
    for name, value in sorted(wanted.items()):
        if name not in held or value != held[name]:
            raise NotOffered(f"{what} not set over this service", setting=name[:MAX_SHOWN])


def _value(given: pb.LogSettingsRequest.SettingValue) -> LogValue | None:
    kind = given.WhichOneof("parameter_choice")
    return None if kind is None else getattr(given, kind)


def _log_setting(value: LogValue) -> pb.LogSettingsResponse.SettingValue:
    if isinstance(value, bool):
        return pb.LogSettingsResponse.SettingValue(bool_param=value)
    if isinstance(value, int):
        return pb.LogSettingsResponse.SettingValue(uint32_param=value)
    return pb.LogSettingsResponse.SettingValue(string_param=value)
