"""`damoserve-compress evaluate`: what models score on a data set, and how sure the differences are."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from damoserve_compress.commands.options import DataFolder, exit_on_error, read_data
from damoserve_profiles.files import replace_text
from damoserve_profiles.manifest import MODEL_FILE, InputSpec, Thresholds
from damoserve_profiles.repository import ProfileFolder, RepositoryError

if TYPE_CHECKING:
    from damoserve_compress.datasets import Dataset
    from damoserve_compress.measure.bootstrap import Difference
    from damoserve_compress.measure.evaluate import Detector, Metrics
    from damoserve_profiles.postprocess import Detections

Results = dict[str, tuple["Metrics", "Difference | None"]]
"""The metrics of each model, and their difference from the first model's, which has none."""


def evaluate(
    models: Annotated[
        list[Path],
        typer.Argument(exists=True, help="Checkpoints (safetensors), folders of profiles or their model.onnx."),
    ],
    data: DataFolder,
    split: Annotated[Literal["train", "val"], typer.Option(help="Images to evaluate on.")] = "val",
    output: Annotated[
        Path | None, typer.Option("--json", dir_okay=False, help="File to write the results to, too.")
    ] = None,
) -> None:
    """Measure COCO's average precision, with the difference of each further model from the first."""
    from damoserve_compress.datasets.cache import CachedDataset
    from damoserve_compress.network.checkpoint import CheckpointError

    with exit_on_error(CheckpointError, RepositoryError, ValueError):
        dataset = CachedDataset(dict(zip(("train", "val"), read_data(data), strict=True))[split])
        results = _measure(dataset, {name: _detect(path, dataset) for name, path in _named(models).items()})
    Console().print(_table(results))
    for name, (_, difference) in results.items():
        if difference is not None:
            typer.echo(f"{name}: AP {difference.ap}, AP50 {difference.ap50} against {next(iter(results))}")
    if output is not None:
        replace_text(output, json.dumps(_as_dict(results), indent=2) + "\n")


def _named(paths: Sequence[Path]) -> dict[str, Path]:
    """Names the paths by their ends, from the last folder that all have in common."""
    absolute = [path.resolve() for path in paths]
    root = os.path.commonpath([path.parent for path in absolute])
    return {path.relative_to(root).as_posix(): path for path in absolute}


def _detect(path: Path, dataset: "Dataset") -> "list[Detections]":
    """Raises CheckpointError, RepositoryError, and ValueError for a model of other labels."""
    from damoserve_compress.measure.evaluate import predict

    detector, spec, labels, thresholds = _open(path)
    if labels != dataset.labels:
        raise ValueError(f"{path} has labels {labels}, the data {dataset.labels}")
    typer.echo(f"{path}: {len(dataset)} images", err=True)
    return predict(detector, dataset, spec, thresholds)


def _open(path: Path) -> "tuple[Detector, InputSpec, tuple[str, ...], Thresholds]":
    if path.is_dir() or path.name == MODEL_FILE:
        from damoserve_compress.measure.runtime import onnx_detector
        from damoserve_compress.report.measure import evaluation_thresholds

        folder = ProfileFolder(path if path.is_dir() else path.parent)
        manifest = folder.verify()
        return onnx_detector(folder.model_path), manifest.input, manifest.labels, evaluation_thresholds(manifest)
    from damoserve_compress.measure.evaluate import torch_detector
    from damoserve_compress.network import fuse
    from damoserve_compress.network.checkpoint import load_checkpoint

    network, description = load_checkpoint(path)
    return torch_detector(fuse(network)), description.input, description.labels, network.structure.evaluation


def _measure(dataset: "Dataset", detections: "dict[str, list[Detections]]") -> Results:
    from damoserve_compress.measure.bootstrap import compare
    from damoserve_compress.measure.evaluate import average_precision, ground_truth

    truth = ground_truth(dataset)
    first, *others = detections
    results: Results = {first: (average_precision(truth, detections[first]), None)}
    for name in others:
        difference = compare(truth, detections[first], detections[name])
        results[name] = average_precision(truth, detections[name]), difference
    return results


def _table(results: Results) -> Table:
    """A column for each model: there may be many classes."""
    table = Table("AP (x 100)")
    for name in results:
        table.add_column(name, justify="right", overflow="fold")
    for row in zip(*(_rows(metrics) for metrics, _ in results.values()), strict=True):
        table.add_row(row[0][0], *(f"{100 * value:.2f}" for _, value in row))
    return table


def _rows(metrics: "Metrics") -> Sequence[tuple[str, float]]:
    """The rows of a model's column; all models have the same, as rows are left out by the boxes of the data set."""
    overall = [("AP", metrics.ap), ("AP50", metrics.ap50), ("AP75", metrics.ap75)]
    return [*overall, *((f"AP {size}", ap) for size, ap in metrics.per_size.items()), *metrics.per_class.items()]


def _as_dict(results: Results) -> dict[str, object]:
    return {
        name: asdict(metrics) | {"difference": asdict(difference) if difference is not None else None}
        for name, (metrics, difference) in results.items()
    }
