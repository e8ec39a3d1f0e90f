"""Golden images: what a built profile finds in a rendered scene, for every engine that loads it to find again.

`python -m damoserve_compress.build.golden FOLDER ...` adds them to profiles that were built without.
"""

import argparse
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from damoserve_compress.datasets.rendered import render_scene
from damoserve_compress.measure.evaluate import Detector
from damoserve_compress.measure.runtime import Runtime, open_detector
from damoserve_compress.measure.timing import instruction_set
from damoserve_profiles.files import replace_file, replace_text
from damoserve_profiles.golden import GOLDEN_FILE, GOLDEN_IMAGE, Expected, Golden, detect
from damoserve_profiles.imaging import decode
from damoserve_profiles.manifest import Manifest
from damoserve_profiles.postprocess import Detections
from damoserve_profiles.repository import ProfileFolder, describe_file

SCENE = {"seed": 7, "size": (320, 240), "index": 3}
LOWEST_SCORE = 0.01
"""The score below which detections are not worth comparing: a network of other things finds little in the scene."""


def add_golden(
    folder: ProfileFolder, manifest: Manifest, detector: Detector, image: NDArray[np.uint8] | None = None
) -> Manifest:
    """Writes the golden files beside the model, of a rendered scene or another RGB image.

    Returns the manifest that lists them; it is not written. Without any detection there are no golden files.
    """
    image = render_scene(**SCENE).image if image is None else image  # type: ignore[arg-type]
    score = manifest.thresholds.score
    while not len((found := detect(detector, image, manifest, score)[0]).scores):
        score /= 2
        if score < LOWEST_SCORE:
            return manifest
    golden = Golden(
        score=score, runtime=manifest.latency.runtime, instruction_set=instruction_set(), detections=_expected(found)
    )
    replace_file(folder.path / GOLDEN_IMAGE, partial(_write_png, image))
    replace_text(folder.path / GOLDEN_FILE, golden.model_dump_json(indent=1) + "\n")
    files = {name: describe_file(folder.path / name) for name in (GOLDEN_IMAGE, GOLDEN_FILE)}
    return manifest.model_copy(update={"files": manifest.files | files})


def _expected(found: Detections) -> tuple[Expected, ...]:
    rows = zip(found.labels.tolist(), found.scores.tolist(), found.boxes.tolist(), strict=True)
    return tuple(
        Expected(label=label, score=round(score, 4), box=tuple(round(side, 2) for side in box))
        for label, score, box in rows
    )


def _write_png(image: NDArray[np.uint8], path: Path) -> None:
    _, encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    path.write_bytes(encoded.tobytes())


def main() -> None:
    """Adds golden files to the profiles that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="folders of built profiles")
    parser.add_argument("--image", type=Path, help="an image for networks of other things than blood cells")
    arguments = parser.parse_args()
    image = decode(arguments.image.read_bytes()) if arguments.image else None
    for folder in map(ProfileFolder, arguments.folders):
        manifest = folder.verify()
        detector = open_detector(folder.model_path, Runtime(manifest.engine, manifest.precision))
        folder.write(add_golden(folder, manifest, detector, image))


if __name__ == "__main__":
    main()
