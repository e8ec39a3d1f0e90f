"""The data set from an archive of its repository, which the tests make and a server in this process gives out."""

import errno
import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from damoserve_compress.datasets.coco import CocoDataset
from damoserve_compress.fetch import TargetUnusable, WrongContent
from damoserve_compress.fetch.bccd import BCCD, Archive, digest, fetch_bccd

Box = tuple[str, int, int, int, int]
"""Label, left, top, right, bottom."""
CELLS: dict[str, list[Box]] = {
    "BloodImage_00000": [("WBC", 2, 3, 20, 16), ("RBC", 1, 1, 9, 5), ("RBC", 4, 4, 4, 9)],
    "BloodImage_00001": [("Platelets", 5, 6, 7, 8)],
    "BloodImage_00002": [("RBC", 1, 2, 3, 4)],
}
LISTS = {"train": ["BloodImage_00001", "BloodImage_00002"], "val": ["BloodImage_00000"], "test": []}
TOP = "BCCD_Dataset-d272fb1"


def annotation(boxes: list[Box], width: int, height: int) -> str:
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax>"
        f"<ymax>{bottom}</ymax></bndbox></object>"
        for name, left, top, right, bottom in boxes
    )
    return f"<annotation><size><width>{width}</width><height>{height}</height></size>{objects}</annotation>"


def zipped(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in files.items():
            archive.writestr(f"{TOP}/{name}", data)
    return content.getvalue()


def repository() -> dict[str, bytes]:
    files = {"README.md": b"", "LICENSE": b"MIT"}
    for number, (name, boxes) in enumerate(CELLS.items()):
        picture = io.BytesIO()
        Image.fromarray(np.full((16, 20, 3), number, np.uint8)).save(picture, "JPEG")
        files[f"BCCD/JPEGImages/{name}.jpg"] = picture.getvalue()
        files[f"BCCD/Annotations/{name}.xml"] = annotation(boxes, 20, 16).encode()
    return files | {f"BCCD/ImageSets/Main/{name}.txt": "\n".join(lines).encode() for name, lines in LISTS.items()}


Publish = Callable[[bytes], str]


@pytest.fixture
def publish(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Publish]:
    """Gives out some bytes; returns their address."""
    folder = tmp_path_factory.mktemp("web")

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(folder))  # type: ignore[arg-type]

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()

        def put(content: bytes) -> str:
            (folder / "archive.zip").write_bytes(content)
            return f"http://127.0.0.1:{server.server_address[1]}/archive.zip"

        yield put
        server.shutdown()
        thread.join()


def quiet(done: int, total: int | None) -> None:
    pass


def test_the_archive_becomes_a_folder_to_train_on(publish: Publish, tmp_path: Path) -> None:
    out = tmp_path / "bccd"
    address = publish(zipped(repository()))
    with pytest.raises(WrongContent, match="holds another data set: its digest is ") as caught:
        fetch_bccd(out, quiet, Archive(address, "0" * 64))
    assert list(tmp_path.iterdir()) == []
    found = str(caught.value).partition("its digest is ")[2][:64]

    assert fetch_bccd(out, quiet, Archive(address, found)) == digest(out) == found
    assert {path.name for path in out.iterdir()} == {"train.json", "val.json", "images", "LICENSE"}
    assert [path.name for path in tmp_path.iterdir()] == ["bccd"]
    train, val = (CocoDataset(out / f"{split}.json", out / "images") for split in ("train", "val"))
    assert train.labels == val.labels == ("RBC", "WBC", "Platelets")
    assert [(sample.boxes.tolist(), sample.labels.tolist()) for sample in (train[0], train[1], val[0])] == [
        ([[5, 6, 7, 8]], [2]),
        ([[1, 2, 3, 4]], [0]),
        ([[2, 3, 20, 16], [1, 1, 9, 5]], [1, 0]),
    ]


def test_the_digest_is_that_of_sha256sum(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    lines = ""
    for name in ("images/a.jpg", "images/b.jpg", "val.json"):
        (tmp_path / name).write_text(name)
        lines += f"{hashlib.sha256(name.encode()).hexdigest()}  {name}\n"
    (tmp_path / "LICENSE").write_text("not counted")
    assert digest(tmp_path) == hashlib.sha256(lines.encode()).hexdigest()


def test_what_is_there_is_taken_or_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "bccd"
    out.mkdir()
    (out / "train.json").write_text("{}")
    nowhere = "http://127.0.0.1:9/not-asked"
    assert fetch_bccd(out, quiet, Archive(nowhere, digest(out))) == digest(out)
    with pytest.raises(TargetUnusable, match="holds something else"):
        fetch_bccd(out, quiet, Archive(nowhere, "0" * 64))
    assert (out / "train.json").read_text() == "{}"


def test_what_cannot_become_a_folder_is_refused_before_anything_is_got(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    nowhere = Archive("http://127.0.0.1:9/not-asked", "0" * 64)
    with pytest.raises(TargetUnusable, match="is no new folder: name one"):
        fetch_bccd(Path("."), quiet, nowhere)
    Path("file").write_text("")
    with pytest.raises(TargetUnusable, match="file is no new folder: name one"):
        fetch_bccd(Path("file"), quiet, nowhere)
    with pytest.raises(TargetUnusable, match="cannot be written: "):
        fetch_bccd(Path("file", "bccd"), quiet, nowhere)


def test_a_full_disk_is_not_the_sources_fault(
    publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "extractall", full)
    with pytest.raises(TargetUnusable, match="bccd cannot be written: No space left on device"):
        fetch_bccd(tmp_path / "bccd", quiet, Archive(publish(zipped(repository())), "0" * 64))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"no zip", zipped({"README.md": b""}), zipped({"LICENSE": b"", "BCCD/x": b""})])
def test_other_archives_are_refused(publish: Publish, tmp_path: Path, content: bytes) -> None:
    with pytest.raises(WrongContent):
        fetch_bccd(tmp_path / "bccd", quiet, Archive(publish(content), "0" * 64))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.data
def test_the_digest_is_that_of_the_data_set(publish: Publish, data: Path, tmp_path: Path) -> None:
    files = {"LICENSE": b"MIT"}
    for split in ("train", "val"):
        document = json.loads((data / f"{split}.json").read_bytes())
        labels = {category["id"]: category["name"] for category in document["categories"]}
        names = []
        for image in document["images"]:
            name = image["file_name"].removesuffix(".jpg")
            names.append(name)
            boxes = [(a["category_id"], a["bbox"]) for a in document["annotations"] if a["image_id"] == image["id"]]
            corners = [(labels[label], x, y, x + w, y + h) for label, (x, y, w, h) in boxes]
            files[f"BCCD/JPEGImages/{name}.jpg"] = (data / "images" / f"{name}.jpg").read_bytes()
            files[f"BCCD/Annotations/{name}.xml"] = annotation(corners, image["width"], image["height"]).encode()
        files[f"BCCD/ImageSets/Main/{split}.txt"] = "\n".join(names).encode()
    out = tmp_path / "bccd"
    fetch_bccd(out, quiet, Archive(publish(zipped(files)), BCCD.digest))
    for split in ("train", "val"):
        assert (out / f"{split}.json").read_bytes() == (data / f"{split}.json").read_bytes()
