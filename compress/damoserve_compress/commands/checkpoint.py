"""`damoserve-compress convert` and `publish`: checkpoints."""

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from damoserve_compress.commands.options import exit_on_error
from damoserve_profiles.imaging import ResizeMode


def _check_side(size: int | None) -> int | None:
    if size is not None and (size <= 0 or size % 32):
        raise typer.BadParameter(f"{size} is not a positive multiple of 32")
    return size


def convert(  # noqa: PLR0913, PLR0917
    checkpoint: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Reference checkpoint (.pth).")],
    target: Annotated[Path, typer.Argument(dir_okay=False, help="File to write (safetensors).")],
    model: Annotated[str, typer.Option(help="Name that the model is served under.")],
    variant: Annotated[
        str | None, typer.Option(help="Variant or structure file. Default: the variant that the tensors are of.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(dir_okay=False, help="File with one label a line. Default: COCO's.")
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            callback=_check_side,
            help="Side of the network's input in pixels, a multiple of 32. Default: the variant's.",
        ),
    ] = None,
    resize: Annotated[
        ResizeMode | None,
        typer.Option(
            help="How images are brought to that side. Default: fit, which keeps their aspect, for legacy checkpoints, "
            "which have a class more than labels; else stretch."
        ),
    ] = None,
) -> None:
    """Turn a checkpoint of the reference implementation, of either generation, into one to build from."""
    from damoserve_compress.datasets.labels import LabelsError, read_labels
    from damoserve_compress.network import StructureError
    from damoserve_compress.network.checkpoint import CheckpointError, Description, save_checkpoint
    from damoserve_compress.network.reference import ReferenceOptions, load_reference

    with exit_on_error(CheckpointError, LabelsError, StructureError, ValidationError, OSError):
        options = ReferenceOptions(variant, read_labels(labels) if labels is not None else None, resize)
        found = load_reference(checkpoint, options)
        side = size if size is not None else found.network.structure.input_size
        description = Description(
            model=model,
            variant=found.network.variant,
            labels=found.labels,
            width=side,
            height=side,
            resize=found.resize,
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(target, found.network, description)
    typer.echo(
        f"{target}: {description.variant} of generation {found.generation}, {len(found.labels)} labels, "
        f"{side} px, images resized by {found.resize}"
    )


def publish(
    checkpoint: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Trained network (safetensors).")],
    target: Annotated[Path, typer.Argument(dir_okay=False, help="File to write.")],
) -> None:
    """Write a checkpoint with half-precision weights, half as large, to be kept or passed on."""
    import torch

    from damoserve_compress.network.checkpoint import CheckpointError, load_checkpoint, save_checkpoint

    with exit_on_error(CheckpointError, OSError):
        network, description = load_checkpoint(checkpoint)
        target.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(target, network, description, torch.float16)
