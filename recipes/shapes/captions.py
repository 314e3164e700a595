"""What people would type for a scene of the shapes world, and the tokenizer that reads it.

Every caption says which colour is the background's ("white circle on black"), because white and black
name both; and it mentions two objects in the order of `Scene.objects`, so that labels match the text.
"""

import re
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from recipes.shapes.world import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, Object, Scene

LABELS = {"shape": SHAPES, "colour": tuple(COLOURS), "motion": MOTIONS, "background": tuple(BACKGROUNDS)}

CANONICAL_SHARE = 0.25
FILLER_SHARE = 0.3  # of the other captions

# In every list of synonyms the first is the plain one and is drawn most often.
SHAPE_WORDS = {
    "circle": ("circle", "disc", "disk", "ball", "dot"),
    "square": ("square", "box"),
    "triangle": ("triangle", "triangular shape"),
    "star": ("star", "five-pointed star"),
}
COLOUR_WORDS = {"purple": ("purple", "violet")}
BACKGROUND_WORDS = {"gray": ("gray", "grey"), "navy": ("navy", "navy blue"), "pink": ("pink", "light pink")}
GOING = ("moving", "going", "sliding", "drifting", "heading", "travelling", "traveling", "gliding", "floating")
GOES = ("moves", "goes", "slides", "drifts", "heads", "travels", "glides", "floats")


@dataclass(frozen=True)
class MotionWords:
    """The ways to say a motion: after "is", after the object, and (not always) before it."""

    participles: tuple[str, ...]
    verbs: tuple[str, ...]
    adjectives: tuple[str, ...] = ()


def _travel_words(ways: str, participles: str = "", verbs: str = "") -> MotionWords:
    """Every verb of going with every one of `ways`; the extra words are complete on their own."""
    way = ways.split(", ")
    alone, alone_verbs = tuple(participles.split()), tuple(verbs.split())
    return MotionWords(
        tuple(f"{verb} {to}" for verb in GOING for to in way) + alone,
        tuple(f"{verb} {to}" for verb in GOES for to in way) + alone_verbs,
        alone,
    )


MOTION_WORDS = {
    "moving left": _travel_words("left, to the left, leftwards, leftward, towards the left, from right to left"),
    "moving right": _travel_words("right, to the right, rightwards, rightward, towards the right, from left to right"),
    "moving up": _travel_words(
        "up, upwards, upward, to the top, towards the top, from bottom to top",
        "rising climbing ascending",
        "rises climbs ascends",
    ),
    "moving down": _travel_words(
        "down, downwards, downward, to the bottom, towards the bottom, from top to bottom",
        "falling sinking dropping descending",
        "falls sinks drops descends",
    ),
    "spinning": MotionWords(
        ("spinning", "rotating", "turning", "spinning around", "turning around", "twirling", "rotating clockwise"),
        ("spins", "rotates", "turns", "spins around", "turns around", "twirls", "rotates clockwise"),
        ("spinning", "rotating", "turning", "twirling"),
    ),
    "growing": MotionWords(
        ("growing", "getting bigger", "expanding", "getting larger", "becoming bigger", "increasing in size"),
        ("grows", "gets bigger", "expands", "gets larger", "becomes bigger", "increases in size"),
        ("growing", "expanding"),
    ),
    "shrinking": MotionWords(
        ("shrinking", "getting smaller", "contracting", "becoming smaller", "decreasing in size"),
        ("shrinks", "gets smaller", "contracts", "becomes smaller", "decreases in size"),
        ("shrinking", "contracting"),
    ),
    "bouncing": MotionWords(
        ("bouncing", "hopping", "jumping", "bouncing up and down", "jumping up and down"),
        ("bounces", "hops", "jumps", "bounces up and down", "jumps up and down"),
        ("bouncing", "hopping", "jumping"),
    ),
    "standing still": MotionWords(
        ("standing still", "not moving", "motionless", "static", "staying still", "still", "at rest", "stationary"),
        ("stands still", "does not move", "is motionless", "is static", "stays still", "is still", "stays in place"),
        ("still", "static", "motionless", "stationary"),
    ),
}

PLACES = (
    "on a {background} background",
    "on {background}",
    "over {background}",
    "against {background}",
    "over a {background} background",
    "against a {background} background",
    "against a {background} backdrop",
    "in front of a {background} background",
    "in front of a {background} backdrop",
    "with a {background} background",
    "with {background} behind {it}",
)

# {thing} is "a red circle", with any article or none.
SINGLE_TEMPLATES = (
    "{thing} {moving} {place}",
    "{thing} {moves} {place}",
    "{thing} is {moving} {place}",
    "{thing} {place}, {moving}",
    "{thing} {place}. it {moves}",
    "{thing} {place}, it is {moving}",
    "{thing} that {moves} {place}",
    "{thing} which is {moving} {place}",
    "{place}, {thing} is {moving}",
    "{place}, {thing} {moves}",
    "{place}, {thing} {moving}",
    "{background} background, {thing}, {moving}",
    "{background} background, {colour} {shape}, {moving}",
    "{background} background with {thing} {moving}",
    "{background} background: {thing} {moves}",
    "the background is {background} and {thing} is {moving}",
    "the backdrop is {background}. {thing} {moves}",
    "{colour} {shape} {moving}, {background} background",
    "{colour} {shape}, {moving}, {background} backdrop",
    "a {shape}, {colour}, {moves}; background {background}",
    "{shape}, {colour}, {moving}, background {background}",
    "a {shape} that is {colour} {moves} {place}",
    "the {shape} is {colour}. it {moves}. the backdrop is {background}",
    "the {shape} is {colour} and it is {moving}. the background is {background}",
    "there is {thing} {place}. it is {moving}",
    "{moving}, {thing} {place}",
    "shape: {shape}; colour: {colour}; motion: {moving}; background: {background}",
    "{thing} {moving}, everything behind it is {background}",
)
ADJECTIVE_TEMPLATES = (
    "a {adjective} {colour} {shape} {place}",
    "{adjective} {colour} {shape} {place}",
    "{place}, a {adjective} {colour} {shape}",
    "{background} background, {adjective} {colour} {shape}",
)
ADJECTIVE_SHARE = 0.15

PAIR_TEMPLATES = (
    "{first} and {second} {place}",
    "{first} and {second}, {place}",
    "{first}, {second}, {place}",
    "{first} with {second}, {place}",
    "{place}, {first} and {second}",
    "{place}, {first}, {second}",
    "{place} there are {first} and {second}",
    "{background} background, {first}, {second}",
    "{background} background with {first} and {second}",
    "{first}; {second}; background {background}",
    "{first}. {second}. the backdrop is {background}",
    "the background is {background}: {first} and {second}",
)
CLAUSES = ("{thing} {moving}", "{thing} that {moves}", "{thing} that is {moving}", "{colour} {shape} {moving}")

FILLER_STARTS = (
    "video of", "a video of", "a clip of", "an animation of", "a short movie of", "please show", "show me",
    "please make", "generate", "i want to see", "4k video of", "cartoon of", "imagine",
)  # fmt: skip
FILLER_ENDS = (
    "4k", "please", "hd", "8k", "high quality", "highly detailed", "cinematic", "thanks", "best quality",
    "very nice", "in this video", "for a few seconds", "simple animation", "masterpiece",
)  # fmt: skip
FILLER_ADJECTIVES = ("beautiful", "nice", "lovely", "pretty", "cool", "simple", "amazing", "cute", "shiny", "plain")
# Words with no bearing on the picture: training on them teaches the encoder to look past them.
_COMMON = (
    "about after again all also always another any back be because been before but by can could day do each even "
    "every find first get give good great had has have he help her here him his home how if its just know last life "
    "like look made man many may more most much my name never new next now old one only or other our out own people "
    "place put quite really say scene see she so some style take tell than their them then these they thing think "
    "this time today two use water way we well were what when where who why will word work world would year you your "
    "dog cat tree house car sky sun city street music table book"
)
_SYLLABLES = "ba be do du fa fi go gu ka ki lo lu ma mi no nu pa pe ra ri so su ta te vo vu wa xi zo zu"
COMMON_WORDS, SYLLABLES = tuple(_COMMON.split()), tuple(_SYLLABLES.split())
PUNCTUATION = tuple(".,;:!?'\"()-/&")


def canonical(scene: Scene) -> str:
    """The plain caption, "a red circle moving left on a white background".

    Two objects are joined by "and" and a comma comes before the background.
    """
    things = [f"{_with_article(f'{item.colour} {item.shape}')} {item.motion}" for item in scene.objects]
    return " and ".join(things) + (", " if len(things) > 1 else " ") + f"on a {scene.background} background"


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A random way to say the scene; a quarter of them are `canonical(scene)` to the letter."""
    if rng.random() < CANONICAL_SHARE:
        return canonical(scene)
    words = _background_words(scene, rng)
    if len(scene.objects) == 1:
        text = _single(scene.objects[0], words, rng)
    else:
        first, second = (_clause(item, rng) for item in scene.objects)
        text = _choose(rng, PAIR_TEMPLATES).format(first=first, second=second, **words)
    if rng.random() < FILLER_SHARE:
        text = _add_filler(text, scene, rng)
    return _style(_fix_articles(text), rng)


def attributes(scene: Scene, index: int = 0) -> dict[str, int]:
    """Labels of object `index` and of the background: their positions in `LABELS`."""
    item = scene.objects[index]
    values = {"shape": item.shape, "colour": item.colour, "motion": item.motion, "background": scene.background}
    return {name: LABELS[name].index(value) for name, value in values.items()}


def vocabulary() -> tuple[str, ...]:
    """Every word and mark that a caption can hold (but for made-up words), sorted."""
    motions = [phrase for words in MOTION_WORDS.values() for phrase in _phrases(words)]
    tables = (SHAPE_WORDS, COLOUR_WORDS, BACKGROUND_WORDS)
    synonyms = [word for table in tables for group in table.values() for word in group]
    templates = SINGLE_TEMPLATES + ADJECTIVE_TEMPLATES + PAIR_TEMPLATES + CLAUSES + PLACES
    texts = [re.sub(r"{\w+}", " ", template) for template in templates] + motions + synonyms
    texts += [*COLOURS, *BACKGROUNDS, *FILLER_STARTS, *FILLER_ENDS, *FILLER_ADJECTIVES, *COMMON_WORDS]
    texts += ["a an the it them"]
    words = {word for text in texts for word in re.findall(r"[a-z0-9]+", text)}
    return tuple(sorted(words.union(PUNCTUATION)))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A lower-casing word-level tokenizer whose special ids are T5's: <pad>=0, </s>=1, <unk>=2.

    It ends every text with </s>, pads on the right and keeps `model_max_length` at 512.
    """
    words = ("<pad>", "</s>", "<unk>", *vocabulary())
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # at white space, and around every mark
    tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="right",
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
    )


# ---- Putting a caption together ----


def _single(item: Object, words: dict[str, str], rng: np.random.Generator) -> str:
    adjectives = MOTION_WORDS[item.motion].adjectives
    if adjectives and rng.random() < ADJECTIVE_SHARE:
        template = ADJECTIVE_TEMPLATES[rng.integers(len(ADJECTIVE_TEMPLATES))]
        return template.format(adjective=_choose(rng, adjectives), **_object_words(item, rng), **words)
    template = SINGLE_TEMPLATES[rng.integers(len(SINGLE_TEMPLATES))]
    return template.format(**_object_words(item, rng), **words)


def _clause(item: Object, rng: np.random.Generator) -> str:
    adjectives = MOTION_WORDS[item.motion].adjectives
    words = _object_words(item, rng)
    if adjectives and rng.random() < ADJECTIVE_SHARE:
        return f"a {_choose(rng, adjectives)} {words['colour']} {words['shape']}"
    return _choose(rng, CLAUSES).format(**words)


def _object_words(item: Object, rng: np.random.Generator) -> dict[str, str]:
    motion = MOTION_WORDS[item.motion]
    colour = _choose(rng, COLOUR_WORDS.get(item.colour, (item.colour,)))
    shape = _choose(rng, SHAPE_WORDS[item.shape])
    return {
        "colour": colour,
        "shape": shape,
        "thing": _choose(rng, ("a ", "the ", "")) + f"{colour} {shape}",
        "moving": _choose(rng, motion.participles),
        "moves": _choose(rng, motion.verbs),
    }


def _background_words(scene: Scene, rng: np.random.Generator) -> dict[str, str]:
    background = _choose(rng, BACKGROUND_WORDS.get(scene.background, (scene.background,)))
    it = "it" if len(scene.objects) == 1 else "them"
    return {"background": background, "place": _choose(rng, PLACES).format(background=background, it=it)}


def _choose(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    """The first option a third of the time, otherwise any."""
    return options[0] if rng.random() < 1 / 3 else options[rng.integers(len(options))]


def _add_filler(text: str, scene: Scene, rng: np.random.Generator) -> str:
    kind = rng.integers(4)
    if kind == 0:
        return f"{FILLER_STARTS[rng.integers(len(FILLER_STARTS))]} {text}"
    if kind == 1:
        return f"{text}, {FILLER_ENDS[rng.integers(len(FILLER_ENDS))]}"
    if kind == 2:
        colour = COLOUR_WORDS.get(scene.objects[0].colour, (scene.objects[0].colour,))
        adjective = FILLER_ADJECTIVES[rng.integers(len(FILLER_ADJECTIVES))]
        return re.sub(rf"\b({'|'.join(colour)}) (?!background|backdrop|behind)", rf"{adjective} \1 ", text, count=1)
    pieces = text.split(" ")
    for _ in range(rng.integers(1, 4)):
        word = COMMON_WORDS[rng.integers(len(COMMON_WORDS))] if rng.random() < 0.5 else _made_up_word(rng)
        pieces.insert(rng.integers(len(pieces) + 1), word)
    return " ".join(pieces)


def _made_up_word(rng: np.random.Generator) -> str:
    # Ends like no word of the vocabulary, so that it is always <unk>.
    return "".join(rng.choice(SYLLABLES, size=rng.integers(2, 4))) + str(rng.choice(list("kqxz")))


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _fix_articles(text: str) -> str:
    return re.sub(r"\ban? (?=(\w))", lambda match: "an " if match[1] in "aeiou" else "a ", text)


def _style(text: str, rng: np.random.Generator) -> str:
    case = rng.random()
    if case < 0.3:
        text = text[0].upper() + text[1:]
    elif case < 0.35:
        text = text.upper()
    elif case < 0.4:
        text = text.title()
    return text + str(rng.choice(["", ".", "!"], p=[0.7, 0.25, 0.05]))


def _phrases(words: MotionWords) -> tuple[str, ...]:
    return words.participles + words.verbs + words.adjectives
