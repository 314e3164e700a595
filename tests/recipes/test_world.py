"""The shapes world: what can be seen, where it is, and that it stays in the frame."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch

from recipes.shapes import world
from recipes.shapes.world import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, Object, Scene, render, sample_scene, trajectory

SEED = 11
HELD_OUT_START = (("triangle", "orange", "moving down", "white"), ("circle", "purple", "moving up", "gray"))


def coverage(item: Object, frames: int = 17, size: int = 96) -> torch.Tensor:
    return world.shape_coverage(item.shape, trajectory(item, frames), size, size)


def centres(item: Object, frames: int, size: int = 96) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Area and centre of gravity in each frame, in pixels."""
    covered = coverage(item, frames, size).double()
    area = covered.sum((1, 2))
    pixels = torch.arange(size).double() + 0.5
    return area.numpy(), (covered.sum(1) @ pixels / area).numpy(), (covered.sum(2) @ pixels / area).numpy()


def test_colours_are_well_apart():
    named = {**COLOURS, **{f"{name} background": rgb for name, rgb in BACKGROUNDS.items()}}
    same = {("white", "white background"), ("black", "black background")}
    for pair in combinations(named, 2):
        if pair not in same:
            assert np.linalg.norm(np.subtract(named[pair[0]], named[pair[1]])) > 100, pair


def test_combos_leave_out_the_invisible():
    assert len(world.all_combos()) == 4 * 8 * 9 * 6 - 2 * 4 * 9
    assert not any(colour == background for _, colour, _, background in world.all_combos())


def test_held_out_combos_are_fixed_and_leave_every_pair_in_training():
    held_out, training = world.held_out_combos(), world.training_combos()
    assert len(held_out) == len(set(held_out)) == 200
    assert set(held_out) | set(training) == set(world.all_combos())
    assert not set(held_out) & set(training)
    # A change of the numbers or the seed would let trained models be judged on what they saw.
    assert held_out[:2] == HELD_OUT_START

    def pairs(combos):
        return {pair for combo in combos for pair in combinations(enumerate(combo), 2)}

    assert pairs(training) == pairs(world.all_combos())


def test_sampling_never_shows_a_held_out_combo():
    rng = np.random.default_rng(SEED)
    held_out = set(world.held_out_combos())
    for objects in (1, 2):
        for _ in range(500):
            scene = sample_scene(rng, objects=objects)
            assert len(scene.objects) == objects
            for item in scene.objects:
                assert (item.shape, item.colour, item.motion, scene.background) not in held_out


def test_sampling_is_repeatable_and_follows_the_combo():
    combo = ("star", "white", "bouncing", "navy")
    first, second = (sample_scene(np.random.default_rng(SEED), combo) for _ in range(2))
    assert first == second
    assert first.combo == combo


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("motion", MOTIONS)
def test_objects_stay_inside(shape, motion):
    print("seed", SEED)
    rng = np.random.default_rng(SEED)
    for frames in (9, 25):
        covered = coverage(sample_scene(rng, (shape, "red", motion, "white")).objects[0], frames, 64)
        inside = covered[:, 1:-1, 1:-1].sum()
        assert covered.sum() - inside < 0.01 * inside


def test_two_objects_differ_in_colour_and_never_touch():
    print("seed", SEED)
    rng = np.random.default_rng(SEED)
    for _ in range(60):
        first, second = sample_scene(rng, objects=2).objects
        assert first.colour != second.colour
        a, b = coverage(first, 13, 64), coverage(second, 13, 64)
        assert (a * b).sum() < 0.5, (first, second)
        assert a[:, 0].sum() + a[:, -1].sum() + a[:, :, 0].sum() + a[:, :, -1].sum() < 20


def test_moving_crosses_its_distance_in_any_number_of_frames():
    for motion, (dx, dy) in world.DIRECTIONS.items():
        for frames in (9, 33):
            _, x, y = centres(Object("circle", "red", motion, radius=0.15, travel=0.4), frames)
            assert (x[-1] - x[0]) / 96 == pytest.approx(0.4 * dx, abs=1e-3)
            assert (y[-1] - y[0]) / 96 == pytest.approx(0.4 * dy, abs=1e-3)
            assert np.ptp(np.diff(x)) < 0.05 and np.ptp(np.diff(y)) < 0.05


def test_growing_and_shrinking_change_the_radius():
    grown, _, _ = centres(Object("square", "red", "growing", travel=0.2), 17)
    shrunk, _, _ = centres(Object("square", "red", "shrinking", travel=0.2), 17)
    assert np.sqrt(grown[-1] / grown[0]) == pytest.approx(3.0, rel=0.02)
    np.testing.assert_allclose(shrunk, grown[::-1], rtol=1e-5)


def test_bouncing_starts_and_lands_on_the_ground():
    _, _, y = centres(Object("circle", "red", "bouncing", travel=0.35), 25)
    assert y[[0, 12, 24]] == pytest.approx(y[0], abs=0.02)
    assert (y[0] - y[6]) / 96 == pytest.approx(0.35, abs=1e-3)
    assert y.argmax() in (0, 12, 24)


def test_spinning_is_clockwise_by_12_degrees_a_frame():
    path = trajectory(Object("triangle", "red", "spinning"), 31)
    assert np.rad2deg(path.angle) == pytest.approx(12 * np.arange(31), abs=1e-3)
    # After 90 degrees clockwise, the tip that pointed up points right.
    zero = np.zeros(2, dtype=np.float32)
    quarter = np.array([0, np.pi / 2], dtype=np.float32)
    covered = world.shape_coverage("triangle", world.Trajectory(zero, zero, zero + 0.3, quarter), 96, 96)
    assert torch.allclose(covered[1], torch.rot90(covered[0], -1, (0, 1)), atol=1e-3)


@pytest.mark.parametrize("shape, top_heavy", [("circle", 0), ("square", 0), ("triangle", -1), ("star", 0)])
def test_shapes_start_upright_and_are_symmetric(shape, top_heavy):
    picture = coverage(Object(shape, "red", "standing still", radius=0.3), 1, 128)[0]
    assert torch.allclose(picture, picture.flip(1), atol=1e-4)
    widths = picture.sum(1)
    shown = widths[widths > 0]
    assert (top_heavy == 0) or shown[0] < shown[-1]
    if shape in ("triangle", "star"):
        assert shown[0] < 4  # one point up


def test_shapes_are_of_similar_size():
    areas = {shape: float(coverage(Object(shape, "red", "standing still"), 1).sum()) for shape in SHAPES}
    assert max(areas.values()) < 2 * min(areas.values()), areas


def test_render_has_the_named_colours_and_soft_edges():
    scene = Scene("navy", (Object("circle", "yellow", "standing still", radius=0.25),))
    clip = render(scene, 64, 96, 5)
    assert clip.shape == (5, 64, 96, 3) and clip.dtype == torch.uint8 and clip.is_contiguous()
    assert clip[0, 32, 48].tolist() == list(COLOURS["yellow"])
    assert clip[0, 0, 0].tolist() == list(BACKGROUNDS["navy"])
    counts = Counter(map(tuple, clip[0].flatten(0, 1).tolist()))
    assert 20 < 64 * 96 - sum(counts[rgb] for rgb in (COLOURS["yellow"], BACKGROUNDS["navy"])) < 200


def test_render_draws_later_objects_on_top():
    items = (Object("square", "red", "standing still"), Object("square", "green", "standing still", radius=0.1))
    clip = render(Scene("white", items), 64, 64, 1)
    assert clip[0, 32, 32].tolist() == list(COLOURS["green"])
    assert clip[0, 32, 24].tolist() == list(COLOURS["red"])


@pytest.mark.parametrize("height, width, frames", [(32, 32, 1), (33, 70, 2), (160, 64, 81)])
def test_render_keeps_objects_whole_at_any_size(height, width, frames):
    scene = Scene("black", (Object("square", "white", "moving down", radius=0.16, travel=0.5),))
    share = render(scene, height, width, frames).float().mean((1, 2, 3)) / 255
    expected = (2 * world.SQUARE_HALF_SIDE * 0.16 * min(height, width)) ** 2 / (height * width)
    assert share.numpy() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("size", [(31, 64, 9), (64, 513, 9), (64, 64, 0), (64, 64, 82)])
def test_render_refuses_other_sizes(size):
    with pytest.raises(ValueError, match=r"must be .* try"):
        render(Scene("white", (Object("star", "red", "growing"),)), *size)


def test_bad_words_are_refused_with_the_choices():
    with pytest.raises(ValueError, match="colour='pink': must be one of red"):
        Object("star", "pink", "growing")
    with pytest.raises(ValueError, match="background='red'"):
        Scene("red", (Object("star", "red", "growing"),))
    with pytest.raises(ValueError, match="objects=0"):
        Scene("white", ())
    with pytest.raises(ValueError, match="objects=3"):
        sample_scene(np.random.default_rng(SEED), objects=3)
    with pytest.raises(ValueError, match="all_combos"):
        sample_scene(np.random.default_rng(SEED), ("star", "white", "growing", "white"))
