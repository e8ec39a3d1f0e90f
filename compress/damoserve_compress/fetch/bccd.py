"""The BCCD blood cells (Shenggan/BCCD_Dataset, MIT licence), from their repository to a folder for `--data`.

`train.json` and `val.json` follow the data set's own lists. Boxes are read as (left, top, right, bottom) with right and
bottom exclusive, so that two without an area are left out.
"""

import hashlib
import json
import shutil
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, Final

from damoserve_compress.datasets.pictures import Picture, Scan
from damoserve_compress.datasets.voc import scan_voc
from damoserve_compress.fetch.errors import TargetUnusable, WrongContent, target_errors
from damoserve_compress.fetch.sources import fetch
from damoserve_compress.fetch.web import DEFAULT_RETRIES, ReportProgress, RetryPolicy
from damoserve_profiles.repository import describe_file

LABELS: Final = ("RBC", "WBC", "Platelets")
SPLITS: Final = ("train", "val")
INFO: Final = {
    "description": "BCCD blood cells",
    "license": "MIT, Copyright (c) 2017 shenggan",
    "source": "Shenggan/BCCD_Dataset d272fb1",
}


@dataclass(frozen=True)
class Archive:
    """A zip of the repository, and the digest of what is made of it, for the bytes of a zip may change."""

    url: str
    digest: str


BCCD: Final = Archive(
    "https://github.com/Shenggan/BCCD_Dataset/archive/d272fb1.zip",
    "ba005bf0377465fcbca9d99d74ba9912ad0e2bdac0233da6e0ded81b1cf6d21e",
)


def fetch_bccd(
    out: Path, report: ReportProgress, archive: Archive = BCCD, attempts: RetryPolicy = DEFAULT_RETRIES
) -> str:
    """Fills the folder `out`, in one step, with train.json, val.json, images/ and LICENSE; returns the digest.

    A folder that has the data set already is taken as it is. Raises FetchError, also where `out` holds something else.
    """
    if out.is_dir() and any(out.iterdir()):
        if digest(out) == archive.digest:
            return archive.digest
        raise TargetUnusable(f"{out} holds something else: name a new folder")
    if out.is_file() or not out.name:
        raise TargetUnusable(f"{out} is no new folder: name one")
    zipped = out.with_name(f"{out.name}.zip")
    fetch(archive.url, zipped, report=report, attempts=attempts)
    with target_errors(out), TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as work:
        made = Path(work) / "made"
        try:
            _convert(_unpack(zipped, Path(work)), made)
        except (zipfile.BadZipFile, LookupError, FileNotFoundError) as error:
            raise WrongContent(f"{archive.url} is not the repository of BCCD: {error}") from error
        finally:
            zipped.unlink()
        if (found := digest(made)) != archive.digest:
            raise WrongContent(f"{archive.url} holds another data set: its digest is {found}, not {archive.digest}")
        made.replace(out)
    return found


def digest(folder: Path) -> str:
    """SHA-256 of what sha256sum prints for annotations and images, sorted by name."""
    files = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in (".json", ".jpg")
    )
    lines = (f"{describe_file(folder / name).sha256}  {name}\n" for name in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _unpack(zipped: Path, work: Path) -> Path:
    """The repository's folder."""
    with zipfile.ZipFile(zipped) as file:
        file.extractall(work)
        return work / PurePosixPath(file.namelist()[0]).parts[0]


def _convert(repository: Path, out: Path) -> None:
    (out / "images").mkdir(parents=True)
    shutil.copyfile(repository / "LICENSE", out / "LICENSE")
    for split, scan in zip(SPLITS, scan_voc(repository / "BCCD", SPLITS, LABELS), strict=True):
        (out / f"{split}.json").write_text(json.dumps(_document(scan)), encoding="utf-8")
        for picture in scan.pictures:
            picture.path.replace(out / "images" / picture.path.name)


def _document(scan: Scan) -> dict[str, Any]:
    images = [
        {"id": number, "file_name": picture.path.name, "width": picture.size.width, "height": picture.size.height}
        for number, picture in enumerate(scan.pictures, 1)
    ]
    boxes = [
        {"image_id": number, "category_id": label + 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for number, picture in enumerate(scan.pictures, 1)
        for box, label in _boxes(picture)
    ]
    annotations = [{"id": number} | box for number, box in enumerate(boxes, 1)]
    categories = [{"id": rank, "name": label} for rank, label in enumerate(scan.labels, 1)]
    return {"info": INFO, "images": images, "annotations": annotations, "categories": categories}


def _boxes(picture: Picture) -> Iterable[tuple[list[int], int]]:
    # The scan has moved left and top by a pixel: in VOC proper they count from 1, and right and bottom are included.
    for (left, top, right, bottom), label in zip(picture.corners.tolist(), picture.labels.tolist(), strict=True):
        box = [int(left) + 1, int(top) + 1, int(right - left) - 1, int(bottom - top) - 1]
        if min(box[2:]) > 0:
            yield box, label
