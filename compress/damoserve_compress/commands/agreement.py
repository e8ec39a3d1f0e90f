"""`damoserve-compress agreement`: how far the profiles of a version find what their reference finds."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from damoserve_compress.commands.options import DataFolder, exit_on_error, read_data, validation_name
from damoserve_profiles.repository import Repository

if TYPE_CHECKING:
    from damoserve_profiles.manifest import Manifest, Thresholds
    from damoserve_profiles.postprocess import Detections
    from damoserve_profiles.repository import ProfileFolder


def agreement(
    version: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="Folder of a version: REPOSITORY/MODEL/VERSION.")
    ],
    data: DataFolder,
) -> None:
    """Measure the agreement of the profiles of a version with their reference, and write it into their manifests.

    A build does it, too; the networks are left as they are.
    """
    from damoserve_compress.build.agreement import add_agreement, serving_runtime
    from damoserve_compress.datasets.cache import CachedDataset
    from damoserve_compress.measure.evaluate import predict
    from damoserve_compress.targets import TARGETS

    with exit_on_error(ValueError):
        folders = _profiles(version.resolve())
        dataset = CachedDataset(read_data(data)[1])

        def detect(folder: "ProfileFolder", manifest: "Manifest", thresholds: "Thresholds") -> "list[Detections]":
            if manifest.labels != dataset.labels:
                raise ValueError(f"{folder.path} has labels {manifest.labels}, the data {dataset.labels}")
            recipe = manifest.recipe
            detector = TARGETS[recipe.target].detector(folder.model_path, recipe.export, serving_runtime(manifest))
            return predict(detector, dataset, manifest.input, thresholds)

        add_agreement(folders, validation_name(data), detect, typer.echo)


def _profiles(version: Path) -> "list[ProfileFolder]":
    """Raises ValueError."""
    folders = (
        Repository(version.parent.parent).profiles(version.parent.name, int(version.name))
        if version.name.isdecimal()
        else []
    )
    if not folders:
        raise ValueError(f"{version} holds no profiles: name the folder of a version, as REPOSITORY/MODEL/VERSION")
    return folders
