"""The layouts in which a folder of training data is recognised.

train.json, val.json, images/                                    COCO, one folder of pictures
annotations/instances_train*.json, instances_val*.json,          COCO's own: train2017/ for instances_train2017.json
train*/, val*/
train/_annotations.coco.json, valid/_annotations.coco.json       COCO as Roboflow exports it, with the pictures beside
(or val/)
ImageSets/Main/train.txt, val.txt (or test.txt),                 Pascal VOC
Annotations/, JPEGImages/
"""

from collections.abc import Callable
from pathlib import Path

from damoserve_compress.datasets.coco import scan_coco
from damoserve_compress.datasets.errors import LayoutError
from damoserve_compress.datasets.pictures import Scan
from damoserve_compress.datasets.voc import scan_voc

Pair = tuple[Scan, Scan]


def scan_folder(folder: Path) -> Pair:
    """Reads the annotations in a folder: the training and the validation set, faults included.

    Raises LayoutError where none of the layouts is found, or COCO's own with more than one file for a set.
    """
    for layout in _LAYOUTS:
        if (pair := layout(folder)) is not None:
            return pair
    raise LayoutError(
        f"{folder}: no data set found; looked for train.json and val.json with images/, for"
        " annotations/instances_train*.json and instances_val*.json with train*/ and val*/, for"
        " train/_annotations.coco.json and valid/_annotations.coco.json with the pictures beside them (COCO), and for"
        " ImageSets/Main/train.txt and val.txt with Annotations/ and JPEGImages/ (VOC)"
    )


def _plain(folder: Path) -> Pair | None:
    files = folder / "train.json", folder / "val.json"
    if not any(file.exists() for file in files):
        return None
    return scan_coco(files[0], folder / "images"), scan_coco(files[1], folder / "images")


def _coco(folder: Path) -> Pair | None:
    if not any((folder / "annotations").glob("instances_*.json")):
        return None
    return _coco_set(folder, "train"), _coco_set(folder, "val")


def _coco_set(folder: Path, split: str) -> Scan:
    pattern = f"instances_{split}*.json"
    files = sorted((folder / "annotations").glob(pattern))
    if len(files) != 1:
        found = f"found {', '.join(file.name for file in files)}" if files else "found none"
        raise LayoutError(f"{folder / 'annotations'}: needs exactly one {pattern}, {found}")
    return scan_coco(files[0], folder / files[0].stem.removeprefix("instances_"))


def _roboflow(folder: Path) -> Pair | None:
    train, val, valid = (folder / name / "_annotations.coco.json" for name in ("train", "val", "valid"))
    if not any(file.exists() for file in (train, val, valid)):
        return None
    held_out = val if val.exists() else valid
    return scan_coco(train, train.parent), scan_coco(held_out, held_out.parent)


def _voc(folder: Path) -> Pair | None:
    lists = folder / "ImageSets" / "Main"
    if not lists.is_dir():
        return None
    held_out = "val" if (lists / "val.txt").exists() or not (lists / "test.txt").exists() else "test"
    train, val = scan_voc(folder, ("train", held_out))
    return train, val


_LAYOUTS: tuple[Callable[[Path], Pair | None], ...] = (_plain, _coco, _roboflow, _voc)
