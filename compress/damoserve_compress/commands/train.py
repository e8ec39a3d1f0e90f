"""`damoserve-compress train`."""

from pathlib import Path
from typing import Annotated

import typer

from damoserve_compress.commands.options import DataFolder, read_data, told


def train(  # noqa: PLR0913, PLR0917
    data: DataFolder,
    out: Annotated[Path, typer.Option(help="Folder for checkpoint, weights and logs.")],
    model: Annotated[str, typer.Option(help="Name that the model is served under.")],
    variant: Annotated[str, typer.Option(help="Size of the network.")] = "P",
    size: Annotated[int, typer.Option(help="Side of the network's input in pixels, a multiple of 32.")] = 416,
    epochs: Annotated[int, typer.Option(min=1)] = 120,
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 2e-3,
    rendered: Annotated[int, typer.Option(min=0, help="Rendered images mixed into every epoch.")] = 0,
    eval_every: Annotated[int, typer.Option(min=1, help="Epochs between evaluations.")] = 5,
    threads: Annotated[int, typer.Option(min=0, help="Torch's threads; 0 takes all cores.")] = 0,
    seed: Annotated[int, typer.Option()] = 0,
    precision: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint in the output folder, if any.")] = True,
    init: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Checkpoint of the same variant to start from.")
    ] = None,
) -> None:
    """Train a network, resuming where a run in the same folder stopped."""
    from damoserve_compress.training.checkpoint import TrainingError
    from damoserve_compress.training.config import TrainConfig
    from damoserve_compress.training.trainer import Trainer, new_network

    with told(TrainingError, ValueError):
        train_set, val_set = read_data(data)
        config = TrainConfig(
            model=model,
            variant=variant,
            size=size,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=lr,
            rendered=rendered,
            eval_every=eval_every,
            threads=threads,
            seed=seed,
            precision=precision,  # type: ignore[arg-type]
        )
        network = new_network(config, train_set.labels, init)
        result = Trainer(network, config, train_set, val_set, out).run(resume=resume)
    typer.echo(f"AP {result.metrics.ap:.4f}, AP50 {result.metrics.ap50:.4f} on {result.metrics.images} images: {out}")
