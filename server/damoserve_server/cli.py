"""The command `damoserve serve`, found through the entry point group `damoserve.commands`."""

import logging
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from pydantic import ValidationError
from pydantic_settings import SettingsError

from damoserve_server.app import serve as serve_until_stopped
from damoserve_server.models.catalogue import CatalogueError
from damoserve_server.settings import Settings
from damoserve_server.telemetry.logs import configure
from damoserve_server.telemetry.settings import LogFormat, LogLevel

log = logging.getLogger(__name__)


def serve(  # noqa: PLR0913, PLR0917 - one argument for each option
    repository: Annotated[Path | None, typer.Option(help="Folder of models. Default: the bundled model.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Port of the gRPC server. Default: 50051.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Port of the metrics. Default: 9464.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with any of the settings.")] = None,
    log_level: Annotated[LogLevel | None, typer.Option(help="Least level that is logged. Default: info.")] = None,
) -> None:
    """Serve the models of a repository over gRPC until SIGTERM or Ctrl-C.

    Every setting can also be given as an environment variable, DAMOSERVE_PORT for example; options win.
    """
    options = {
        "repository": repository,
        "host": host,
        "port": port,
        "metrics_port": metrics_port,
        "config": config,
        "log_level": log_level,
    }
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    try:
        settings = Settings(**given)
        configure(settings.log_level, settings.log_format)
        announce = log.info if settings.log_format is LogFormat.JSON else typer.echo
        uvloop.run(serve_until_stopped(settings, announce))
    except (CatalogueError, ValidationError, SettingsError, OSError) as error:
        typer.echo(f"damoserve cannot start: {_in_one_line(error)}", err=True)
        raise typer.Exit(1) from error


def _in_one_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}" for wrong in error.errors())
    return " ".join(str(error).split())
