"""Rendered blood smears: a data set without files, for tests, demo pictures and training beside real pictures.

Every scene is a pure function of (seed, index): cells are placed, laid down as dye, lit and photographed. Boxes are
the extents of the cells' own masks. ``python -m damoserve_compress.datasets.rendered OUT.jpg --seed 12`` saves one.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from damoserve_compress.datasets.cells import (
    LABELS,
    Cell,
    Outline,
    Plane,
    outline,
    platelet,
    red_cell,
    white_cell,
)
from damoserve_compress.datasets.coco import write_jpeg
from damoserve_compress.datasets.dataset import Sample

# Optical densities (red, green, blue) of one unit of each dye, after medians over BCCD's training pictures.
# Nuclei there are bluer than the glass: below zero in blue.
_DYES = np.array([[0.13, 0.30, 0.23], [0.50, 0.76, -0.07], [0.11, 0.24, 0.03]])
_GLASS = np.array([201.0, 203.0, 198.0])
_SMALLEST = 32
# A cell of which less than this is seen, whether covered or cut by the frame, has no box.
_VISIBLE = 0.35


@dataclass(frozen=True, eq=False)
class Camera:
    """A camera on the dyes: ``light`` is the empty field (3 x H x W), ``dyes`` the 3 x 3 optical densities.

    ``blur`` and ``noise`` are standard deviations in pixels and grey levels, ``fringe`` the rows by which red is
    shifted down and blue up, ``quality`` that of the JPEG the picture goes through.
    """

    light: Plane
    dyes: NDArray[np.float64]
    blur: float
    fringe: int
    noise: float
    quality: int


def render_scene(seed: int, size: tuple[int, int] = (640, 480), index: int = 0) -> Sample:
    """Scene ``index`` of the series ``seed`` at ``size`` (width, height); cells grow with the root of the area.

    Identical arrays for identical arguments and library versions. Raises ValueError for a side under 32 pixels.
    """
    if min(size) < _SMALLEST:
        raise ValueError(f"a scene is at least {_SMALLEST} pixels wide and high, not {size[0]}x{size[1]}")
    rng = np.random.default_rng((seed, index))
    cells = place(rng, size)
    image = expose(rng, lay(cells, size), camera(rng, size))
    boxed = boxed_cells(cells, size)
    boxes = np.array([cell.box for cell in boxed], np.float32).reshape(-1, 4)
    return Sample(image, boxes, np.array([cell.label for cell in boxed], np.int64), index)


class RenderedSmears:
    """``count`` scenes of the series ``seed``; implements Dataset with the labels of BCCD."""

    labels = LABELS

    def __init__(self, count: int, seed: int, size: tuple[int, int] = (640, 480)) -> None:
        self._count, self._seed, self._size = count, seed, size

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self._count:
            raise IndexError(f"scene {index} of {self._count}")
        return render_scene(self._seed, self._size, index)


@dataclass(eq=False)
class _Slide:
    """A slide with the cells placed so far. Red cells overlap each other, white cells push everything aside.

    A centre may lie outside the frame by ``overhang`` radii; below zero, a cell keeps enough inside to have a box.
    """

    size: tuple[int, int]
    overhang: float = -0.15
    soft: list[Outline] = field(default_factory=list)
    firm: list[Outline] = field(default_factory=list)

    def site(self, rng: Generator, radius: float, closeness: float) -> Outline | None:
        """A place for a cell, where 1 is the ``closeness`` of contact; None if it is too crowded."""
        rough = abs(rng.normal(0, 0.08)) + 0.03
        for _ in range(30):
            x, y = self._guess(rng, radius, closeness)
            if self._free(x, y, radius, closeness):
                return outline(rng, (x, y), radius, rough)
        return None

    def _guess(self, rng: Generator, radius: float, closeness: float) -> tuple[float, float]:
        if self.soft and rng.random() < 0.5:
            # Cells clump: try beside one that lies already.
            near, angle = self.soft[int(rng.integers(len(self.soft)))], rng.uniform(0, 2 * math.pi)
            reach = (near.radius + radius) * rng.uniform(closeness, closeness + 0.3)
            return near.x + reach * math.cos(angle), near.y + reach * math.sin(angle)
        margin = self.overhang * radius
        return rng.uniform(-margin, self.size[0] + margin), rng.uniform(-margin, self.size[1] + margin)

    def _free(self, x: float, y: float, radius: float, closeness: float) -> bool:
        margin = self.overhang * radius
        if not (-margin <= x <= self.size[0] + margin and -margin <= y <= self.size[1] + margin):
            return False
        gaps = [(other, closeness) for other in self.soft] + [(other, max(closeness, 0.93)) for other in self.firm]
        return all(math.hypot(x - o.x, y - o.y) >= gap * (radius + o.radius) for o, gap in gaps)


def place(rng: Generator, size: tuple[int, int]) -> list[Cell]:
    """The cells of a scene, lowest first, without those that others hide nearly whole."""
    unit = math.sqrt(size[0] * size[1] / (640 * 480))
    slide = _Slide(size)
    for _ in range(rng.choice(3, p=[0.08, 0.74, 0.18])):
        if shape := slide.site(rng, unit * float(np.clip(rng.normal(94, 17), 55, 125)), 1.0):
            slide.firm.append(shape)
    reds = _red_cells(rng, slide, unit)
    slide.soft += reds
    grains: list[Outline] = []
    for _ in range(rng.choice(5, p=[0.3, 0.3, 0.2, 0.12, 0.08])):
        if shape := slide.site(rng, unit * rng.uniform(14, 22), 0.6 if rng.random() < 0.15 else 1.05):
            grains.append(shape)
    cells = [red_cell(rng, shape, size) for shape in reds]
    cells += [platelet(rng, shape, size) for shape in grains]
    cells += [white_cell(rng, shape, size) for shape in slide.firm]
    return _uncover([cell for cell in cells if cell], size)


def _red_cells(rng: Generator, slide: _Slide, unit: float) -> list[Outline]:
    closeness, mean = rng.uniform(0.45, 0.85), unit * rng.uniform(48, 56)
    crowd = _Slide(slide.size, overhang=0.5, firm=slide.firm)
    for _ in range(int(np.clip(rng.normal(17, 5), 3, 28))):
        radius = mean * float(np.clip(rng.normal(1, 0.1), 0.75, 1.3))
        if shape := crowd.site(rng, radius, closeness):
            crowd.soft.append(shape)
    return crowd.soft


def _uncover(cells: list[Cell], size: tuple[int, int]) -> list[Cell]:
    """Takes away what others hide, worst first, so that the only cells drawn without a box are cut by the frame."""
    kept = list(cells)
    while kept:
        inside = np.array([np.count_nonzero(cell.mask) for cell in kept])
        shares = visible_pixels(kept, size) / inside
        if shares.min() >= _VISIBLE:
            break
        del kept[int(shares.argmin())]
    return kept


def visible_pixels(cells: Sequence[Cell], size: tuple[int, int]) -> NDArray[np.int64]:
    """Counts the pixels of every cell that are in the frame and that no later cell lies on."""
    top = np.zeros((size[1], size[0]), np.uint8)
    for number, cell in enumerate(cells, start=1):
        np.copyto(top[cell.window], number, where=cell.mask)
    return np.bincount(top.ravel(), minlength=len(cells) + 1)[1:]


def boxed_cells(cells: Sequence[Cell], size: tuple[int, int]) -> list[Cell]:
    """The cells of which enough is seen to ask a detector for them."""
    seen = visible_pixels(cells, size)
    return [cell for cell, pixels in zip(cells, seen.tolist(), strict=True) if pixels >= _VISIBLE * cell.area]


def lay(cells: Sequence[Cell], size: tuple[int, int]) -> Plane:
    """The dye on the slide, 3 x H x W: what lies beneath a cell is dimmed by its cover, then its own dye is added."""
    dye = np.zeros((3, size[1], size[0]), np.float32)
    for cell in cells:
        area = dye[:, *cell.window]
        area *= 1 - cell.cover
        area += cell.dyes
    return dye


def camera(rng: Generator, size: tuple[int, int]) -> Camera:
    """A microscope near those of BCCD: each has its own stain, white balance, focus and uneven light."""
    spread = 0.012 if rng.random() < 0.7 else 0.025
    yellowing = np.array([0.0, 0.0, -0.08]) * rng.random()
    tint = np.exp(yellowing + rng.normal(0, spread, 3) + rng.normal(0.01, 0.03)) * _GLASS
    # BCCD is a few grey levels darker at the top; a coarse surface, enlarged, stands for lamp, lens and plasma.
    rows, columns = np.linspace(-1, 1, 5), np.linspace(-1, 1, 6)
    slope = rng.normal(6, 4) * rows[:, None] + rng.normal(0, 4) * columns - rng.uniform(0, 7) * columns**2
    surface = slope[..., None] + rng.normal(0, 2.0, (5, 6, 1)) + rng.normal(0, 1.0, (5, 6, 3))
    smooth = cv2.resize((tint + surface).astype(np.float32), (36, 27), interpolation=cv2.INTER_CUBIC)
    light = np.stack([cv2.resize(channel, size) for channel in cv2.split(smooth)])
    stain = rng.uniform(0.85, 1.35, (3, 1)) * np.exp(rng.normal(0, 0.08, (3, 3)))
    blur = rng.uniform(1.0, 2.0) if rng.random() < 0.8 else rng.uniform(2.0, 3.2)
    fringe, noise, quality = int(rng.integers(-2, 3)), rng.uniform(0.8, 2.5), int(rng.integers(72, 96))
    return Camera(light, _DYES * stain, blur * math.sqrt(size[0] * size[1] / (640 * 480)), fringe, noise, quality)


def expose(rng: Generator, dye: Plane, eye: Camera) -> NDArray[np.uint8]:
    """Lights dye (3 x H x W) from below and photographs it (Beer-Lambert law): H x W x 3 RGB."""
    picture = np.tensordot(-eye.dyes.T.astype(np.float32), dye, axes=1)
    np.exp(picture, out=picture)
    window = 2 * math.ceil(2.5 * eye.blur) + 1
    for channel, fringe in zip(picture, (eye.fringe, 0, -eye.fringe), strict=True):
        _shift(channel, fringe)
        cv2.GaussianBlur(channel, (window, window), eye.blur, dst=channel)
    picture *= eye.light
    picture += eye.noise * rng.standard_normal(picture.shape[1:], dtype=np.float32)
    levels = np.clip(picture, 0, 255, out=picture).astype(np.uint8)
    _, data = cv2.imencode(".jpg", cv2.merge(levels[::-1]), [cv2.IMWRITE_JPEG_QUALITY, eye.quality])
    image: NDArray[np.uint8] = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    return image


def _shift(plane: Plane, rows: int) -> None:
    if rows > 0:
        plane[rows:] = plane[:-rows].copy()
    elif rows < 0:
        plane[:rows] = plane[-rows:].copy()


def main(arguments: Sequence[str] | None = None) -> None:
    """Saves one scene as a JPEG of quality 92."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("path", type=Path, help="the JPEG to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, nargs=2, default=(640, 480), metavar=("WIDTH", "HEIGHT"))
    options = parser.parse_args(arguments)
    options.path.parent.mkdir(parents=True, exist_ok=True)
    write_jpeg(render_scene(options.seed, tuple(options.size)).image, options.path, quality=92)


if __name__ == "__main__":
    main()
