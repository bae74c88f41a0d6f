"""Procedurally generated land-cover-like images, for demos and tests without a download.

The ten classes differ in texture and shape; colours are drawn from one wide distribution with a small tint per
class, so mean colour says little and a network must look at structure. Labels are clean. Nothing measured on
these images says anything about satellite images: whatever is made from them is labelled synthetic.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from fl.core.console import progress
from fl.core.files import sha256
from fl.core.seeds import numpy_generator
from fl.data.images import Plan

VERSION = 1
IMAGE_SIZE = 64
_Y, _X = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE].astype(np.float32)


@dataclass(frozen=True)
class Synthetic:
    """Ten balanced classes; image i depends on `seed` and i only, so a smaller set is the start of a larger one.

    Args:
        num_images: at least 50 (a training and a test image of each class), at most a million (12 GB).
        seed: of the generator, apart from the run's seed.
    """

    num_images: Annotated[int, Field(ge=50, le=1_000_000, strict=True)] = 3000
    seed: Annotated[int, Field(ge=0, strict=True)] = 0

    def plan(self, cache_dir: Path) -> Plan:
        labels = np.arange(self.num_images, dtype=np.int64) % len(PATTERNS)
        key = sha256(f"synthetic v{VERSION} seed={self.seed} n={self.num_images}".encode())

        def decode(images: np.ndarray) -> list[str]:
            with progress("generating SYNTHETIC images", len(labels), "image") as advance:
                for position, label in enumerate(labels):
                    images[position] = _render(int(label), numpy_generator(self.seed, "synthetic", position))
                    advance(1)
            return []

        return Plan("synthetic", key, tuple(PATTERNS), labels, decode, synthetic=True)


def _turned(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates turned by a random angle, shifted by a random offset."""
    angle = rng.uniform(0, 2 * np.pi)
    x, y = _X - 32 + rng.uniform(-16, 16), _Y - 32 + rng.uniform(-16, 16)
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def _smooth(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Noise in [0, 1] that varies over `cells` x `cells` patches, bilinearly interpolated."""
    grid = rng.random((cells + 1, cells + 1), dtype=np.float32)
    place = np.linspace(0, cells, IMAGE_SIZE, endpoint=False, dtype=np.float32)
    low = place.astype(int)
    weight = place - low
    rows = grid[low] * (1 - weight)[:, None] + grid[low + 1] * weight[:, None]
    return rows[:, low] * (1 - weight) + rows[:, low + 1] * weight


def _furrows(rng: np.random.Generator) -> np.ndarray:
    across, _ = _turned(rng)
    return 0.5 + 0.5 * np.sin(across * 2 * np.pi / rng.uniform(4, 9))


def _canopy(rng: np.random.Generator) -> np.ndarray:
    return _smooth(rng, int(rng.integers(18, 30))) ** 2


def _scrub(rng: np.random.Generator) -> np.ndarray:
    return (0.6 * _smooth(rng, int(rng.integers(6, 12))) + 0.4 * _smooth(rng, 24)) ** 1.5


def _road(rng: np.random.Generator) -> np.ndarray:
    across, _ = _turned(rng)
    return 0.3 * _smooth(rng, 5) + 0.9 * (np.abs(across) < rng.uniform(1.5, 4))


def _halls(rng: np.random.Generator) -> np.ndarray:
    field = 0.3 * _smooth(rng, 4)
    for _ in range(rng.integers(3, 7)):
        x, y = rng.integers(0, 52, size=2)
        width, height = rng.integers(12, 28, size=2)
        field[y : y + height, x : x + width] = rng.uniform(0.4, 1)
    return field


def _meadows(rng: np.random.Generator) -> np.ndarray:
    seeds = rng.uniform(0, IMAGE_SIZE, size=(int(rng.integers(3, 6)), 2)).astype(np.float32)
    nearest = np.argmin([(_X - x) ** 2 + (_Y - y) ** 2 for x, y in seeds], axis=0)
    return rng.random(len(seeds), dtype=np.float32)[nearest] + 0.15 * _smooth(rng, 4)


def _orchard(rng: np.random.Generator) -> np.ndarray:
    u, v = _turned(rng)
    period = rng.uniform(5, 9)
    return np.clip(np.cos(u * 2 * np.pi / period) + np.cos(v * 2 * np.pi / period), 0, 2) / 2


def _houses(rng: np.random.Generator) -> np.ndarray:
    u, v = _turned(rng)
    period = rng.uniform(8, 13)
    roof = ((u % period) < period * 0.5) & ((v % period) < period * 0.5)
    block = (u // period).astype(int) * 7 + (v // period).astype(int) * 13
    return roof * rng.random(97, dtype=np.float32)[block % 97] + 0.25 * _smooth(rng, 16)


def _river(rng: np.random.Generator) -> np.ndarray:
    u, v = _turned(rng)
    bend = rng.uniform(5, 12) * np.sin(v * 2 * np.pi / rng.uniform(40, 90) + rng.uniform(0, 6))
    return 0.3 * _smooth(rng, 5) + 0.9 * (np.abs(u - bend) < rng.uniform(3, 7))


def _open_water(rng: np.random.Generator) -> np.ndarray:
    return 0.25 * _smooth(rng, 2)


PATTERNS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "canopy": _canopy,
    "furrows": _furrows,
    "halls": _halls,
    "houses": _houses,
    "meadows": _meadows,
    "open_water": _open_water,
    "orchard": _orchard,
    "river": _river,
    "road": _road,
    "scrub": _scrub,
}
_TINTS = np.random.default_rng(7).uniform(-0.08, 0.08, size=(len(PATTERNS), 3))


def _render(label: int, rng: np.random.Generator) -> np.ndarray:
    """Returns one image, uint8 [64, 64, 3]: the pattern between two random colours, haze and sensor noise on top."""
    pattern = list(PATTERNS.values())[label](rng)
    ground = rng.uniform(0.25, 0.6) + rng.uniform(-0.1, 0.1, size=3) + _TINTS[label]
    contrast = rng.uniform(0.15, 0.4) * rng.uniform(0.7, 1.3, size=3)
    haze = rng.uniform(0, 0.12) * _smooth(rng, 3)
    noise = rng.normal(0, rng.uniform(0.01, 0.05), size=(IMAGE_SIZE, IMAGE_SIZE, 3))
    image = ground + pattern[..., None] * contrast + haze[..., None] + noise
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8)
