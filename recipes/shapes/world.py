"""The procedural world: coloured shapes that move over a plain background.

A `Scene` is a few words and a few numbers; `render` turns it into frames at any size and length. All
lengths are in units of the frame's shorter side and all positions are offsets from the frame's centre
(x to the right, y down), so that one scene looks the same at every resolution and aspect ratio.
"""

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations, product

import numpy as np
import torch
from torch import Tensor

SHAPES = ("circle", "square", "triangle", "star")

# Colours and backgrounds are at least 100 apart in RGB (white and black are both): a blurred, slightly
# wrong pixel of a generated clip still has one nearest name.
COLOURS = {
    "red": (215, 15, 35),
    "green": (45, 195, 50),
    "blue": (35, 90, 255),
    "yellow": (255, 235, 30),
    "purple": (135, 30, 185),
    "orange": (255, 125, 0),
    "white": (255, 255, 255),
    "black": (0, 0, 0),
}
BACKGROUNDS = {
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
    "pink": (255, 150, 195),
    "navy": (10, 25, 110),
    "teal": (0, 125, 140),
}
MOTIONS = (
    "moving left",
    "moving right",
    "moving up",
    "moving down",
    "spinning",
    "growing",
    "shrinking",
    "bouncing",
    "standing still",
)
# The direction a motion's `travel` points in, as (x, y) on the screen.
DIRECTIONS = {"moving left": (-1, 0), "moving right": (1, 0), "moving up": (0, -1), "moving down": (0, 1)}
SPIN_DEGREES_PER_FRAME = 12.0
BOUNCE_FRAMES = 12  # from the ground up and back again

# Sizes relative to an object's radius, chosen so that the four shapes look equally large.
SQUARE_HALF_SIDE = 0.82
TRIANGLE_CIRCUMRADIUS = 1.22
STAR_OUTER, STAR_INNER = 1.15, 0.52
REACH = 1.25  # no pixel of any shape, at any angle, is further than this many radii from its centre

MOST_SCALE = 1.4
"""Of two objects; one alone is still larger."""

HELD_OUT_COUNT = 200
HELD_OUT_SEED = 20240229

Combo = tuple[str, str, str, str]  # shape, colour, motion, background


@dataclass(frozen=True)
class Object:
    """One moving shape.

    `x`, `y` and `radius` are those of the middle of the motion. `travel` is the distance crossed
    (moving), the height (bouncing) or the change of radius (growing, shrinking), otherwise 0.
    """

    shape: str
    colour: str
    motion: str
    x: float = 0.0
    y: float = 0.0
    radius: float = 0.2
    travel: float = 0.0

    def __post_init__(self) -> None:
        _require_choice("shape", self.shape, SHAPES)
        _require_choice("colour", self.colour, COLOURS)
        _require_choice("motion", self.motion, MOTIONS)


@dataclass(frozen=True)
class Scene:
    """A background and one or two objects; later objects are drawn over earlier ones."""

    background: str
    objects: tuple[Object, ...]

    def __post_init__(self) -> None:
        _require_choice("background", self.background, BACKGROUNDS)
        if len(self.objects) not in (1, 2):
            raise ValueError(f"objects={len(self.objects)}: a scene has 1 or 2 objects; split it into more scenes")

    @property
    def combo(self) -> Combo:
        """The attributes of the first object with the background."""
        first = self.objects[0]
        return first.shape, first.colour, first.motion, self.background


@dataclass(frozen=True)
class Trajectory:
    """Where one object is in each frame: fp32 arrays [T]; `angle` in radians, clockwise."""

    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    angle: np.ndarray


def _require_choice(name: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r}: must be one of {', '.join(choices)}")


# ---- Which combinations there are ----


@lru_cache
def all_combos() -> tuple[Combo, ...]:
    """Every (shape, colour, motion, background) whose object can be seen."""
    combos = product(SHAPES, COLOURS, MOTIONS, BACKGROUNDS)
    return tuple(combo for combo in combos if combo[1] != combo[3])


@lru_cache
def held_out_combos() -> tuple[Combo, ...]:
    """The 200 combinations that training never shows.

    Every pair of attribute values still occurs in `training_combos()`, so that a model that is right on
    these has put known parts together in a new way.
    """
    combos = all_combos()
    left = Counter(pair for combo in combos for pair in combinations(enumerate(combo), 2))
    chosen: list[Combo] = []
    for index in np.random.default_rng(HELD_OUT_SEED).permutation(len(combos)):
        pairs = list(combinations(enumerate(combos[index]), 2))
        if min(left[pair] for pair in pairs) > 1 and len(chosen) < HELD_OUT_COUNT:
            chosen.append(combos[index])
            for pair in pairs:
                left[pair] -= 1
    return tuple(chosen)


@lru_cache
def training_combos() -> tuple[Combo, ...]:
    """`all_combos()` without `held_out_combos()`."""
    held_out = set(held_out_combos())
    return tuple(combo for combo in all_combos() if combo not in held_out)


# ---- Sampling ----


def sample_scene(rng: np.random.Generator, combo: Combo | None = None, objects: int = 1) -> Scene:
    """A random scene.

    `combo` fixes the words of the first object and the background; without it they are drawn from
    `training_combos()`, and so are those of a second object, which always differs in colour.
    """
    if objects not in (1, 2):
        raise ValueError(f"objects={objects}: a scene has 1 or 2 objects; ask for 1 or 2")
    if combo is None:
        combo = training_combos()[rng.integers(len(training_combos()))]
    if combo not in all_combos():
        raise ValueError(f"combo={combo!r}: must be (shape, colour, motion, background); see all_combos()")
    if objects == 1:
        return Scene(combo[3], (_place_alone(rng, *combo[:3]),))
    others = [other for other in training_combos() if other[3] == combo[3] and other[1] != combo[1]]
    other = others[rng.integers(len(others))]
    return Scene(combo[3], _place_pair(rng, combo[:3], other[:3]))


def _place_alone(rng: np.random.Generator, shape: str, colour: str, motion: str) -> Object:
    if motion in DIRECTIONS:
        radius, travel = rng.uniform(0.16, 0.20), rng.uniform(0.35, 0.50)
    elif motion == "bouncing":
        radius, travel = rng.uniform(0.16, 0.20), rng.uniform(0.32, 0.38)
    elif motion in ("growing", "shrinking"):
        radius, travel = rng.uniform(0.19, 0.21), rng.uniform(0.18, 0.22)
    else:
        radius, travel = rng.uniform(0.17, 0.25), 0.0
    still = Object(shape, colour, motion, 0.0, 0.0, radius, travel)
    width, height = _extent(still)
    x_room, y_room = min(0.1, 0.5 - width / 2), min(0.1, 0.5 - height / 2)
    x, y = rng.uniform(-x_room, x_room), rng.uniform(-y_room, y_room)
    return Object(shape, colour, motion, x, y, radius, travel)


def _place_pair(rng: np.random.Generator, *words: tuple[str, str, str]) -> tuple[Object, ...]:
    """Two objects side by side or one above the other, so that their ways never cross; as large as that allows."""
    sizes = []
    for _, _, motion in words:
        if motion in DIRECTIONS or motion == "bouncing":
            sizes.append((rng.uniform(0.105, 0.12), rng.uniform(0.30, 0.38)))
        elif motion in ("growing", "shrinking"):
            sizes.append((rng.uniform(0.12, 0.13), rng.uniform(0.12, 0.13)))
        else:
            sizes.append((rng.uniform(0.13, 0.15), 0.0))
    small = [Object(*names, 0.0, 0.0, *size) for names, size in zip(words, sizes, strict=True)]
    room = [_largest_scale(small, axis) for axis in (0, 1)]
    axis = int(rng.choice([axis for axis in (0, 1) if room[axis] == max(room)]))
    pair = [_scaled(item, rng.uniform(0.85, 1.0) * min(room[axis], MOST_SCALE)) for item in small]
    extents = np.array([_extent(item) for item in pair])
    centres = np.zeros((2, 2))
    spare = max(0.0, 1.0 - extents[:, axis].sum())
    before, between = rng.uniform(0.0, 0.5) * spare, 0.5 * spare
    order = rng.permutation(2)
    centres[order[0], axis] = before + extents[order[0], axis] / 2 - 0.5
    centres[order[1], axis] = before + extents[order[0], axis] + between + extents[order[1], axis] / 2 - 0.5
    beside = np.minimum(0.2, 0.5 - extents[:, 1 - axis] / 2)
    centres[:, 1 - axis] = rng.uniform(-beside, beside)
    return tuple(replace(item, x=float(x), y=float(y)) for item, (x, y) in zip(pair, centres, strict=True))


def _largest_scale(pair: Sequence[Object], axis: int) -> float:
    """How many times larger two objects can be that stand beside each other along `axis`, in the frame."""
    extents = np.array([_extent(item) for item in pair])
    sizes = np.array([_size(item) for item in pair])
    ways = extents - sizes[:, None]
    return float(min((1 - ways[:, axis].sum()) / sizes.sum(), *((1 - ways[:, 1 - axis]) / sizes)))


def _scaled(item: Object, scale: float) -> Object:
    """Larger, and as far on its way as before."""
    changes = item.motion in ("growing", "shrinking")
    return replace(item, radius=item.radius * scale, travel=item.travel * scale if changes else item.travel)


def _size(item: Object) -> float:
    """The side of the square that holds the object where it is, however large and at any angle."""
    growth = item.travel if item.motion in ("growing", "shrinking") else 0.0
    return 2 * REACH * (item.radius + growth / 2)


def _extent(item: Object) -> tuple[float, float]:
    """Width and height of the box that the object never leaves."""
    size = _size(item)
    dx, dy = DIRECTIONS.get(item.motion, (0, 1 if item.motion == "bouncing" else 0))
    return size + abs(dx) * item.travel, size + abs(dy) * item.travel


# ---- Rendering ----


def trajectory(item: Object, frames: int) -> Trajectory:
    """The object's position, radius and angle in each of `frames` frames."""
    t = np.arange(frames)
    progress = t / max(frames - 1, 1) - 0.5  # -0.5 .. 0.5: the stored numbers are the middle of the way
    x, y, radius, angle = (value + np.zeros(frames) for value in (item.x, item.y, item.radius, 0.0))
    if item.motion in DIRECTIONS:
        dx, dy = DIRECTIONS[item.motion]
        x, y = x + dx * item.travel * progress, y + dy * item.travel * progress
    elif item.motion == "bouncing":
        y = y + item.travel * (0.5 - np.abs(np.sin(np.pi * t / BOUNCE_FRAMES)))
    elif item.motion == "growing":
        radius = radius + item.travel * progress
    elif item.motion == "shrinking":
        radius = radius - item.travel * progress
    elif item.motion == "spinning":
        angle = np.deg2rad(SPIN_DEGREES_PER_FRAME) * t
    return Trajectory(*(values.astype(np.float32) for values in (x, y, radius, angle)))


def render(
    scene: Scene, height: int, width: int, frames: int, palette: Sequence[tuple[int, int, int]] | None = None
) -> Tensor:
    """The clip as uint8 RGB [T, H, W, 3], with anti-aliased edges.

    `palette` has the RGB of the background and of each object, in place of the named ones.
    Raises `ValueError` for a size outside 32..512 pixels or a length outside 1..81 frames.
    """
    for name, value, low, high in (("height", height, 32, 512), ("width", width, 32, 512), ("frames", frames, 1, 81)):
        if not low <= value <= high:
            raise ValueError(f"{name}={value}: must be {low}..{high}; try {min(max(value, low), high)}")
    if palette is None:
        palette = [BACKGROUNDS[scene.background], *(COLOURS[item.colour] for item in scene.objects)]
    colour_3 = torch.tensor(palette[0], dtype=torch.float32)
    video_3THW = colour_3.view(3, 1, 1, 1).expand(3, frames, height, width)
    for item, rgb in zip(scene.objects, palette[1:], strict=True):
        colour_3111 = torch.tensor(rgb, dtype=torch.float32).view(3, 1, 1, 1)
        coverage_THW = shape_coverage(item.shape, trajectory(item, frames), height, width)
        video_3THW = torch.lerp(video_3THW, colour_3111, coverage_THW)
    return video_3THW.add(0.5).to(torch.uint8).permute(1, 2, 3, 0).contiguous()


def shape_coverage(shape: str, path: Trajectory, height: int, width: int) -> Tensor:
    """How much of each pixel the shape covers: fp32 0..1, [T, H, W]."""
    side = min(height, width)
    # In pixels from the object's centre, y up; a pixel's own position is its middle.
    x_TW = torch.arange(width) + 0.5 - width / 2 - side * torch.from_numpy(path.x)[:, None]
    y_TH = height / 2 - 0.5 - torch.arange(height) + side * torch.from_numpy(path.y)[:, None]
    x, y = x_TW[:, None, :], y_TH[:, :, None]
    angle = torch.from_numpy(path.angle)
    if shape != "circle" and bool(angle.any()):
        cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
        x, y = cos * x - sin * y, sin * x + cos * y
    radius_T11 = side * torch.from_numpy(path.radius)[:, None, None]
    return (0.5 - SIGNED_DISTANCES[shape](x, y, radius_T11)).clamp_(0.0, 1.0)


def _circle_distance(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return (x * x + y * y).sqrt_() - radius


def _square_distance(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - SQUARE_HALF_SIDE * radius


def _triangle_distance(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    # The larger of the distances to the base and to the (mirrored) right side; both are half the
    # circumradius away from the centre.
    slope = math.cos(math.pi / 6) * x.abs() + 0.5 * y
    return torch.maximum(slope, -y) - 0.5 * TRIANGLE_CIRCUMRADIUS * radius


def _star_distance(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    # Mirror the plane at the star's axes (0, 72 and 36 degrees from its top point) until one edge,
    # from a point to the notch beside it, stands for all ten.
    x = x.abs()
    for degrees in (72, 36):
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        beyond = (cos * x - sin * y).clamp_(min=0.0)
        x, y = (x - 2 * cos * beyond).abs_(), y + 2 * sin * beyond
    notch_x = STAR_INNER * math.sin(math.pi / 5)
    rise = STAR_OUTER - STAR_INNER * math.cos(math.pi / 5)
    length = math.hypot(notch_x, rise)
    return (rise / length) * x + (notch_x / length) * (y - STAR_OUTER * radius)


SIGNED_DISTANCES = {
    "circle": _circle_distance,
    "square": _square_distance,
    "triangle": _triangle_distance,
    "star": _star_distance,
}
