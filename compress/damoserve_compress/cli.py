"""The `damoserve-compress` command."""

import typer

from damoserve_profiles.extras import extra_needed

NEEDS = "damoserve-compress", "compress"

# The entry point imports this module in every install, one without the extra included.
with extra_needed(*NEEDS):
    from damoserve_compress.commands.advise import advise
    from damoserve_compress.commands.agreement import agreement
    from damoserve_compress.commands.build import benchmark, build
    from damoserve_compress.commands.checkpoint import convert, publish
    from damoserve_compress.commands.data import check
    from damoserve_compress.commands.evaluate import evaluate
    from damoserve_compress.commands.fetch import fetch
    from damoserve_compress.commands.naive import naive
    from damoserve_compress.commands.prune import prune
    from damoserve_compress.commands.report import report
    from damoserve_compress.commands.search import search
    from damoserve_compress.commands.train import distil, train

app = typer.Typer(help="Train, compress and measure DAMO-YOLO detectors.", no_args_is_help=True)
for command in (
    check,
    train,
    distil,
    search,
    fetch,
    convert,
    publish,
    prune,
    build,
    evaluate,
    benchmark,
    agreement,
    naive,
    report,
    advise,
):
    app.command()(command)


def main() -> None:
    """Runs the command; some of it imports PyTorch and the like only when it is needed."""
    with extra_needed(*NEEDS):
        app()
