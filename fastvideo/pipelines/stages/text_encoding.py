"""Prompts to embeddings."""

from collections.abc import Sequence

from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.models.encoders.base import TextEmbeddings, TextEncoder
from fastvideo.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.pipelines.stages.base import PipelineStage


class TextEncodingStage(PipelineStage):
    """Embeds prompts and, with guidance, negative prompts in one run of the encoder, each distinct text once."""

    name = "text_encoding"
    writes = ("prompt_embeds", "negative_prompt_embeds")

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder = encoder

    def forward(self, batch: ForwardBatch, args: FastVideoArgs) -> ForwardBatch:
        texts = list(dict.fromkeys([*batch.prompts, *(batch.negative_prompts if batch.guided else ())]))
        for group in batch.control.steps(self.name, [texts], total=1):
            embeddings = self.use(self.encoder)(group)
        copies = batch.sampling.num_videos_per_prompt
        batch.prompt_embeds = select_rows(embeddings, [texts.index(p) for p in batch.prompts for _ in range(copies)])
        if batch.guided:
            rows = [texts.index(p) for p in batch.negative_prompts for _ in range(copies)]
            batch.negative_prompt_embeds = select_rows(embeddings, rows)
        return batch


def select_rows(embeddings: TextEmbeddings, rows: Sequence[int]) -> TextEmbeddings:
    """The embeddings of `rows` alone: as long as the longest of them, the rest counted as padding."""
    mask = embeddings.mask[list(rows)]
    length = int(mask.sum(dim=1).max())
    cut = embeddings.mask.shape[1] - length
    return TextEmbeddings(embeddings.states[list(rows), :length], mask[:, :length], embeddings.padding + cut)
