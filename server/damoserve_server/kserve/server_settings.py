"""Answers Triton's methods for the settings of traces and log. Settings can be read here, not changed. Pure functions.

A value that a setting has already is accepted, as the caller then has what it asks for; any other is refused.
"""

from collections.abc import Mapping, Sequence

from damoserve.kserve.v2 import inference_pb2 as pb
from damoserve_server.configuration.settings import Settings
from damoserve_server.errors import NotOffered
from damoserve_server.models.catalogue import MAX_SHOWN
from damoserve_server.telemetry.settings import LogLevel

VERBOSITY = {LogLevel.ERROR: 0, LogLevel.WARNING: 1, LogLevel.INFO: 2, LogLevel.DEBUG: 3}
"""How much each level logs, in its order."""

LogValue = bool | int | str


def trace_settings(request: pb.TraceSettingRequest, settings: Settings) -> pb.TraceSettingResponse:
    """Returns the settings of the trace. Raises NotOffered if the request would change one."""
    traced = settings.tracing.endpoint is not None
    current = {"trace_level": ["TIMESTAMPS" if traced else "OFF"], "trace_mode": ["opentelemetry"]}
    # Without a value a setting goes back to that of the whole server, which there is no other than.
    requested = {name: list(setting.value) for name, setting in request.settings.items() if setting.value}
    _refuse_changes("traces are", requested, current)
    return pb.TraceSettingResponse(
        settings={name: pb.TraceSettingResponse.SettingValue(value=value) for name, value in current.items()}
    )


def log_settings(request: pb.LogSettingsRequest, settings: Settings) -> pb.LogSettingsResponse:
    """Returns the settings of the log. Raises NotOffered if the request would change one."""
    verbosity = VERBOSITY[settings.log_level]
    current: dict[str, LogValue] = {
        "log_file": "",  # stands for the console
        "log_error": True,
        "log_warning": verbosity >= VERBOSITY[LogLevel.WARNING],
        "log_info": verbosity >= VERBOSITY[LogLevel.INFO],
        "log_verbose_level": int(verbosity >= VERBOSITY[LogLevel.DEBUG]),
    }
    _refuse_changes("the log is", {name: _value(setting) for name, setting in request.settings.items()}, current)
    return pb.LogSettingsResponse(settings={name: _log_setting(value) for name, value in current.items()})


def _refuse_changes(
    subject: str,
    requested: Mapping[str, LogValue | Sequence[str] | None],
    current: Mapping[str, LogValue | Sequence[str]],
) -> None:
    for name, value in sorted(requested.items()):
        if name not in current or value != current[name]:
            raise NotOffered(f"{subject} not set over this service", setting=name[:MAX_SHOWN])


def _value(setting: pb.LogSettingsRequest.SettingValue) -> LogValue | None:
    kind = setting.WhichOneof("parameter_choice")
    return None if kind is None else getattr(setting, kind)


def _log_setting(value: LogValue) -> pb.LogSettingsResponse.SettingValue:
    if isinstance(value, bool):
        return pb.LogSettingsResponse.SettingValue(bool_param=value)
    if isinstance(value, int):
        return pb.LogSettingsResponse.SettingValue(uint32_param=value)
    return pb.LogSettingsResponse.SettingValue(string_param=value)
