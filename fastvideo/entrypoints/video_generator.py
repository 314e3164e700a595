"""`VideoGenerator`: the Python interface."""

import copy
import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, overload

from fastvideo.configs.pipelines.base import PipelineConfig
from fastvideo.configs.registry import ModelEntry
from fastvideo.configs.sample.base import MEDIA, SamplingParam
from fastvideo.entrypoints.adapters import Adapters, LoraMethods
from fastvideo.entrypoints.media import Frames, output_file, output_files, write_video
from fastvideo.entrypoints.media_inputs import digests, fitted, read_media
from fastvideo.entrypoints.metadata import clip_metadata
from fastvideo.entrypoints.quality import EXACT, Tuned, find_tuned, in_plain_fields, loaded_for
from fastvideo.entrypoints.result import GenerationResult, results_of, to_frames
from fastvideo.entrypoints.streaming import StreamMethods, VideoChunk
from fastvideo.entrypoints.together import Order, TogetherMethods
from fastvideo.entrypoints.watch import ProgressBar, control_of, interrupt_cancels
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.logger import init_logger
from fastvideo.models.loader.compile_options import check_compile_options
from fastvideo.models.loader.gguf_source import with_weights
from fastvideo.models.loader.plan import choose_layout, frame_multiple
from fastvideo.models.loader.repo import Repo, resolve_repo
from fastvideo.models.loader.weights import weight_hashes
from fastvideo.pipelines.composed_pipeline_base import ComposedPipelineBase
from fastvideo.pipelines.pipeline_batch_info import (
    CancelToken,
    Control,
    ForwardBatch,
    MediaInputs,
    Progress,
    no_report,
    written,
)  # fmt: skip
from fastvideo.pipelines.stages.input_validation import check_prompts
from fastvideo.platforms import current_platform
from fastvideo.utils import require, require_known, resolve
from fastvideo.worker.executor import Executor
from fastvideo.worker.start import start_executor

logger = init_logger(__name__)

KEYWORDS = ("prompt", "sampling_param", *MEDIA, "progress", "cancel", "preview_every", "on_chunk")
"""Of `generate_video`, beside the fields of `SamplingParam`."""


class VideoGenerator(LoraMethods, StreamMethods, TogetherMethods):
    """A loaded model that makes videos. Use it as a context manager, or call `shutdown` when done."""

    _start = staticmethod(start_executor)
    """Makes the executor."""

    def __init__(
        self, *, repo: Repo, entry: ModelEntry, args: FastVideoArgs, pipeline_config: PipelineConfig, executor: Executor
    ) -> None:
        """Use `from_pretrained`; this is for an executor of one's own."""
        self.repo = repo
        self.entry = entry
        self.args = args
        self.pipeline_config = pipeline_config
        self.loaded = EXACT
        self._executor: Executor | None = executor
        self._lock = threading.Lock()
        self._checker: ComposedPipelineBase | None = None
        super().__init__(repo)

    @classmethod
    def from_pretrained(cls, model: str | Path, **kwargs: Any) -> "VideoGenerator":
        """Load `model`: a Hub id, a local folder, or the name of the model in the package.

        Args:
            model: such as "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", a folder with a `model_index.json`, or "shapes-t2v".
            kwargs: the fields of `FastVideoArgs`, such as `precision`, `device`, `revision`, `pipeline_config`.

        Raises:
            ValueError: an unknown keyword, an option that this version does not have, or a repo that is not whole;
                says what to do instead. All but broken weights is found before any weight is read.
            WorkerError: with several devices, a process failed by itself.
        """
        args = FastVideoArgs.from_kwargs(model, **kwargs)
        platform = current_platform(args.device)
        check_compile_options(args)
        repo = with_weights(resolve_repo(args.model, args.revision), args.weight_paths)
        entry = repo.entry
        pipeline_config = args.resolved_pipeline_config(resolve(entry.pipeline_config)())
        args, pipeline_config, loaded = loaded_for(repo, args, pipeline_config, kwargs)
        if args.memory is not None:
            # imported on use: it runs parts of the model in another process
            fitted = resolve("fastvideo.entrypoints.planning.choose:fitted")
            args, pipeline_config = fitted(repo, args, pipeline_config, kwargs.keys() | loaded.options.keys())
        layout = choose_layout(repo, args, pipeline_config)
        adapters = Adapters(repo)
        for nickname, (path, strength) in args.loras().items():
            adapters = adapters.with_adapter(nickname, path, strength, accumulate=True)
        if layout.world > 1:
            args = dataclasses.replace(args, **layout.options())
        started = time.perf_counter()
        executor = cls._start(repo, entry, args, pipeline_config, layout)
        where = platform.device_type + (f" ({layout.world} processes: {layout})" if layout.world > 1 else "")
        logger.info("%s loaded on %s in %.1f s", args.model, where, time.perf_counter() - started)
        generator = cls(repo=repo, entry=entry, args=args, pipeline_config=pipeline_config, executor=executor)
        generator.loaded = loaded
        if adapters.known:
            try:
                generator._adapt(lambda now: adapters)
            except BaseException:
                executor.shutdown()
                raise
        return generator

    @overload
    def generate_video(
        self,
        prompt: str,
        sampling_param: SamplingParam | None = None,
        *,
        image: Any = None,
        last_image: Any = None,
        video: Any = None,
        mask: Any = None,
        reference_images: Any = None,
        progress: Callable[[Progress], None] | None = None,
        cancel: CancelToken | None = None,
        preview_every: int = 0,
        on_chunk: Callable[[VideoChunk], None] | None = None,
        **fields: Any,
    ) -> GenerationResult | list[GenerationResult]: ...

    @overload
    def generate_video(
        self,
        prompt: list[str],
        sampling_param: SamplingParam | None = None,
        *,
        image: Any = None,
        last_image: Any = None,
        video: Any = None,
        mask: Any = None,
        reference_images: Any = None,
        progress: Callable[[Progress], None] | None = None,
        cancel: CancelToken | None = None,
        preview_every: int = 0,
        on_chunk: Callable[[VideoChunk], None] | None = None,
        **fields: Any,
    ) -> list[GenerationResult]: ...

    def generate_video(
        self,
        prompt: str | list[str],
        sampling_param: SamplingParam | None = None,
        *,
        image: Any = None,
        last_image: Any = None,
        video: Any = None,
        mask: Any = None,
        reference_images: Any = None,
        progress: Callable[[Progress], None] | None = None,
        cancel: CancelToken | None = None,
        preview_every: int = 0,
        on_chunk: Callable[[VideoChunk], None] | None = None,
        **fields: Any,
    ) -> GenerationResult | list[GenerationResult]:
        """Make a video of each prompt, one after the other, each from the same seed.

        The first Ctrl-C stops at the next step and raises `KeyboardInterrupt`; the generator can be used again, and
        videos that were done are saved.

        Args:
            prompt: what to show, or a list of that.
            sampling_param: what to sample, not changed here; the model's defaults when None.
            image: what the video starts with: a path, an http(s) URL, a PIL image, an array [H, W, 3] or a tensor
                [3, H, W]; pixels are uint8, or floats in [0, 1]. The same for all prompts, as are those below.
            last_image: what it ends with.
            video: what it is made from: the same kinds, with T frames in front, or a list of images.
            mask: white where the video is made anew; a video, or one image for all frames.
            reference_images: a list of images.
            progress: called with each step in place of the progress bar.
            cancel: a token whose `cancel()`, from any thread, stops the call at its next step.
            preview_every: denoising steps from one preview in `progress` to the next; 0 makes none.
            on_chunk: called with each chunk of the video as soon as it is there, as `stream` hands it out.
            fields: fields of `SamplingParam`, such as `seed`, that beat those of `sampling_param`; and `start_video`,
                `pose_video`, `face_video`, `background_video` and `mask_video`, which are given as `video` is.

        Returns:
            One result for one prompt and one video, else a list: the videos of the first prompt, then of the second.

        Raises:
            ValueError: the request is not one that the model can run, or an unknown keyword; nothing was computed.
            OSError: `output_path` cannot be written; nothing was computed.
            Cancelled: `cancel` was cancelled.
            FloatingPointError: NaN or infinity in the latents; says at which step.
            WorkerError: with several devices, a process failed by itself; the next call starts them anew.
        """
        executor = self._running()
        require(isinstance(prompt, str | list), "prompt", prompt, "text", "give a text, or a list of texts")
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        check_prompts(prompts)
        others = {name: fields.pop(name) for name in MEDIA if name in fields}
        sampling = self._sampling(sampling_param, fields)
        control = self._shown(control_of(progress, cancel, preview_every), on_chunk, prompts, sampling)
        if fields.get("negative_prompt") and sampling.guidance_scale <= 1:
            logger.warning("negative_prompt does nothing without guidance (guidance_scale=%g)", sampling.guidance_scale)
        named = (image, last_image, video, mask, reference_images)
        sampling, media = self._with_media(sampling, dict(zip(MEDIA, named, strict=False)) | others)
        results = self._generate_all(executor, prompts, sampling, control, media)
        return results[0] if isinstance(prompt, str) and len(results) == 1 else results

    def _generate_all(
        self, executor: Executor, prompts: list[str], sampling: SamplingParam, control: Control, media: MediaInputs
    ) -> list[GenerationResult]:
        """The videos of all prompts, with a progress bar if nobody else listens."""
        executor.on_first(lambda: self._clip_files(sampling, prompts, 0))
        results: list[GenerationResult] = []
        for index in range(len(prompts)):
            label = f"{index + 1}/{len(prompts)} " if len(prompts) > 1 else ""
            with ProgressBar(label) as bar:
                shown = dataclasses.replace(control, report=bar) if control.report is no_report else control
                order = self._ordered(executor, prompts, index, sampling, shown, media)
                results += self._generate(executor, order)
        return results

    def check_request(self, prompt: str, sampling_param: SamplingParam | None = None, **fields: Any) -> SamplingParam:
        """Refuse what `generate_video` would refuse with a `ValueError`, before anything is computed or written.

        Any thread may call it, also while a video is being made.

        Args:
            prompt: what to show.
            sampling_param: what to sample; the model's defaults when None.
            fields: as of `generate_video`, `image` and the other media too.

        Returns:
            The sampling parameters that the request comes to.

        Raises:
            ValueError: the field, its value, the rule, and what to do.
        """
        self._running()
        return self._checked(prompt, sampling_param, fields)[0]

    def _checked(
        self, prompt: str, sampling_param: SamplingParam | None, fields: dict[str, Any]
    ) -> tuple[SamplingParam, MediaInputs]:
        given = {name: fields.get(name) for name in MEDIA}
        rest = {name: value for name, value in fields.items() if name not in MEDIA}
        sampling, media = self._with_media(self._sampling(sampling_param, rest), given)
        batch = ForwardBatch(
            prompts=[prompt], negative_prompts=[sampling.negative_prompt], sampling=sampling, media=media
        )
        with self._lock:
            if self._checker is None:
                # of its own, as the pipeline that runs may be in other processes, or busy
                pipeline: type[ComposedPipelineBase] = resolve(self.entry.pipeline)
                self._checker = pipeline.without_weights(self.repo, self.args, self.pipeline_config)
        self._checker.check(batch)
        return sampling, media

    def _generate(self, executor: Executor, order: Order) -> list[GenerationResult]:
        """The videos of `order`, saved if asked for."""
        started = time.perf_counter()
        with self._turn, interrupt_cancels(order.batch.control.cancel):
            order.lora = self._adapters.metadata()
            batch = executor.execute(order.batch)
        return self._delivered(executor, order, batch, time.perf_counter() - started)

    def _ordered(
        self,
        executor: Executor,
        prompts: Sequence[str],
        index: int,
        sampling: SamplingParam,
        control: Control,
        media: MediaInputs,
    ) -> Order:
        name_files = partial(self._clip_files, sampling, prompts, index)
        files = executor.on_first(name_files)
        # before the long part: should a weight file have gone, no video is lost
        weights = executor.on_first(lambda: weight_hashes(self.repo)) if files else {}
        batch = ForwardBatch(
            prompts=[prompts[index]],
            negative_prompts=[sampling.negative_prompt],
            sampling=sampling,
            control=control,
            media=media,
        )
        return Order(batch=batch, name_files=name_files, files=files, weights=weights)

    def _delivered(
        self, executor: Executor, order: Order, batch: ForwardBatch, seconds: float
    ) -> list[GenerationResult]:
        runs, files = written(batch.block_runs, "block_runs"), order.files
        if runs.saved:
            logger.info("block runs: %d made, %d saved (%.0f%%)", *runs, 100 * runs.saved / sum(runs))
        frames = [] if batch.video is None else [to_frames(video) for video in batch.video]
        if files:
            executor.on_first(lambda: self._save(executor, batch, frames, files, order.weights, order.lora))
        return results_of(batch, frames, files, seconds)

    def _save(
        self,
        executor: Executor,
        batch: ForwardBatch,
        clips: Sequence[Frames],
        files: list[Path],
        weights: dict[str, str],
        lora: dict[str, Any] | None,
    ) -> None:
        """Write `clips`, the videos of `batch`, each to one of `files`."""
        for number, clip in enumerate(clips):
            metadata = clip_metadata(
                prompt=batch.prompts[0],
                sampling=batch.sampling,
                index=number,
                args=self.args,
                weights=weights,
                pipeline_config=self.pipeline_config,
                attention_backend=executor.attention_backend,
                device=current_platform(self.args.device).device_type,
                threads=executor.threads,
                inputs=digests(batch.media),
                lora=lora,
                block_runs=written(batch.block_runs, "block_runs"),
            )
            logger.info("saved %s", write_video(clip, files[number], batch.sampling.fps, metadata))

    def _sampling(self, sampling_param: SamplingParam | None, fields: dict[str, Any]) -> SamplingParam:
        """A checked copy of `sampling_param`, or of the model's defaults, with `fields` assigned."""
        require_known(fields, (*KEYWORDS, *SamplingParam.field_names()), "keyword of generate_video")
        if sampling_param is None:
            sampling: SamplingParam = resolve(self.entry.sampling)()
        else:
            rule = "must be a SamplingParam, such as SamplingParam.from_pretrained(model) gives"
            require(isinstance(sampling_param, SamplingParam), "sampling_param", sampling_param, rule)
            sampling = copy.copy(sampling_param)
        sampling.update(**fields)
        sampling.check()
        return in_plain_fields(sampling, self.args.model, self.entry, self._tuned, self.loaded)

    def _tuned(self) -> Tuned | None:
        return self._running().on_first(lambda: find_tuned(weight_hashes(self.repo)))

    def _with_media(self, sampling: SamplingParam, given: dict[str, Any]) -> tuple[SamplingParam, MediaInputs]:
        """The media of a request, and `sampling` with the size that the video gets from them, so that whoever reads it
        later finds that one."""
        named = [name for name, value in given.items() if value is not None]
        model: type[SamplingParam] = resolve(self.entry.sampling)
        sampling.check_inputs((*named, *sampling.given_media()), model)
        media = read_media(sampling, given)
        if not set(model.sized_by) & set(media.names) or sampling.image_fit != "area":
            return sampling, media
        height, width = fitted(sampling, media, frame_multiple(self.repo), model.sized_by)
        return dataclasses.replace(sampling, height=height, width=width, image_fit="stretch"), media

    @staticmethod
    def _clip_files(sampling: SamplingParam, prompts: Sequence[str], index: int) -> list[Path]:
        """The files of prompt number `index`, in folders that can be written; none when nothing is saved."""
        if not sampling.save_video:
            return []
        path, count = sampling.output_path, sampling.num_videos_per_prompt
        if output_file(path, prompts[0]) == Path(path).expanduser():
            # one file was named: the videos of all prompts are numbered on from it
            return output_files(path, prompts[0], count * len(prompts))[index * count : (index + 1) * count]
        return output_files(path, prompts[index], count)

    def _running(self) -> Executor:
        if self._executor is None:
            raise RuntimeError("this generator was shut down; make another with VideoGenerator.from_pretrained")
        return self._executor

    def shutdown(self) -> None:
        """Free the model. Doing it twice is the same as once."""
        self._end_stream()
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown()

    def __enter__(self) -> "VideoGenerator":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shutdown()
