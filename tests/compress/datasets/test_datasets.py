"""Data sets: rendered smears are reproducible and exactly boxed; COCO data is read with care and written faithfully."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from damoserve_compress.commands.options import origins
from damoserve_compress.datasets import (
    AnnotationsError,
    Dataset,
    MissingPicture,
    Sample,
    UnreadablePicture,
    WrongSize,
)
from damoserve_compress.datasets.coco import CocoDataset, write_coco
from damoserve_compress.datasets.rendered import (
    RenderedSmears,
    boxed_cells,
    lay,
    main,
    place,
    render_scene,
    visible_pixels,
)
from damoserve_profiles.manifest import DataSource

SIZE = (320, 240)


def same(first: Sample, second: Sample) -> bool:
    return (
        np.array_equal(first.image, second.image)
        and np.array_equal(first.boxes, second.boxes)
        and np.array_equal(first.labels, second.labels)
    )


def test_a_scene_depends_only_on_seed_and_index() -> None:
    long, short = RenderedSmears(9, seed=3, size=SIZE), RenderedSmears(5, seed=3, size=SIZE)
    for index in (4, 0):
        assert same(long[index], short[index])
    assert same(short[4], render_scene(3, SIZE, index=4))
    assert not np.array_equal(short[0].image, short[1].image)
    assert not np.array_equal(short[0].image, RenderedSmears(5, seed=4, size=SIZE)[0].image)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), width=st.integers(32, 400), height=st.integers(32, 400))
def test_scenes_of_any_size_are_well_formed(seed: int, width: int, height: int) -> None:
    sample = render_scene(seed, (width, height))
    assert sample.image.shape == (height, width, 3)
    assert sample.image.dtype == np.uint8
    assert sample.boxes.shape == (len(sample.labels), 4)
    assert (sample.boxes.dtype, sample.labels.dtype) == (np.dtype(np.float32), np.dtype(np.int64))
    assert (sample.boxes[:, :2] >= 0).all()
    assert (sample.boxes[:, 2:] <= (width, height)).all()
    assert (sample.boxes[:, 2:] > sample.boxes[:, :2]).all()
    assert set(sample.labels.tolist()) <= {0, 1, 2}


@pytest.mark.parametrize("index", range(4))
def test_a_box_is_the_extent_of_what_its_cell_changes(index: int) -> None:
    cells = place(np.random.default_rng((11, index)), SIZE)
    for cell in cells:
        drawn = lay([cell], SIZE)
        rows, columns = np.nonzero(np.abs(drawn).sum(0))
        assert cell.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        rest = [other for other in cells if other is not cell]
        rows, columns = np.nonzero(np.abs(lay(cells, SIZE) - lay(rest, SIZE)).sum(0))
        left, top, right, bottom = cell.box
        assert left <= columns.min() < columns.max() < right
        assert top <= rows.min() < rows.max() < bottom


def test_boxes_of_the_sample_are_those_of_the_placed_cells() -> None:
    for index in range(6):
        sample = render_scene(11, SIZE, index)
        cells = place(np.random.default_rng((11, index)), SIZE)
        boxed = boxed_cells(cells, SIZE)
        assert sample.boxes.tolist() == [list(cell.box) for cell in boxed]
        assert sample.labels.tolist() == [cell.label for cell in boxed]


def test_only_cells_cut_by_the_frame_go_without_a_box() -> None:
    unboxed = 0
    for index in range(12):
        cells = place(np.random.default_rng((5, index)), SIZE)
        boxed = boxed_cells(cells, SIZE)
        for cell, seen in zip(cells, visible_pixels(cells, SIZE).tolist(), strict=True):
            assert seen >= 0.35 * np.count_nonzero(cell.mask)
            if cell not in boxed:
                unboxed += 1
                left, top, right, bottom = cell.box
                assert left == 0 or top == 0 or (right, bottom) == SIZE or right == SIZE[0] or bottom == SIZE[1]
    assert unboxed > 0


def test_cells_are_darker_than_the_glass_in_the_picture() -> None:
    for index in range(4):
        sample = render_scene(21, SIZE, index)
        glass = np.percentile(sample.image[..., 1], 90)
        for left, top, right, bottom in sample.boxes.astype(int):
            assert np.percentile(sample.image[top:bottom, left:right, 1], 25) < glass - 5


def test_all_classes_appear() -> None:
    smears = RenderedSmears(12, seed=0, size=(160, 120))
    assert smears.labels == ("RBC", "WBC", "Platelets")
    assert set(np.concatenate([smears[index].labels for index in range(12)]).tolist()) == {0, 1, 2}


def test_index_and_size_are_checked() -> None:
    with pytest.raises(IndexError, match="scene 2 of 2"):
        RenderedSmears(2, seed=0)[2]
    assert len(list(iter(RenderedSmears(2, seed=0, size=SIZE)))) == 2  # iteration ends
    with pytest.raises(ValueError, match="at least 32 pixels"):
        render_scene(0, (640, 31))


def test_the_command_saves_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "new" / "smear.jpg"
    main([str(path), "--seed", "5", "--size", "96", "64"])
    saved = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    assert saved.shape == (64, 96, 3)
    assert np.abs(saved.astype(int) - render_scene(5, (96, 64)).image).mean() < 4


def test_round_trip_through_coco(tmp_path: Path) -> None:
    smears: Dataset = RenderedSmears(3, seed=8, size=SIZE)
    read: Dataset = CocoDataset(write_coco(smears, tmp_path / "set"), tmp_path / "set" / "images")
    assert (len(read), read.labels) == (3, smears.labels)
    for index in range(3):
        before, after = smears[index], read[index]
        np.testing.assert_allclose(after.boxes, before.boxes, atol=0.01)
        np.testing.assert_array_equal(after.labels, before.labels)
        assert after.identifier == before.identifier
        assert np.abs(after.image.astype(int) - before.image).mean() < 3
        after.image[0, 0] = 0  # augmentation may write in place
        assert same(read[index], read[index])


def coco(folder: Path, annotations: list[dict[str, object]], **changes: object) -> CocoDataset:
    """A 100 x 80 picture with the given annotations, of categories 3 (b) and 2 (a)."""
    (folder / "images").mkdir(exist_ok=True)
    cv2.imwrite(str(folder / "images" / "one.png"), np.full((80, 100, 3), 200, np.uint8))
    document: dict[str, object] = {
        "images": [{"id": 7, "file_name": "one.png", "width": 100, "height": 80}],
        "categories": [{"id": 3, "name": "b"}, {"id": 2, "name": "a"}],
        "annotations": annotations,
    }
    (folder / "set.json").write_text(json.dumps(document | changes))
    return CocoDataset(folder / "set.json", folder / "images")


def mark(bbox: list[float], category: int = 2, **more: object) -> dict[str, object]:
    return {"image_id": 7, "category_id": category, "bbox": bbox, **more}


def test_boxes_are_clipped_and_empty_ones_dropped(tmp_path: Path) -> None:
    marks = [
        mark([-10, 70, 30, 30], category=3),
        mark([10, 10, 0, 5]),
        mark([120, 10, 20, 5]),
        mark([30, 20, -5, 10]),
        mark([90.5, 2.25, 20, 10]),
        mark([0, 0, 50, 50], iscrowd=1),
    ]
    dataset = coco(tmp_path, marks)
    assert dataset.labels == ("a", "b")
    assert dataset[0].boxes.tolist() == [[0, 70, 20, 80], [90.5, 2.25, 100, 12.25]]
    assert dataset[0].labels.tolist() == [1, 0]
    assert dataset[0].identifier == 7


def test_a_picture_without_boxes_is_kept(tmp_path: Path) -> None:
    sample = coco(tmp_path, [])[0]
    assert (sample.boxes.shape, sample.labels.shape) == ((0, 4), (0,))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such annotation file"),
        (b"{ broken", "not JSON"),
        (b"\xff\xfe\xfa", "not JSON"),
        (b"[]", "top level is not an object"),
        (b'{"images": [], "annotations": []}', "'categories'"),
        (b'{"images": [], "annotations": [], "categories": [7]}', r"categories\[0\]"),
    ],
)
def test_unusable_annotations_are_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "set.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AnnotationsError, match=message) as caught:
        CocoDataset(path, tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (mark([1, 2, 3]), r"malformed.*annotations\[0\]: bbox\.3"),
        (mark([1, 2, 3, float("nan")]), r"not finite.*annotations\[0\]: bbox\.3"),
        (mark([1, 2, 3, 4], category=9), r"unknown category id 9 in one\.png"),
        (mark([1, 2, 3, 4]) | {"image_id": 8}, "unknown image id 8"),
    ],
)
def test_unusable_boxes_are_named(tmp_path: Path, annotation: dict[str, object], message: str) -> None:
    with pytest.raises(AnnotationsError, match=message):
        coco(tmp_path, [annotation])


def test_every_further_fault_is_counted(tmp_path: Path) -> None:
    with pytest.raises(AnnotationsError, match=r"annotations\[0\].*\(and 2 more\)$"):
        coco(tmp_path, [mark([1]), mark([2]), mark([3])])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "id 1 is given 2 times"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}, "name a is given 2 times"),
        ({"images": [{"id": 7, "file_name": name, "width": 1, "height": 1} for name in "ab"]}, "id 7 is given 2 times"),
        ({"images": [{"id": i, "file_name": "a", "width": 1, "height": 1} for i in (1, 2)]}, "file name a is given 2"),
        ({"images": [{"id": 7, "file_name": "one.png", "width": 0, "height": 1}]}, r"images\[0\]: width"),
    ],
)
def test_what_contradicts_itself_is_named(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(AnnotationsError, match=message):
        coco(tmp_path, [], **changes)


def test_unusable_pictures_are_named_when_asked_for(tmp_path: Path) -> None:
    dataset = coco(tmp_path, [])
    path = tmp_path / "images" / "one.png"
    cv2.imwrite(str(path), np.zeros((20, 30, 3), np.uint8))
    with pytest.raises(WrongSize, match=r"one\.png: is 30x20, annotated as 100x80"):
        dataset[0]
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UnreadablePicture, match=r"one\.png: cannot be read as a picture"):
        dataset[0]
    path.unlink()
    with pytest.raises(MissingPicture, match=r"one\.png: no such picture"):
        dataset[0]


def annotated(tmp_path: Path, document: dict[str, object]) -> CocoDataset:
    path = tmp_path / "train.json"
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": []} | document))
    return CocoDataset(path, tmp_path)


@pytest.mark.parametrize(
    ("document", "origin"),
    [
        (
            {"info": {"description": "BCCD", "license": "MIT", "source": "somebody/BCCD"}},
            DataSource(name="BCCD", license="MIT", citation="somebody/BCCD"),
        ),
        (
            {"info": {"description": "shapes", "url": "example.org"}, "licenses": [{"name": "CC BY 4.0"}, {"id": 2}]},
            DataSource(name="shapes", license="CC BY 4.0", citation="example.org"),
        ),
        (
            {"info": {"description": "shapes", "license": "MIT"}, "licenses": [{"name": "MIT"}]},
            DataSource(name="shapes", license="MIT"),
        ),
        ({"info": {"description": " ", "license": "MIT"}}, None),
        ({"info": ["shapes"], "licenses": "MIT"}, None),
        ({}, None),
    ],
)
def test_annotations_say_where_they_are_from(
    tmp_path: Path, document: dict[str, object], origin: DataSource | None
) -> None:
    assert annotated(tmp_path, document).origin == origin


def test_manifests_name_the_folder_where_the_annotations_say_nothing(tmp_path: Path) -> None:
    silent, known = annotated(tmp_path, {}), annotated(tmp_path, {"info": {"description": "shapes"}})
    assert origins(tmp_path / "mine", silent) == (DataSource(name="mine"),)
    assert origins(tmp_path / "mine", silent, known, known) == (DataSource(name="shapes"),)
