"""Renders blood smears into a folder in COCO's format, to stand for data of yours.

    python examples/own_data/render.py my-data

writes `my-data/images/*.jpg` with `train.json` and `val.json` beside them. Each of the two lists its pictures, the
boxes in them as [left, top, width, height] in pixels, and the labels: what the common annotation tools export.
"""

import json
from pathlib import Path

import typer

from damoserve_compress.datasets.coco import write_coco
from damoserve_compress.datasets.rendered import RenderedSmears

SIZE = (320, 240)


def main(folder: Path, train: int = 64, val: int = 16, seed: int = 7) -> None:
    everything = write_coco(RenderedSmears(train + val, seed, SIZE), folder)
    document = json.loads(everything.read_text())
    everything.unlink()
    # No picture may be in both: what a network has been trained on says nothing about the next picture.
    for name, images in (("train", document["images"][:train]), ("val", document["images"][train:])):
        numbers = {image["id"] for image in images}
        annotations = [box for box in document["annotations"] if box["image_id"] in numbers]
        content = {"images": images, "annotations": annotations, "categories": document["categories"]}
        (folder / f"{name}.json").write_text(json.dumps(content))
    typer.echo(f"{train} pictures to train on and {val} to measure with: {folder}")


if __name__ == "__main__":
    typer.run(main)
