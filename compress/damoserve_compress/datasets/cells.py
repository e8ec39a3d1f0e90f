"""Blood cells as dye on glass: each is a patch that says how much of three dyes lies on every pixel it covers.

Working in dye (optical density) and not in colour gives overlaps for nothing: light through two cells is absorbed
twice, and cells in a smear do shine through each other. The dyes are haemoglobin, nucleus and cytoplasm.
Lengths are in pixels. Sizes and densities were read off BCCD pictures of 640 x 480 pixels
(https://github.com/Shenggan/BCCD_Dataset).
"""

import math
from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

LABELS = ("RBC", "WBC", "Platelets")
RED, WHITE, PLATELET = range(3)

Plane: TypeAlias = NDArray[np.float32]

_ANGLES = 512
_THETA = np.linspace(0, 2 * np.pi, _ANGLES, endpoint=False)


@dataclass(frozen=True, eq=False)
class Outline:
    """A star-shaped contour: its radius at equally spaced angles about the centre, and their rough mean."""

    x: float
    y: float
    radius: float
    radii: Plane

    @property
    def area(self) -> float:
        """The whole area, the part outside the frame included."""
        return float(np.pi * np.mean(self.radii**2))


@dataclass(frozen=True, eq=False)
class Cell:
    """A cell, cut at the frame. ``mask``, ``cover`` are H x W, ``dyes`` is 3 x H x W; (left, top) is their corner.

    ``cover`` is the part of the dye beneath that the cell hides; outside ``mask`` it and the dyes are zero.
    """

    label: int
    left: int
    top: int
    mask: NDArray[np.bool_]
    dyes: Plane
    cover: Plane
    area: float

    @property
    def window(self) -> tuple[slice, slice]:
        height, width = self.mask.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The extent of the mask in the picture: (left, top, right, bottom), the latter two exclusive."""
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        return (
            self.left + int(columns[0]),
            self.top + int(rows[0]),
            self.left + int(columns[-1]) + 1,
            self.top + int(rows[-1]) + 1,
        )


@dataclass(frozen=True, eq=False)
class _Field:
    """An outline on the pixel grid: offsets from the centre, distance over radius, depth below the contour."""

    left: int
    top: int
    dx: Plane
    dy: Plane
    rho: Plane
    depth: Plane
    mask: NDArray[np.bool_]


def outline(rng: Generator, centre: tuple[float, float], radius: float, rough: float) -> Outline:
    """A wobbly circle: ``rough`` is the size of its largest harmonic (the ellipse) relative to the radius."""
    radii = np.ones(_ANGLES)
    for order, strength in ((2, 1.0), (3, 0.35), (4, 0.2), (5, 0.1)):
        radii += rough * strength * rng.normal() * 0.7 * np.cos(order * _THETA + rng.uniform(0, 2 * np.pi))
    return Outline(*centre, radius, (radius * np.clip(radii, 0.55, 1.45)).astype(np.float32))


def red_cell(rng: Generator, shape: Outline, size: tuple[int, int]) -> Cell | None:
    """A biconcave disc: dense rim, paler centre; about a third lie so that no pallor shows. None if out of frame."""
    field = _field(shape, size)
    if field is None:
        return None
    radius = shape.radius
    edge = _rise(field.depth / (radius * rng.uniform(0.15, 0.32)))
    full = rng.random() < 0.35
    pallor = rng.uniform(0.0, 0.25) if full else rng.uniform(0.4, 0.9)
    hollow = _step((rng.uniform(0.6, 0.85) - field.rho) / rng.uniform(0.25, 0.6))
    angle, lean = rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 0.3)
    tilt = 1 + lean / radius * (math.cos(angle) * field.dx + math.sin(angle) * field.dy)
    rim = np.exp(-(((field.depth - 0.13 * radius) / (0.07 * radius)) ** 2)) * rng.uniform(0.05, 0.3)
    strength = rng.uniform(0.85, 1.5) if full else rng.uniform(0.6, 1.15)
    density = strength * edge * ((1 - pallor * hollow) * tilt + rim)
    if full and rng.random() < 0.4:
        density = density * _glint(rng, field, radius)
    return _cell(RED, shape, field, (_planes(density, 0), edge * np.float32(rng.uniform(0.15, 0.7))))


def white_cell(rng: Generator, shape: Outline, size: tuple[int, int]) -> Cell | None:
    """A leucocyte: one round, one bent or several lobed nuclei in granular cytoplasm. None if out of frame."""
    field = _field(shape, size)
    if field is None:
        return None
    radius = shape.radius
    edge = _rise(field.depth / (radius * rng.uniform(0.06, 0.2)))
    blobs = np.zeros_like(field.rho)
    for x, y, reach in _lobes(rng):
        blobs += np.exp(-((field.dx / radius - x) ** 2 + (field.dy / radius - y) ** 2) / np.float32(reach**2))
    nucleus = edge * _step((blobs - rng.uniform(0.3, 0.4)) / rng.uniform(0.2, 0.5))
    chromatin = 1 + rng.uniform(0.08, 0.25) * _noise(rng, field.rho, radius / rng.uniform(5, 10))
    granules = 1 + rng.uniform(0.1, 0.5) * _noise(rng, field.rho, radius / rng.uniform(16, 28))
    dyes = _planes(nucleus * np.clip(chromatin, 0.4, 1.6) * rng.uniform(0.55, 1.05), 1)
    dyes[2] = edge * np.clip(granules, 0.2, 2.5) * rng.uniform(0.65, 1.6) * (1 - 0.6 * nucleus)
    dyes[0] = dyes[2] * float(rng.choice([0.0, 0.15, 0.45]))
    return _cell(WHITE, shape, field, (dyes, edge))


def platelet(rng: Generator, shape: Outline, size: tuple[int, int]) -> Cell | None:
    """A platelet: a small fuzzy grain. None if out of frame."""
    field = _field(shape, size)
    if field is None:
        return None
    radius = shape.radius
    edge = _rise(field.depth / (radius * rng.uniform(0.5, 1.0)))
    grain = np.clip(1 + 0.25 * _noise(rng, field.rho, radius / 3), 0.3, 1.8)
    dyes = _planes(edge * grain * rng.uniform(0.35, 0.75), 1)
    dyes[2] = edge * rng.uniform(0.0, 0.6)
    return _cell(PLATELET, shape, field, (dyes, edge * np.float32(0.6)))


def _lobes(rng: Generator) -> list[tuple[float, float, float]]:
    """Centres and reaches of the blobs that make a nucleus, in units of the cell's radius."""
    kind, start = rng.random(), rng.uniform(0, 2 * np.pi)
    if kind < 0.25:
        return [(rng.normal() * 0.1, rng.normal() * 0.1, rng.uniform(0.62, 0.85))]
    if kind < 0.55:
        bend, ring = rng.uniform(0.5, 0.8), rng.uniform(0.38, 0.5)
        places = [(start + bend * step, ring, rng.uniform(0.25, 0.34)) for step in range(6)]
    else:
        turn = 2 * np.pi / (count := int(rng.integers(3, 6)))
        places = [
            (start + turn * (step + rng.normal() * 0.15), rng.uniform(0.3, 0.58), rng.uniform(0.24, 0.38))
            for step in range(count)
        ]
    return [(ring * math.cos(angle), ring * math.sin(angle), reach) for angle, ring, reach in places]


def _glint(rng: Generator, field: _Field, radius: float) -> Plane:
    """A drying artefact that BCCD's dense cells often bear: a bright bead with a dark border."""
    x, y = rng.normal() * 0.2 * radius, rng.normal() * 0.2 * radius
    distance = np.hypot(field.dx - x, (field.dy - y) * rng.uniform(0.8, 1.6)) / (radius * rng.uniform(0.08, 0.2))
    bead: Plane = 1 - 1.1 * np.exp(-(distance**2)) + rng.uniform(0.3, 1.0) * np.exp(-((distance - 1.4) ** 2) * 6)
    return bead


def _field(shape: Outline, size: tuple[int, int]) -> _Field | None:
    reach = float(shape.radii.max()) + 1
    left, top = max(0, int(shape.x - reach)), max(0, int(shape.y - reach))
    right, bottom = min(size[0], int(shape.x + reach) + 2), min(size[1], int(shape.y + reach) + 2)
    if right <= left or bottom <= top:
        return None
    # A pixel's middle is half a pixel from its corner: this keeps boxes centred on the outline.
    row = np.arange(left, right, dtype=np.float32) + np.float32(0.5 - shape.x)
    column = np.arange(top, bottom, dtype=np.float32) + np.float32(0.5 - shape.y)
    dx, dy = np.meshgrid(row, column)
    distance, angle = cv2.cartToPolar(dx, dy)
    limit = shape.radii[(angle * (_ANGLES / (2 * np.pi))).astype(np.int32) % _ANGLES]
    depth = limit - distance
    mask = depth > 0
    return _Field(left, top, dx, dy, distance / limit, depth, mask) if mask.any() else None


def _cell(label: int, shape: Outline, field: _Field, paint: tuple[Plane, Plane]) -> Cell:
    dyes, cover = paint
    return Cell(label, field.left, field.top, field.mask, dyes, cover, shape.area)


def _planes(density: Plane, dye: int) -> Plane:
    planes = np.zeros((3, *density.shape), np.float32)
    planes[dye] = density
    return planes


def _step(value: Plane) -> Plane:
    """Rises smoothly from 0 at 0 to 1 at 1."""
    clipped = np.clip(value, 0, 1).astype(np.float32)
    rise: Plane = clipped * clipped * (3 - 2 * clipped)
    return rise


def _rise(depth: Plane) -> Plane:
    """A curve from 0 at 0 to 1 at 1, steepest at 0: a cell must be seen as far out as its box says."""
    clipped = np.clip(depth, 0, 1)
    rise: Plane = clipped * (2 - clipped)
    return rise


def _noise(rng: Generator, like: Plane, grain: float) -> Plane:
    """Smooth noise of unit variance at the grid points, ``grain`` pixels apart."""
    height, width = like.shape
    coarse = rng.standard_normal((int(height / grain) + 2, int(width / grain) + 2), dtype=np.float32)
    noise: Plane = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return noise
