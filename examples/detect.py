"""Finds the objects in one picture, and says which profile answered and why.

    damoserve serve &
    python examples/detect.py docs/images/smear.jpg --budget-ms 100

The server takes the most accurate profile that it expects to answer within the budget. What it cannot answer in time it
refuses at once, so that the caller can still do something else.
"""

from pathlib import Path

import typer

from damoserve_client import DEFAULT_ADDRESS, Client, DamoserveError, DeadlineExceeded


def main(image: Path, budget_ms: float = 1000, address: str = DEFAULT_ADDRESS) -> None:
    with Client(address) as client:
        try:
            result = client.detect(image, budget=budget_ms / 1000)
        except DeadlineExceeded as error:
            # Only a profile that is named is never replaced by another; without one the quickest was tried already.
            typer.echo(f"not within {budget_ms:.0f} ms: {error.message}", err=True)
            raise typer.Exit(1) from error
        except DamoserveError as error:
            typer.echo(f"{error}. {error.advice}", err=True)
            raise typer.Exit(1) from error

    for detection in result.detections:
        box = detection.box
        typer.echo(f"{detection.label:10} {detection.score:.2f}  ({box.x_min:.0f}, {box.y_min:.0f}) to ", nl=False)
        typer.echo(f"({box.x_max:.0f}, {box.y_max:.0f})")
    typer.echo(f"{result.profile} in {1000 * result.timings.total:.1f} ms, because {result.selection_reason}")


if __name__ == "__main__":
    typer.run(main)
