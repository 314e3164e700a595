import dataclasses

import numpy as np
import pytest
import torch

from fastvideo.configs.registry import SHIPPED_MODEL
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.models.dits.wanvideo import WanTransformer3DModel
from fastvideo.models.loader.component_loader import load_component, load_components
from fastvideo.models.loader.repo import resolve_repo
from fastvideo.models.vaes.wanvae import AutoencoderKLWan, Past
from fastvideo.training.trainer import StepInfo
from recipes.shapes import alignment, run, train_dit, train_text, train_vae
from recipes.shapes.captions import LABELS, canonical
from recipes.shapes.export import export
from recipes.shapes.latents import SHARD_CLIPS, SPINNING, LatentCache, build_shard, scene_from_dict
from recipes.shapes.world import COLOURS, Object, Scene, held_out_combos, render, sample_scene

SMALL = dataclasses.replace(train_vae.ARCH, base_dim=4)


def small_vae() -> AutoencoderKLWan:
    torch.manual_seed(0)
    return AutoencoderKLWan(SMALL).eval()


def test_the_initial_vae_lets_brightness_through_and_repeats_frames():
    vae = small_vae()
    train_vae.initialize(vae)
    dark, bright = (torch.full((1, 3, 5, 32, 32), value) for value in (-0.8, 0.8))
    with torch.no_grad():
        latents = [vae.moments(video, Past())[:, : SMALL.z_dim] for video in (dark, bright)]
        video = vae.frames(latents[1], Past())
    assert (latents[0] - latents[1]).abs().mean() > 0.01
    # upsampling in time begins as a copy: the frames of a still clip are alike
    torch.testing.assert_close(video[:, :, 1:4], video[:, :, 2:5], rtol=1e-4, atol=1e-4)


def test_vae_loss_trains_both_halves_or_the_decoder_alone():
    vae = small_vae()
    video = train_vae.batch_of_clips(np.random.default_rng(0), train_vae.ClipShape(1, 5, 32))
    assert video.shape == (1, 3, 5, 32, 32) and video.abs().max() <= 1
    for train_encoder in (True, False):
        vae.zero_grad(set_to_none=True)
        loss, metrics = train_vae.vae_loss(vae, video, train_encoder)
        loss.backward()
        assert (vae.encoder.conv_in.weight.grad is not None) == train_encoder
        assert vae.decoder.conv_in.weight.grad is not None
        assert metrics["kl"] > 0


def test_a_crop_shows_one_of_the_objects():
    rng = np.random.default_rng(0)
    for _ in range(20):
        scene = sample_scene(rng, objects=2)
        clip = render(scene, 128, 128, 9)
        part = train_vae.cut_out(clip, scene, 80, rng)
        assert part.shape == (9, 80, 80, 3)
        background = clip[0, 0, 0].float()
        assert (part.float() - background).abs().amax(dim=(0, 1, 2)).max() > 50


def test_noise_on_the_latents_is_measured_by_their_spread():
    vae, video = small_vae(), train_vae.batch_of_clips(np.random.default_rng(0), train_vae.ClipShape(1, 5, 32))
    losses = []
    for noise in (0.0, 0.0, 50.0):
        torch.manual_seed(1)
        losses.append(train_vae.vae_loss(vae, video, True, noise)[0].item())
    assert losses[0] == losses[1] != losses[2]


def test_shards_depend_on_their_number_alone_and_hold_no_unseen_combination(tmp_path):
    shape = train_vae.ClipShape(8, 5, 32)
    folders = [tmp_path / name for name in "ab"]
    for folder, order in zip(folders, ((0, 1), (1, 0)), strict=True):
        folder.mkdir()
        for index in order:
            build_shard(small_vae(), folder, shape, 1, index)
    caches = [LatentCache(folder, shape, 1) for folder in folders]
    assert len(caches[0]) == 2 * SHARD_CLIPS
    assert all(torch.equal(a, b) for a, b in zip(caches[0].latents, caches[1].latents, strict=True))
    latents, scenes = caches[0].batch(np.random.default_rng(0), 6)
    assert latents.shape == (6, SMALL.z_dim, 2, 4, 4) and latents.dtype == torch.float32
    assert len(scenes) == 6
    unseen = set(held_out_combos())
    _, everything = caches[0].batch(np.random.default_rng(0), 200)
    assert not any(scene.combo in unseen for scene in everything)


def test_what_spins_is_drawn_more_often(tmp_path):
    shape = train_vae.ClipShape(batch=2, frames=1, size=32)
    build_shard(small_vae(), tmp_path, shape, 2, 0)
    cache = LatentCache(tmp_path, shape, 2)

    def share(scenes: list[Scene]) -> float:
        spins = [any(o.motion == "spinning" and o.shape != "circle" for o in scene.objects) for scene in scenes]
        return sum(spins) / len(spins)

    among = share([scene_from_dict(scene) for scene in cache.scenes[0]])
    assert 0 < among < 0.4
    _, drawn = cache.batch(np.random.default_rng(0), 3000)
    assert share(drawn) == pytest.approx(SPINNING * among / (1 + (SPINNING - 1) * among), abs=0.03)


def test_the_mixture_goes_from_its_first_to_its_last_shares():
    def share(progress: float) -> float:
        rng = np.random.default_rng(0)
        infos = [StepInfo(0, progress, rng) for _ in range(400)]
        picks = [train_dit.pick(train_dit.SMALL, info, lambda ingredient: True) for info in infos]
        return sum(ingredient.shape.frames == 1 for ingredient in picks) / 400

    first = train_dit.SMALL.ingredients[0]
    assert share(0.0) == pytest.approx(first.first_share, abs=0.08)
    assert share(1.0) == pytest.approx(first.last_share, abs=0.08)


@pytest.mark.parametrize("setup", train_dit.SETUPS[:3], ids=lambda setup: setup.name)
def test_shares_are_of_the_whole(setup):
    assert sum(i.first_share for i in setup.ingredients) == pytest.approx(1)
    assert sum(i.last_share for i in setup.ingredients) == pytest.approx(1)
    kinds = [(i.shape.frames, i.shape.size, i.objects) for i in setup.ingredients]
    assert len(set(kinds)) == len(kinds), "two would read the same shards"


def test_a_reader_is_asked_for_the_object_of_each_colour():
    red = Object("star", "red", "moving right")
    blue = Object("circle", "blue", "growing")
    scenes = [Scene("black", (red, blue)), Scene("black", (blue, red)), Scene("teal", (red,))]
    truth = train_text.labels(scenes, torch.device("cpu"))
    assert torch.equal(truth["shape"][0], truth["shape"][1]), "the place in the text is not asked for"
    colour = {name: LABELS["colour"].index(name) for name in ("red", "blue")}
    motions = ["moving right", "growing"]
    of_colours = truth["motion"][0, [colour["red"], colour["blue"]]] - 1
    assert [LABELS["motion"][index] for index in of_colours] == motions
    assert truth["shape"][2].nonzero().tolist() == [[colour["red"]]], "the other colours are absent"
    assert [LABELS["background"][index] for index in truth["background"]] == ["black", "black", "teal"]
    torch.manual_seed(0)
    reader = train_text.CaptionReader(train_text.build_text_encoder())
    logits = reader([canonical(scene) for scene in scenes])
    assert {name: tuple(x.shape) for name, x in logits.items()} == {
        "shape": (3, 8, 5), "motion": (3, 8, 10), "background": (3, 6)
    }  # fmt: skip
    logits["motion"][:, colour["red"]].sum().backward()
    assert reader.queries.grad.abs().sum(dim=-1).nonzero()[:, 0].tolist() == [1 + colour["red"]], "a query for each"


def test_the_names_of_tokens_are_those_of_the_objects_there():
    first = Object("star", "red", "moving right", x=0.0, y=-0.25, radius=0.15, travel=0.5)
    second = Object("circle", "blue", "standing still", x=0.0, y=0.25, radius=0.15)
    scenes = [Scene("white", (first, second)), Scene("white", (first,))]
    labels = alignment.token_labels(scenes, frames=9, size=128).unflatten(2, (3, 8, 8))
    assert labels.shape == (2, 3, 3, 8, 8)
    red, blue = (1 + list(COLOURS).index(name) for name in ("red", "blue"))
    assert set(labels[0, 0].unique().tolist()) == {0, red, blue} and set(labels[1, 0].unique().tolist()) == {0, red}
    assert labels[0, 0, :, 5:7, 3:5].eq(blue).all(), "in the middle of the lower half"
    columns = [where[:, 1].float().mean().item() for where in (labels[0, 0, at].eq(red).nonzero() for at in range(3))]
    assert columns[0] < columns[1] < columns[2], "it moves to the right"
    assert torch.equal(labels[0].gt(0).any(dim=0), labels[0].gt(0).all(dim=0))


def test_the_recorded_tokens_are_those_after_their_block():
    torch.manual_seed(0)
    dit = WanTransformer3DModel(train_dit.ARCH)
    train_dit.initialize(dit)
    aligned = alignment.AlignedDiT(dit)
    encoder = train_text.build_text_encoder()
    given = torch.randn(2, 8, 2, 4, 4), torch.tensor([300.0, 700.0])
    kept = []
    hook = dit.blocks[alignment.BLOCK - 1].register_forward_hook(lambda module, args, output: kept.append(output))
    aligned(*given, **train_dit.conditions(encoder, ["a red circle", ""]))
    hook.remove()
    assert torch.equal(aligned.recorder.tokens, kept[0])
    rng = np.random.default_rng(0)
    aligned.alignment_loss([sample_scene(rng), sample_scene(rng, objects=2)], frames=5, size=32).backward()
    assert dit.patch_embedding.weight.grad is not None and dit.proj_out.weight.grad is None


@pytest.mark.parametrize("known_frames", [0, 1])
def test_a_step_of_training_and_the_look_at_what_it_draws(known_frames, tmp_path):
    shape = train_vae.ClipShape(1, 5, 32)
    setup = train_dit.Setup(
        "small", (train_dit.Ingredient(shape, 1, 1.0, 1.0),), shape, 1, 1e-3, known_frames, evaluate_every=1
    )
    (tmp_path / "latents").mkdir()
    build_shard(small_vae(), tmp_path / "latents", shape, 1, 0)
    train_dit.train(tmp_path, setup, small_vae(), train_text.build_text_encoder(), compile_blocks=False)
    assert train_dit.checkpoint(tmp_path, setup).exists()
    clips = torch.load(train_dit.checkpoint(tmp_path, setup).parent / "clips-1.pt", weights_only=True)
    assert len(clips) == 3 and clips[0].shape == (5, 32, 32, 3)
    log = (train_dit.checkpoint(tmp_path, setup).parent / "log.jsonl").read_text()
    assert '"whole": 0.0' in log, "an untrained model draws nothing"


def test_captions_come_in_few_lengths_and_the_rest_is_counted_as_padding():
    encoder = train_text.build_text_encoder()
    inputs = train_dit.conditions(encoder, ["a red circle", ""])
    assert inputs["text"].shape == (2, train_dit.TEXT_MULTIPLE, encoder.arch.d_model)
    assert inputs["text"].shape[1] + inputs["text_padding"] == encoder.text_len
    assert inputs["text"][1, 1:].abs().max() == 0


def test_a_finished_model_is_taken_up_again(tmp_path):
    run.adopt(tmp_path)
    run.adopt(tmp_path)  # what is there stays
    sources = resolve_repo("shapes-t2v").components
    shipped = load_component(sources["vae"], dtype=torch.float32, device=torch.device("cpu"))
    vae = run.load_vae(tmp_path, decoder=True)
    assert vae.arch.latents_mean == shipped.arch.latents_mean and vae.arch.latents_std == shipped.arch.latents_std
    state = vae.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in shipped.state_dict().items())
    assert run.load_text_encoder(tmp_path)(["a red circle"]).states.shape[-1] == train_dit.ARCH.text_dim
    before = train_dit.trained(tmp_path, train_dit.FULL)
    WanTransformer3DModel(train_dit.ARCH).load_state_dict(before)


def test_an_exported_repo_is_recognised_and_loads_to_the_same_weights(tmp_path):
    torch.manual_seed(0)
    dit, encoder = WanTransformer3DModel(train_dit.ARCH), train_text.build_text_encoder()
    vae = AutoencoderKLWan(train_vae.ARCH)
    path = train_dit.checkpoint(tmp_path, train_dit.FULL)
    path.parent.mkdir(parents=True)
    torch.save({"ema": dit.state_dict(prefix="dit.")}, path)
    export(tmp_path, train_dit.FULL, tmp_path / "repo", vae, encoder)
    repo = resolve_repo(tmp_path / "repo")
    assert repo.entry.name == SHIPPED_MODEL.name
    names = ("tokenizer", "text_encoder", "transformer", "vae", "scheduler")
    config = FastVideoArgs.from_kwargs(tmp_path / "repo", precision="fp32")
    loaded = load_components(repo, names, config, config.resolved_pipeline_config())
    for name, module in (("transformer", dit), ("vae", vae), ("text_encoder", encoder)):
        found = dict(loaded[name].named_parameters())
        for key, value in module.named_parameters():
            torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-6)
    prompts = ["a red circle moving left on a white background", "blue zzyx star"]
    with torch.no_grad():
        torch.testing.assert_close(
            loaded["text_encoder"](prompts).states, encoder(prompts).states, rtol=1e-2, atol=1e-2
        )
