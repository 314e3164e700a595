"""`ParamNamesMapping`: translation of checkpoint names, forwards and backwards."""

import pytest

from fastvideo.configs.models.base import ArchConfig, ParamNamesMapping, Rename, Target, stacked
from fastvideo.configs.models.dits.wanvideo import WanVideoArchConfig
from fastvideo.configs.models.encoders.t5 import T5ArchConfig, UMT5ArchConfig
from fastvideo.configs.models.vaes.wanvae import WanVAEArchConfig

MAPPING = ParamNamesMapping(
    rules=(
        *stacked(("blocks.*.q.*", "blocks.*.k.*", "blocks.*.v.*"), "layers.*.qkv.*"),
        Rename("blocks.*.scale", "layers.*.gain"),
        Rename("first.weight", "embed.weight"),
        Rename("second.weight", "embed.weight"),
    ),
    drop=("rope.*",),
    tied=(("first.weight", "second.weight"),),
)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("blocks.3.k.weight", Target("layers.3.qkv.weight", 1, 3)),
        ("blocks.3.scale", Target("layers.3.gain")),
        ("blocks.3.deep.scale", Target("blocks.3.deep.scale")),
        ("rope.freqs.cos", None),
        ("head.bias", Target("head.bias")),
    ],
)
def test_translation(name: str, target: Target | None) -> None:
    assert MAPPING(name) == target


@pytest.mark.parametrize(
    ("name", "sources"),
    [
        ("layers.3.qkv.bias", ("blocks.3.q.bias", "blocks.3.k.bias", "blocks.3.v.bias")),
        ("layers.11.gain", ("blocks.11.scale",)),
        ("head.bias", ("head.bias",)),
        ("embed.weight", ("first.weight",)),
    ],
)
def test_sources_read_the_map_backwards(name: str, sources: tuple[str, ...]) -> None:
    assert MAPPING.sources(name) == sources


@pytest.mark.parametrize(
    ("names", "repeated"),
    [
        (["first.weight", "head.bias"], set()),
        (["second.weight"], set()),
        (["second.weight", "first.weight"], {"second.weight"}),
    ],
)
def test_of_tied_names_the_first_that_is_there_counts(names: list[str], repeated: set[str]) -> None:
    assert MAPPING.repeated(names) == repeated


CONFIGS = [
    pytest.param(WanVideoArchConfig(num_layers=2), id="wan"),
    pytest.param(T5ArchConfig(), id="t5"),
    pytest.param(T5ArchConfig(feed_forward_proj="gated-gelu"), id="gated-t5"),
    pytest.param(UMT5ArchConfig(), id="umt5"),
]


@pytest.mark.parametrize("arch", CONFIGS)
def test_each_rule_reads_the_same_both_ways(arch: ArchConfig) -> None:
    for mapping in (arch.param_names_mapping, arch.official_param_names_mapping):
        for rule in mapping.rules if mapping else ():
            if any(rule.source in group[1:] for group in arch.param_names_mapping.tied):
                continue
            target = rule.target.replace("blocks.*", "blocks.7").replace("*", "weight")
            source = rule.source.replace("block.*", "block.7").replace("blocks.*", "blocks.7").replace("*", "weight")
            assert mapping is not None
            assert mapping.sources(target)[rule.part] == source
            assert mapping(source) == Target(target, rule.part, rule.parts)


def test_the_feed_forward_names_follow_the_config() -> None:
    plain, gated = T5ArchConfig().param_names_mapping, UMT5ArchConfig().param_names_mapping
    inner = "encoder.block.0.layer.1.DenseReluDense"
    assert plain.sources("blocks.0.ffn.fc_in.weight") == (f"{inner}.wi.weight",)
    assert gated.sources("blocks.0.ffn.fc_in.weight") == (f"{inner}.wi_0.weight", f"{inner}.wi_1.weight")


def test_the_official_vae_names_follow_the_config() -> None:
    one = WanVAEArchConfig(num_res_blocks=1).official_param_names_mapping
    two = WanVAEArchConfig(num_res_blocks=2).official_param_names_mapping
    assert one is not None
    assert two is not None
    assert one.sources("decoder.up_blocks.1.resnets.0.conv1.weight") == ("decoder.upsamples.3.residual.2.weight",)
    assert two.sources("decoder.up_blocks.1.resnets.0.conv1.weight") == ("decoder.upsamples.4.residual.2.weight",)
