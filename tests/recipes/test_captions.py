"""Captions of the shapes world, and the tokenizer that reads them."""

import re
from collections import Counter

import numpy as np
import pytest
from transformers import AutoTokenizer

from recipes.shapes import captions
from recipes.shapes.captions import attributes, build_tokenizer, canonical, caption
from recipes.shapes.world import BACKGROUNDS, COLOURS, MOTIONS, Object, Scene, sample_scene

SEED = 23
VOCABULARY_SIZE = 325
RED_CIRCLE = Scene("white", (Object("circle", "red", "moving left"),))


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def test_canonical():
    assert canonical(RED_CIRCLE) == "a red circle moving left on a white background"
    orange = Object("square", "orange", "standing still")
    assert canonical(Scene("gray", (orange,))) == "an orange square standing still on a gray background"
    pair = Scene("white", (RED_CIRCLE.objects[0], Object("star", "blue", "spinning")))
    assert canonical(pair) == "a red circle moving left and a blue star spinning, on a white background"


@pytest.mark.parametrize("objects", [1, 2])
def test_the_canonical_form_is_the_commonest_by_far(objects):
    print("seed", SEED)
    rng = np.random.default_rng(SEED)
    scene = sample_scene(rng, ("circle", "red", "moving left", "white"), objects)
    counts = Counter(caption(scene, rng) for _ in range(2000))
    (text, count), (_, second) = counts.most_common(2)
    assert text == canonical(scene)
    assert 0.2 < count / 2000 < 0.32
    assert second < 60
    assert len(counts) > 900


@pytest.mark.parametrize("objects", [1, 2])
def test_every_caption_names_every_attribute(objects):
    print("seed", SEED)
    rng = np.random.default_rng(SEED)
    for _ in range(1500):
        scene = sample_scene(rng, objects=objects)
        text = caption(scene, rng).lower()
        assert "{" not in text and "  " not in text
        assert any(word in text for word in captions.BACKGROUND_WORDS.get(scene.background, (scene.background,)))
        for item in scene.objects:
            assert any(word in text for word in captions.COLOUR_WORDS.get(item.colour, (item.colour,))), text
            assert any(word.split()[0] in text for word in captions.SHAPE_WORDS[item.shape]), text


def test_no_phrase_says_two_motions():
    owner = {}
    for motion in MOTIONS:
        for phrase in captions._phrases(captions.MOTION_WORDS[motion]):
            assert owner.setdefault(phrase, motion) == motion


def test_the_background_of_black_and_white_is_clear():
    # With both colours in the text, the background's must stand where no object's colour does.
    rng = np.random.default_rng(SEED)
    print("seed", SEED)
    before = r"(?:on|over|against|of|with|background|backdrop|background is|backdrop is|behind it is|background:)"
    mark = rf"{before} (?:an? )?black\b|black (?:background|backdrop)|black behind"
    known = set(captions.vocabulary())
    filler = re.compile(rf"\b(?:{'|'.join(captions.COMMON_WORDS)}) ")
    for _ in range(1000):
        scene = sample_scene(rng, ("circle", "white", "moving up", "black"))
        text = caption(scene, rng).lower()
        if known.issuperset(re.findall(r"\w+", text)):  # a made-up word may come between
            assert re.search(mark, filler.sub("", text)), text


def test_articles_fit():
    rng = np.random.default_rng(SEED)
    for colour in ("orange", "red"):
        for _ in range(300):
            text = caption(Scene("teal", (Object("star", colour, "growing"),)), rng).lower()
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text), text


def test_attributes_are_positions_in_the_labels():
    blue = Object("star", "blue", "spinning")
    scene = Scene("teal", (RED_CIRCLE.objects[0], blue))
    assert attributes(scene) == {"shape": 0, "colour": 0, "motion": 0, "background": 5}
    assert attributes(scene, 1) == {"shape": 3, "colour": 2, "motion": 4, "background": 5}
    assert captions.LABELS["colour"] == tuple(COLOURS) and captions.LABELS["background"] == tuple(BACKGROUNDS)


def test_only_made_up_words_are_unknown(tokenizer):
    print("seed", SEED)
    rng = np.random.default_rng(SEED)
    unknown = set()
    for index in range(3000):
        text = caption(sample_scene(rng, objects=1 + index % 2), rng)
        pieces = tokenizer.tokenize(text)
        assert len(pieces) < 40
        unknown.update(word for word in re.findall(r"\w+", text.lower()) if tokenizer.convert_tokens_to_ids(word) == 2)
    assert len(unknown) > 50
    assert all(re.fullmatch(r"(?:[b-df-hj-np-tv-z][aeiou]){2,3}[kqxz]", word) for word in unknown), unknown


def test_tokenizer_ids_and_padding(tokenizer):
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<pad>", "</s>", "<unk>"]
    out = tokenizer(["A RED circle!", "xyzzy"], padding="max_length", max_length=8)
    words = ["a", "red", "circle", "!"]
    assert out["input_ids"][0] == [*tokenizer.convert_tokens_to_ids(words), 1, 0, 0, 0]
    assert out["input_ids"][1] == [2, 1, 0, 0, 0, 0, 0, 0]
    assert out["attention_mask"] == [[1] * 5 + [0] * 3, [1] * 2 + [0] * 6]
    assert set(out) == {"input_ids", "attention_mask"}
    long = tokenizer("red " * 600, truncation=True)["input_ids"]
    assert len(long) == tokenizer.model_max_length == 512 and long[-1] == 1


def test_tokenizer_survives_saving(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    texts = ["Moving-left, a red ball.", "", "on a navy background 4k xyzzy"]
    assert loaded(texts, padding=True) == tokenizer(texts, padding=True)
    assert (loaded.padding_side, loaded.model_max_length, loaded.pad_token_id) == ("right", 512, 0)


def test_vocabulary_is_fixed():
    # Trained weights are tied to these ids: adding a word moves them.
    words = captions.vocabulary()
    assert list(words) == sorted(set(words))
    assert len(words) == VOCABULARY_SIZE
