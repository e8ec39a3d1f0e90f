"""The command `damoserve serve`; the client finds it through the entry point group `damoserve.commands`."""

import logging
import os
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
import uvloop
from pydantic import ValidationError
from pydantic_settings import SettingsError

from damoserve_server.app import serve as serve_until_stopped
from damoserve_server.configuration.misconfiguration import explain, unknown_variables
from damoserve_server.configuration.settings import Settings
from damoserve_server.models.catalogue import CatalogueError
from damoserve_server.telemetry.logs import configure
from damoserve_server.telemetry.settings import LogFormat, LogLevel

log = logging.getLogger(__name__)


# Numbers and levels are accepted as text: a wrong one is explained like any other setting, in one line.
def serve(  # noqa: PLR0913, PLR0917 - one argument for each option
    repository: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of models. Default: the bundled model.")
    ] = None,
    host: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Address to listen on. Default: 127.0.0.1.")
    ] = None,
    port: Annotated[
        str | None, typer.Option(metavar="NUMBER", help="Port of the gRPC server; 0: any. Default: 50051.")
    ] = None,
    metrics_port: Annotated[
        str | None, typer.Option(metavar="NUMBER", help="Port of the metrics; 0: any. Default: 9464.")
    ] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="YAML file with any of the settings.")] = None,
    log_level: Annotated[
        str | None, typer.Option(metavar="|".join(LogLevel), help="Least level that is logged. Default: info.")
    ] = None,
) -> None:
    """Serve the models of a repository over gRPC until SIGTERM or Ctrl-C.

    There are more settings than these options; docs/settings.md has them
    all. Each can be an environment variable, DAMOSERVE_MAX_QUEUE for example,
    or stand in the file. Options win over variables, and these over the file.
    """
    options = {
        "repository": repository,
        "host": host,
        "port": port,
        "metrics_port": metrics_port,
        "config": config,
        "log_level": log_level,
    }
    set_options: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    try:
        settings = Settings(**set_options)
        configure(settings.log_level, settings.log_format)
        for warning in unknown_variables(os.environ):
            log.warning("%s", warning)
        announce = log.info if settings.log_format is LogFormat.JSON else typer.echo
        uvloop.run(serve_until_stopped(settings, announce))
    except (ValidationError, SettingsError) as error:
        _fail(explain(error, set_options, os.environ), error)
    except (CatalogueError, OSError) as error:
        _fail(" ".join(str(error).split()), error)


def _fail(reason: str, error: Exception) -> NoReturn:
    typer.echo(f"damoserve cannot start: {reason}", err=True)
    raise typer.Exit(1) from error
