"""The `damoserve-compress` command."""

import typer

from damoserve_compress.commands.build import benchmark, build
from damoserve_compress.commands.checkpoint import publish
from damoserve_compress.commands.train import train

app = typer.Typer(help="Train, compress and measure DAMO-YOLO detectors.", no_args_is_help=True)
for command in (train, publish, build, benchmark):
    app.command()(command)


def main() -> None:
    app()
