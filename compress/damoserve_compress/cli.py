"""The `damoserve-compress` command."""

import typer

from damoserve_compress.commands import benchmark, build, publish, train

app = typer.Typer(help="Train, compress and measure DAMO-YOLO detectors.", no_args_is_help=True)
for command in (train, publish, build, benchmark):
    app.command()(command)


def main() -> None:
    app()
