"""A built-in data set that needs no file and no network: ten shapes, drawn from a seed.

Every image shows one shape, rotated, scaled and moved at random, on a smooth random background. Foreground and
background colours come from the same distribution, so colour says nothing about the class: a model must see the shape.

A shape is its signed distance d(x, y), negative inside and of slope at most 1, in units in which it fits the unit
circle. Where d passes through zero, the edge is blended over about a pixel.

Source: Quilez, "2D distance functions", https://iquilezles.org/articles/distfunctions2d/
"""

import numpy as np

from minijepa.backend import rng

SIDE = 32
_CHUNK = 250  # images drawn from one generator: image i depends on (seed, i) alone, and memory stays small


def make_shapes(count, seed=0):
    """The first ``count`` images of the set with this ``seed``, uint8 (count, 3, 32, 32), and their labels (count,).

    Labels index :data:`CLASSES`. Image i is the same for every ``count``. Images 10k to 10k + 9 show each class once.
    """
    chunks = [_draw_chunk(rng(seed, "shapes", number)) for number in range(max(1, -(-count // _CHUNK)))]
    return tuple(np.concatenate(arrays)[:count] for arrays in zip(*chunks))


def _draw_chunk(generator):
    """One whole chunk: uint8 images (_CHUNK, 3, 32, 32) and labels (_CHUNK,)."""
    labels = np.argsort(generator.random((_CHUNK // len(CLASSES), len(CLASSES))), axis=1).reshape(-1).astype(np.uint8)
    coverage = _coverage(labels, generator)[:, None]
    foreground, background = (colour + _texture(generator) for colour in _colours(generator))
    noise = generator.standard_normal(foreground.shape, np.float32)
    pixels = background + coverage * (foreground - background) + 0.02 * noise
    return np.rint(np.clip(pixels, 0.0, 1.0) * 255.0).astype(np.uint8), labels


def _coverage(labels, generator):
    """How much of each pixel the shape covers: float32 (_CHUNK, 32, 32) from 0 to 1."""
    radius = _uniform(generator, 8.0, 13.0)  # in pixels
    turn = _uniform(generator, 0.0, 2.0 * np.pi)
    softness = _uniform(generator, 1.0, 1.6)  # width of the blended edge in pixels
    centre_x, centre_y = (SIDE / 2 + _uniform(generator, -1.0, 1.0) * (SIDE / 2 + 1.0 - radius) for _ in range(2))
    grid = np.arange(SIDE, dtype=np.float32) + 0.5
    x, y = (grid - centre_x) / radius, (grid[:, None] - centre_y) / radius
    x, y = np.cos(turn) * x - np.sin(turn) * y, np.sin(turn) * x + np.cos(turn) * y
    distance = np.empty_like(x)
    for label, shape in enumerate(SHAPES.values()):
        rows = labels == label
        distance[rows] = shape(x[rows], y[rows])
    return np.clip(0.5 - distance * radius / softness, 0.0, 1.0)


def _colours(generator):
    """Foreground and background, float32 (_CHUNK, 3, 1, 1): exchangeable, inside [0, 1], at least 0.5 apart."""
    direction = generator.standard_normal((_CHUNK, 3, 1, 1), np.float32)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    half = 0.5 * _uniform(generator, 0.5, 0.9)[:, None] * direction
    middle = np.abs(half) + generator.random(half.shape, np.float32) * (1.0 - 2.0 * np.abs(half))
    return middle + half, middle - half


def _texture(generator):
    """A smooth field to add to a colour, float32 (_CHUNK, 3, 32, 32): two long waves, each with its own tint."""
    field = np.zeros((_CHUNK, 3, SIDE, SIDE), np.float32)
    grid = np.arange(SIDE, dtype=np.float32) / SIDE
    for _ in range(2):
        cycles_x, cycles_y = _uniform(generator, -1.5, 1.5), _uniform(generator, -1.5, 1.5)
        phase = generator.random((_CHUNK, 1, 1), np.float32)
        wave = np.cos(2.0 * np.pi * (cycles_x * grid + cycles_y * grid[:, None] + phase))
        field += _uniform(generator, -0.1, 0.1, channels=3)[..., None] * wave[:, None]
    return field


def _uniform(generator, low, high, channels=1):
    """float32 (_CHUNK, channels, 1), uniform: one number an image by default, ready to broadcast over rows, columns."""
    return low + (high - low) * generator.random((_CHUNK, channels, 1), np.float32)


# ------------------------------------------------------------------------------------------------- the ten distances


def _box(x, y, half_width, half_height):
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def _triangle(x, y):
    """Equilateral: the base y = −0.5 and one slanted edge, which |x| mirrors into the other."""
    return np.maximum(-y, 0.5 * y + 0.866 * np.abs(x)) - 0.5


def _star(x, y):
    """Five points: the plane is folded onto half a point, whose edge is straight."""
    step = 2.0 * np.pi / 5
    angle = np.arctan2(x, y)
    angle = np.abs(angle - step * np.rint(angle / step))  # from a tip (0) to a notch (step / 2)
    along, across = np.hypot(x, y) * np.cos(angle), np.hypot(x, y) * np.sin(angle)
    notch_along, notch_across = 0.42 * np.cos(step / 2), 0.42 * np.sin(step / 2)
    normal = np.array([notch_across, 1.0 - notch_along]) / np.hypot(notch_across, 1.0 - notch_along)
    return float(normal[0]) * (along - 1.0) + float(normal[1]) * across


def _stripes(x, y):
    """Three bars."""
    return np.maximum(np.abs(x) - 0.7, np.abs(y - 0.56 * np.clip(np.rint(y / 0.56), -1.0, 1.0)) - 0.14)


def _hourglass(x, y):
    """Two triangles that meet in a point."""
    return np.maximum(np.abs(y) - 0.75, 0.78 * np.abs(x) - 0.62 * np.abs(y) - 0.03)


SHAPES = {
    "disc": lambda x, y: np.hypot(x, y) - 0.9,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.72) - 0.22,
    "square": lambda x, y: _box(x, y, 0.7, 0.7),
    "frame": lambda x, y: np.abs(_box(x, y, 0.53, 0.53)) - 0.17,
    "triangle": _triangle,
    "cross": lambda x, y: np.minimum(_box(x, y, 0.95, 0.26), _box(x, y, 0.26, 0.95)),
    "star": _star,
    "crescent": lambda x, y: np.maximum(np.hypot(x, y) - 0.95, 0.72 - np.hypot(x - 0.5, y)),
    "stripes": _stripes,
    "hourglass": _hourglass,
}
CLASSES = tuple(SHAPES)
