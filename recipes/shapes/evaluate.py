"""The judge of the shapes world: it names what a clip shows from the pixels alone.

The object is told from the background by colour, its shape by the overlap with drawn shapes of the same
area, and its motion by the paths of its centre, size and angle. Lengths are in units of the frame's
shorter side, as in `world`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.shapes import world
from recipes.shapes.captions import caption
from recipes.shapes.world import BACKGROUNDS, BOUNCE_FRAMES, COLOURS, SHAPES, Combo, Scene, Trajectory

ATTRIBUTES = ("background", "colour", "shape", "motion")
NONE = "none"

# Every colour is at least 110 away from every other background: under half of that nothing is there.
VISIBLE_DISTANCE = 50.0
VISIBLE_AREA = 0.002  # of the shorter side's square; the world's smallest object covers 0.01

GRID = 40  # shapes are compared on 40 x 40 pixels ...
GRID_SPAN = 3.5  # ... this many radii (of the disc of equal area) wide
ANGLE_STEP = 3  # degrees
BLURS = (0.0, 0.16, 0.32)  # sigma in the same radii: a small star that is blurred is closest to a blurred star
# Degrees to look the same again; what has no direction cannot be seen to spin.
SYMMETRY = {"circle": ANGLE_STEP, "square": 90, "triangle": 120, "star": 72, NONE: ANGLE_STEP}
LEAST_OVERLAP = 0.65  # with the best drawing: blurred and noisy shapes reach 0.8, random blobs 0.5

# The least that counts as a motion; the world's own motions are over twice as large.
LEAST_TRAVEL = 0.15
LEAST_GROWTH = 0.35  # change of radius, relative to the mean radius
LEAST_BOUNCE = 0.14
LEAST_SPIN = 4.5  # degrees a frame
BOUNCE_PERIODS = tuple(BOUNCE_FRAMES + extra for extra in (-2, -1, 0, 1, 2))


@dataclass(frozen=True)
class Verdict:
    """What one object of a clip looks like, in the world's words; 'none' for what cannot be seen."""

    background: str
    colour: str
    shape: str
    motion: str


@dataclass(frozen=True)
class Track:
    """One object in the T frames that show it: `coverage` fp32 0..1 [T, H, W], the others fp64 [T].

    `time` is the frame's index in the clip; `radius` that of the disc with the object's area.
    """

    coverage: Tensor
    time: np.ndarray
    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray


def judge(frames: Tensor) -> Verdict:
    """Names background, colour, shape and motion of a clip with one object.

    `frames` is uint8 RGB [T, H, W, 3]. Shape and motion are 'none' if under half of the frames show an
    object, shape also for one unlike all four shapes, and motion also for clips of under 3 frames.
    """
    video_THW3 = _as_video(frames)
    background_3 = _border_colour(video_THW3)
    background = _nearest(background_3, BACKGROUNDS)
    colour_3 = _object_colour(video_THW3, background_3)
    if colour_3 is None:
        return Verdict(background, NONE, NONE, NONE)
    track = _track(video_THW3, background_3, colour_3)
    colour = _nearest(colour_3, {name: rgb for name, rgb in COLOURS.items() if name != background})
    if 2 * len(track.time) < len(video_THW3):
        return Verdict(background, colour, NONE, NONE)
    shape, degrees = _fit_shape(track)
    motion = _name_motion(track, shape, degrees) if len(track.time) >= 3 else NONE
    return Verdict(background, colour, shape, motion)


def judge_two(frames: Tensor) -> tuple[Verdict, Verdict]:
    """Names both objects of a clip, the larger one (in pixels over the clip) first.

    Objects are told apart by colour, so the two must differ in it. A missing object is all 'none'.
    """
    video_THW3 = _as_video(frames)
    background_3 = _border_colour(video_THW3)
    masks = _masks_by_colour(video_THW3, background_3)
    if len(masks) >= 2:  # each is judged with the other painted over
        others = (masks[1], masks[0])
        first, second = (judge(torch.where(other[..., None], background_3, video_THW3)) for other in others)
        return first, second
    missing = Verdict(_nearest(background_3, BACKGROUNDS), NONE, NONE, NONE)
    return judge(video_THW3) if masks else missing, missing


def accuracy(verdicts: Sequence[Verdict | tuple[Verdict, ...]], scenes: Sequence[Scene]) -> dict[str, float]:
    """The share of right answers (0..1) for each attribute, for "all" four of them together, and of clips whose
    every object is all right ("whole").

    A scene with two objects takes a tuple of verdicts, in the order that fits best; each of its objects
    counts as one answer. A spinning circle looks like a still one, so for circles either is right.
    """
    if len(verdicts) != len(scenes) or not scenes:
        raise ValueError(f"verdicts={len(verdicts)}: must be one a scene, {len(scenes)}, and not 0; judge every clip")
    rows: list[list[bool]] = []
    whole = []
    for verdict, scene in zip(verdicts, scenes, strict=True):
        given = (verdict,) if isinstance(verdict, Verdict) else verdict
        orders = permutations(given, len(scene.objects))
        best = max((_marks(order, scene) for order in orders), key=lambda marks: sum(map(sum, marks)))
        whole.append(all(map(all, best)))
        rows += best
    marks = np.array(rows, dtype=bool).reshape(-1, len(ATTRIBUTES))
    shares = {name: float(marks[:, column].mean()) for column, name in enumerate(ATTRIBUTES)}
    return shares | {"all": float(marks.all(axis=1).mean()), "whole": float(np.mean(whole))}


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of two clips with values 0..255; infinite if they are equal."""
    if a.shape != b.shape:
        raise ValueError(f"b of shape {tuple(b.shape)}: must be as a, {tuple(a.shape)}; crop or resize it")
    error = (a.double() - b.double()).square().mean().item()
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


# ---- Prompts ----

Prompt = tuple[Scene, str]


def held_out_prompts(n: int = 200, seed: int = 0, objects: int = 1) -> list[Prompt]:
    """`n` scenes with captions whose combinations were never trained on, all different up to 200.

    Of two objects it is the first whose combination training never shows; no pair is one of training's.
    """
    return _prompts(world.held_out_combos(), n, seed, objects)


def training_prompts(n: int = 200, seed: int = 0, objects: int = 1) -> list[Prompt]:
    """`n` scenes with captions of combinations that training does show."""
    return _prompts(world.training_combos(), n, seed, objects)


def _prompts(combos: tuple[Combo, ...], n: int, seed: int, objects: int) -> list[Prompt]:
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(combos))
    scenes = [world.sample_scene(rng, combos[order[index % len(combos)]], objects) for index in range(n)]
    return [(scene, caption(scene, rng)) for scene in scenes]


def _marks(verdicts: Sequence[Verdict], scene: Scene) -> list[list[bool]]:
    """Right or wrong, a row for each object and a column for each of `ATTRIBUTES`."""
    rows = []
    for verdict, item in zip(verdicts, scene.objects, strict=True):
        alike = ("spinning", "standing still")
        motions = alike if item.shape == "circle" and item.motion in alike else (item.motion,)
        seen = (verdict.background, verdict.colour, verdict.shape)
        right = [a == b for a, b in zip(seen, (scene.background, item.colour, item.shape), strict=True)]
        rows.append([*right, verdict.motion in motions])
    return rows


# ---- Colours and masks ----


def _as_video(frames: Tensor) -> Tensor:
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.shape[0] == 0:
        raise ValueError(f"frames of shape {tuple(frames.shape)}: must be [T, H, W, 3]; permute the axes")
    return frames.detach().cpu().float()


def _nearest(colour_3: Tensor, named: Mapping[str, tuple[int, int, int]]) -> str:
    return min(named, key=lambda name: math.dist(colour_3.tolist(), named[name]))


def _border_colour(video_THW3: Tensor) -> Tensor:
    band = max(1, min(video_THW3.shape[1:3]) // 32)
    inside = torch.zeros(video_THW3.shape[1:3], dtype=torch.bool)
    inside[band:-band, band:-band] = True
    return video_THW3[:, ~inside].flatten(0, 1).median(dim=0).values


def _erode(mask_THW: Tensor, pixels: int) -> Tensor:
    return ~_dilate(~mask_THW, pixels)


def _dilate(mask_THW: Tensor, pixels: int) -> Tensor:
    size = 2 * pixels + 1
    return F.max_pool2d(mask_THW.float()[:, None], size, stride=1, padding=pixels)[:, 0] > 0.5


def _object_colour(video_THW3: Tensor, background_3: Tensor) -> Tensor | None:
    """The object's median colour, away from its blurred edge; None if there is no object."""
    mask_THW = (video_THW3 - background_3).norm(dim=-1) > VISIBLE_DISTANCE
    side = min(mask_THW.shape[1:])
    if mask_THW.sum() < VISIBLE_AREA * side**2 * len(mask_THW) / 2:
        return None
    core_THW = _erode(mask_THW, max(1, side // 48))
    pixels_P3 = video_THW3[core_THW if core_THW.any() else mask_THW]
    # A small blurred object is mostly edge, which lies between the colours: keep what is far from both.
    distance_P = (pixels_P3 - background_3).norm(dim=-1)
    upper_quarter = distance_P.sort().values[3 * len(distance_P) // 4]
    return pixels_P3[distance_P >= 0.85 * upper_quarter].median(dim=0).values


def _masks_by_colour(video_THW3: Tensor, background_3: Tensor) -> list[Tensor]:
    """A generous mask [T, H, W] for each colour that is there, the one with most pixels first."""
    side = min(video_THW3.shape[1:3])
    margin = max(1, side // 48)
    names = [name for name in COLOURS if name != _nearest(background_3, BACKGROUNDS)]
    palette = torch.stack([background_3, *(torch.tensor(COLOURS[name]).float() for name in names)])
    nearest_THW = torch.cdist(video_THW3.flatten(0, 2), palette).argmin(-1).view(video_THW3.shape[:3])
    found = []
    for index in range(1, len(palette)):
        # Mixed colours along an edge are thin, so erosion leaves nothing of them.
        core_THW = _erode(nearest_THW == index, margin)
        if core_THW.sum() >= VISIBLE_AREA * side**2 * len(video_THW3) / 2:
            found.append((int(core_THW.sum()), _dilate(core_THW, 2 * margin + 1)))
    return [mask for _, mask in sorted(found, key=lambda pair: -pair[0])]


def _track(video_THW3: Tensor, background_3: Tensor, colour_3: Tensor) -> Track:
    """Follows the largest blob of the object's colour through the frames that show it."""
    difference_3 = colour_3 - background_3
    coverage_THW = ((video_THW3 - background_3) @ difference_3 / difference_3.square().sum()).clamp(0.0, 1.0)
    # Two more pixels than the blob itself, for its soft edge, but not the noise all over the frame.
    coverage_THW = coverage_THW * _dilate(_largest_blob(coverage_THW), 2)
    _, height, width = coverage_THW.shape
    side = min(height, width)
    area_T = coverage_THW.sum((1, 2))
    seen_T = area_T > VISIBLE_AREA * side**2
    coverage_THW, area_T = coverage_THW[seen_T], area_T[seen_T]
    x_T = coverage_THW.sum(1) @ (torch.arange(width) + 0.5) / area_T
    y_T = coverage_THW.sum(2) @ (torch.arange(height) + 0.5) / area_T
    values = (x_T / side, y_T / side, (area_T / math.pi).sqrt() / side)
    return Track(coverage_THW, seen_T.nonzero()[:, 0].double().numpy(), *(v.double().numpy() for v in values))


def _largest_blob(coverage_THW: Tensor) -> Tensor:
    """In each frame, the connected part of coverage > 1/2 around the spot where it is thickest."""
    mask_THW = coverage_THW > 0.5
    window = min(mask_THW.shape[1:]) // 16 * 2 + 1
    thickness = F.avg_pool2d(mask_THW.float()[:, None], window, stride=1, padding=window // 2)[:, 0]
    peak = (thickness * mask_THW).flatten(1).argmax(dim=1)
    blob_THW = F.one_hot(peak, mask_THW[0].numel()).view(mask_THW.shape).bool() & mask_THW
    while True:
        grown_TWH = _spread_along_rows(blob_THW, mask_THW).transpose(1, 2)
        grown_THW = _spread_along_rows(grown_TWH, mask_THW.transpose(1, 2)).transpose(1, 2)
        if torch.equal(grown_THW, blob_THW):
            return blob_THW
        blob_THW = grown_THW


def _spread_along_rows(blob: Tensor, mask: Tensor) -> Tensor:
    """All unbroken runs of `mask` in the last dimension that `blob` touches."""
    gap = F.pad(~mask, (1, 0), value=True)  # so that no run goes on in the next row
    run = gap.flatten().cumsum(0).view(gap.shape)[..., 1:]
    touched = torch.zeros(int(run.max()) + 1, dtype=torch.bool)
    touched[run[blob]] = True
    return touched[run] & mask


# ---- Shape and motion ----


@lru_cache
def _templates(shape: str) -> Tensor:
    """Drawings of one shape, all of the same area, [blurs, angles, GRID * GRID]."""
    zero = np.zeros(1, dtype=np.float32)
    large = world.shape_coverage(shape, Trajectory(zero, zero, zero + 0.25, zero), 256, 256)
    radius = math.sqrt(math.pi / GRID_SPAN**2 / (large.mean().item() / 0.25**2))
    angle = np.deg2rad(np.arange(0, SYMMETRY[shape], ANGLE_STEP)).astype(np.float32)
    still = np.zeros_like(angle)
    sharp = world.shape_coverage(shape, Trajectory(still, still, still + radius, angle), GRID, GRID)
    return torch.stack([_blur(sharp, sigma * GRID / GRID_SPAN).flatten(1) for sigma in BLURS])


def _blur(images: Tensor, sigma: float) -> Tensor:
    if sigma == 0:
        return images
    distance = torch.arange(images.shape[-1])[:, None] - torch.arange(images.shape[-1])
    weight = torch.exp(-0.5 * (distance / sigma) ** 2)
    weight = weight / weight.sum(1, keepdim=True)
    return weight @ images @ weight.T


def _fit_shape(track: Track) -> tuple[str, np.ndarray]:
    """The best shape over all frames ('none' if it is far from all), and its angles in degrees, [T]."""
    cut_out_TP = _normalised(track).flatten(1)
    # A larger object shows its shape better.
    weight_T = torch.from_numpy(track.radius).float()
    fits = []
    for name, drawing_NP in ((shape, drawing) for shape in SHAPES for drawing in _templates(shape)):
        score_T, index_T = _soft_overlap(cut_out_TP, drawing_NP).max(dim=1)
        fits.append((float(weight_T @ score_T / weight_T.sum()), name, index_T))
    overlap, best, index_T = max(fits, key=lambda fit: fit[0])
    return best if overlap > LEAST_OVERLAP else NONE, index_T.numpy() * float(ANGLE_STEP)


def _soft_overlap(a_TP: Tensor, b_NP: Tensor) -> Tensor:
    """Intersection over union of every pair of soft masks, [T, N], with min in the place of and."""
    shared_TN = torch.stack([torch.minimum(row, b_NP).sum(dim=1) for row in a_TP])
    return shared_TN / (a_TP.sum(dim=1, keepdim=True) + b_NP.sum(dim=1) - shared_TN)


def _normalised(track: Track) -> Tensor:
    """The object cut out of every frame, scaled to the templates' area, [T, GRID, GRID]."""
    _, height, width = track.coverage.shape
    side = min(height, width)
    offset_P = (torch.arange(GRID, dtype=torch.float64) + 0.5) / GRID * GRID_SPAN - GRID_SPAN / 2
    steps_TP = torch.from_numpy(track.radius)[:, None] * offset_P
    x_TP = (torch.from_numpy(track.x)[:, None] + steps_TP) * side / width * 2 - 1
    y_TP = (torch.from_numpy(track.y)[:, None] + steps_TP) * side / height * 2 - 1
    grid = torch.stack(torch.broadcast_tensors(x_TP[:, None, :], y_TP[:, :, None]), dim=-1).float()
    return F.grid_sample(track.coverage[:, None], grid, align_corners=False)[:, 0]


def _name_motion(track: Track, shape: str, degrees: np.ndarray) -> str:
    """The motion that is largest, each measured in units of the least that counts."""
    right, _ = _line_fit(track.time, track.x)
    down, line_error = _line_fit(track.time, track.y)
    growth = _line_fit(track.time, track.radius)[0] / track.radius.mean()
    height, bounce_error = min((_bounce_fit(track, period) for period in BOUNCE_PERIODS), key=lambda fit: fit[1])
    if bounce_error < line_error and height > LEAST_BOUNCE:
        down = 0.0
    else:
        height = 0.0
    sizes = {
        "standing still": 1.0,
        "moving left": -right / LEAST_TRAVEL,
        "moving right": right / LEAST_TRAVEL,
        "moving up": -down / LEAST_TRAVEL,
        "moving down": down / LEAST_TRAVEL,
        "growing": growth / LEAST_GROWTH,
        "shrinking": -growth / LEAST_GROWTH,
        "bouncing": height / LEAST_BOUNCE,
        "spinning": _spin(track.time, degrees, SYMMETRY[shape]) / LEAST_SPIN,
    }
    return max(sizes, key=sizes.__getitem__)


def _line_fit(time: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """The change over the clip by a straight line, and the sum of its squared errors."""
    slope, start = np.polyfit(time, values, 1)
    return float(slope * (time[-1] - time[0])), float(np.square(values - start - slope * time).sum())


def _bounce_fit(track: Track, period: int) -> tuple[float, float]:
    """The height of the hops if there is one every `period` frames, and the sum of squared errors."""
    slope, start = np.polyfit(wave := np.abs(np.sin(np.pi * track.time / period)), track.y, 1)
    return float(-slope), float(np.square(track.y - start - slope * wave).sum())


def _spin(time: np.ndarray, degrees: np.ndarray, symmetry: int) -> float:
    """The median turn in degrees a frame, either way round; angles are known up to the symmetry."""
    turn = (np.diff(degrees) + symmetry / 2) % symmetry - symmetry / 2
    return abs(float(np.median(turn / np.diff(time)))) if symmetry > ANGLE_STEP else 0.0
