"""The judge of the shapes world, on clips whose content is known."""

import math
from concurrent.futures import Future
from dataclasses import astuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from recipes.shapes import evaluate, measure, report
from recipes.shapes.evaluate import Verdict, accuracy, judge, judge_two, psnr
from recipes.shapes.world import MOTIONS, SHAPES, Object, Scene, all_combos, held_out_combos, render, sample_scene

SEED = 37


def degrade(clip: torch.Tensor, sigma: float, noise: float) -> torch.Tensor:
    """A Gaussian blur of `sigma` pixels, then noise of `noise` grey levels."""
    weight = torch.exp(-0.5 * (torch.arange(-6, 7) / sigma) ** 2)
    weight = (weight / weight.sum()).view(1, 1, 1, -1).repeat(3, 1, 1, 1)
    video = F.pad(clip.permute(0, 3, 1, 2).float(), (6, 6, 6, 6), mode="replicate")
    video = F.conv2d(F.conv2d(video, weight, groups=3), weight.transpose(2, 3), groups=3)
    video += noise * torch.randn(video.shape, generator=torch.Generator().manual_seed(SEED))
    return video.clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def truth(scene: Scene, index: int = 0) -> Verdict:
    item = scene.objects[index]
    return Verdict(scene.background, item.colour, item.shape, item.motion)


@pytest.mark.parametrize("motion", MOTIONS)
def test_judge_names_every_shape_and_motion(motion):
    print("seed", SEED)
    rng = np.random.default_rng(SEED)
    for shape in SHAPES:
        combos = [combo for combo in all_combos() if combo[0] == shape and combo[2] == motion]
        scene = sample_scene(rng, combos[rng.integers(len(combos))])
        assert accuracy([judge(render(scene, 64, 64, 9))], [scene])["all"] == 1.0, scene


@pytest.mark.parametrize("frames, size", [(9, 64), (13, 96), (25, 64)])
def test_judge_sees_through_blur_and_noise(frames, size):
    print("seed", SEED)
    rng = np.random.default_rng(SEED)
    scenes = [sample_scene(rng) for _ in range(12)]
    verdicts = [judge(degrade(render(scene, size, size, frames), 1.5, 4.0)) for scene in scenes]
    assert accuracy(verdicts, scenes)["all"] == 1.0


def test_judge_works_on_wide_and_high_frames():
    scene = Scene("pink", (Object("triangle", "black", "moving up", radius=0.18, travel=0.4),))
    for height, width in ((64, 112), (112, 64)):
        assert judge(render(scene, height, width, 9)) == truth(scene)


def test_judge_two():
    print("seed", SEED)
    rng = np.random.default_rng(SEED)
    scenes = [sample_scene(rng, objects=2) for _ in range(8)]
    verdicts = [judge_two(render(scene, 96, 96, 9)) for scene in scenes]
    assert accuracy(verdicts, scenes)["all"] == 1.0


def test_judge_two_reports_a_missing_object():
    scene = Scene("navy", (Object("star", "red", "standing still"),))
    first, second = judge_two(render(scene, 64, 64, 9))
    assert first == truth(scene)
    assert second == Verdict("navy", "none", "none", "none")


def test_what_is_not_there_is_none():
    empty = torch.zeros(9, 64, 64, 3, dtype=torch.uint8)
    assert judge(empty) == Verdict("black", "none", "none", "none")
    assert judge_two(empty) == (judge(empty), judge(empty))
    clip = render(Scene("navy", (Object("star", "red", "growing", travel=0.2),)), 64, 64, 9)
    clip[3:] = clip[0, 0, 0]
    assert judge(clip) == Verdict("navy", "red", "none", "none")
    assert judge(clip[:2]) == Verdict("navy", "red", "star", "none")


def test_random_pixels_are_no_shape():
    print("seed", SEED)
    noise = torch.rand(9, 3, 8, 8, generator=torch.Generator().manual_seed(SEED))
    blobs = F.interpolate(noise, 64, mode="bilinear").mul(255).to(torch.uint8).permute(0, 2, 3, 1)
    assert judge(blobs).shape == "none"
    assert judge_two(blobs)[1].shape == "none"


def test_judge_refuses_other_layouts():
    with pytest.raises(ValueError, match="permute"):
        judge(torch.zeros(3, 9, 64, 64))


def test_accuracy_counts_each_attribute():
    scene = Scene("white", (Object("star", "red", "growing"),))
    verdicts = [truth(scene), Verdict("white", "red", "square", "growing")]
    shares = accuracy(verdicts, [scene, scene])
    assert shares == {"background": 1.0, "colour": 1.0, "shape": 0.5, "motion": 1.0, "all": 0.5, "whole": 0.5}
    with pytest.raises(ValueError, match="verdicts=2"):
        accuracy(verdicts, [scene])


def test_accuracy_takes_a_still_circle_for_a_spinning_one():
    still, spinning = (Scene("white", (Object("circle", "red", name),)) for name in ("standing still", "spinning"))
    assert accuracy([truth(still), truth(spinning)], [spinning, still])["motion"] == 1.0
    star = Scene("white", (Object("star", "red", "spinning"),))
    assert accuracy([truth(still)], [star])["motion"] == 0.0


def test_accuracy_of_two_objects_takes_the_better_order():
    scene = Scene("white", (Object("star", "red", "growing"), Object("circle", "blue", "bouncing")))
    assert accuracy([(truth(scene, 1), truth(scene, 0))], [scene])["all"] == 1.0
    assert accuracy([(truth(scene, 1), truth(scene, 1))], [scene])["all"] == 0.5
    assert accuracy([(truth(scene, 1), truth(scene, 1))], [scene])["whole"] == 0.0


def test_psnr():
    clip = torch.full((2, 4, 4, 3), 100, dtype=torch.uint8)
    assert psnr(clip, clip) == math.inf
    assert psnr(clip, clip + 5) == pytest.approx(20 * math.log10(255 / 5))
    with pytest.raises(ValueError, match="shape"):
        psnr(clip, clip[:1])


def test_prompts_come_from_their_own_combos():
    held_out, training = evaluate.held_out_prompts(), evaluate.training_prompts(30)
    assert {scene.combo for scene, _ in held_out} == set(held_out_combos())
    assert not {scene.combo for scene, _ in training} & set(held_out_combos())
    assert held_out == evaluate.held_out_prompts(200, seed=0)
    assert held_out != evaluate.held_out_prompts(200, seed=1)


def test_prompts_of_two_objects_have_an_unseen_combination_first():
    pairs = evaluate.held_out_prompts(20, objects=2)
    assert all(len(scene.objects) == 2 and scene.combo in held_out_combos() for scene, _ in pairs)


class Executor:
    """Runs at once what it is given, and remembers the prompts."""

    def __init__(self, clips: dict[str, torch.Tensor]) -> None:
        self.clips, self.prompts = clips, []

    def submit(self, function, prompt, seed, fields, objects):
        self.prompts.append(prompt)
        future = Future()
        verdicts = (judge(self.clips[prompt]),) if objects == 1 else judge_two(self.clips[prompt])
        future.set_result([astuple(verdict) for verdict in verdicts])
        return future


@pytest.mark.parametrize("split", ["unseen", "two objects"])
def test_measuring_goes_on_where_it_was(split, tmp_path):
    cell = measure.Cell(split, count=4, size=96, frames=13)
    prompts = cell.prompts()
    executor = Executor({text: render(scene, 96, 96, 13) for scene, text in prompts})
    [(_, row)] = measure.measure(executor, [cell], tmp_path)
    assert row["all"] == row["whole"] == 1.0 and row["clips"] == 4
    assert len(executor.prompts) == 4
    path = tmp_path / cell.file_name
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2]) + lines[2][:5])  # killed while it wrote the third
    [(_, again)] = measure.measure(executor, [cell], tmp_path)
    assert again == row and len(executor.prompts) == 6


def test_the_report_goes_between_the_marks(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.MARKS[0]}\nold\n{report.MARKS[1]}\nafter\n")
    row = dict.fromkeys((*evaluate.ATTRIBUTES, "all", "whole"), 0.5)
    measured = dict.fromkeys(report.cells_of(10, others=4), row)
    report.write_readme(readme, report.main_table(measured, 10))
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| one object, combinations from training | 50.0 | 50.0 | 50.0 | 50.0 | 50.0 | 50.0 | 5 |" in text
    assert len(report.grid_table(measured, 4)) == 2 + 9 and len(report.size_table(measured, 4)) == 2 + 5
    assert report.seed_table(measured, 4)[-1] == "| standard deviation | 0.0 | 0.0 | 0.0 | 0.0 | 0.0 |"
    readme.write_text("no marks")
    with pytest.raises(ValueError, match="must hold the marks"):
        report.write_readme(readme, [])
