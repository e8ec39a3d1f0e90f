"""The `damoserve-compress` command."""

import typer

from damoserve_compress.training.command import train

app = typer.Typer(help="Train, compress and measure DAMO-YOLO detectors.", no_args_is_help=True)
app.command()(train)


@app.callback()
def _group() -> None:
    # With a callback, Typer keeps the command names even while there is only one.
    pass


def main() -> None:
    app()
