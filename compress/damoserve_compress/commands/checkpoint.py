"""`damoserve-compress publish`: checkpoints."""

from pathlib import Path
from typing import Annotated

import typer

from damoserve_compress.commands.options import told


def publish(
    checkpoint: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Trained network (safetensors).")],
    target: Annotated[Path, typer.Argument(dir_okay=False, help="File to write.")],
) -> None:
    """Write a checkpoint with half-precision weights, half as large, to be kept or passed on."""
    import torch

    from damoserve_compress.network.checkpoint import CheckpointError, load_checkpoint, save_checkpoint

    with told(CheckpointError):
        network, description = load_checkpoint(checkpoint)
    target.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(target, network, description, torch.float16)
