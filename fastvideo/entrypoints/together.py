"""Several requests of one generator, made together where no bit of a video depends on it."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from fastvideo.configs.sample.alike import alike
from fastvideo.configs.sample.base import SamplingParam
from fastvideo.entrypoints.parts import RequestMethods
from fastvideo.entrypoints.result import GenerationResult
from fastvideo.entrypoints.watch import ProgressBar, control_of, interrupt_cancels
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.logger import init_logger
from fastvideo.pipelines.pipeline_batch_info import CancelToken, Control, ForwardBatch, MediaInputs, Progress, no_report
from fastvideo.utils import require
from fastvideo.worker.executor import Executor

logger = init_logger(__name__)

Results = GenerationResult | list[GenerationResult]
"""Of one prompt: one, or with `num_videos_per_prompt` above 1 a list."""


class Asked(NamedTuple):
    """A request, checked."""

    prompt: str
    sampling: SamplingParam
    control: Control
    media: MediaInputs


@dataclass(kw_only=True)
class Order:
    """A request that is ready to run, and what becomes of it."""

    batch: ForwardBatch
    name_files: Callable[[], list[Path]]
    """Names the files of its videos, which are not there yet; none when they are not saved."""
    files: list[Path]
    """Those that it named last."""
    weights: dict[str, str]
    """The hashes that go into the files."""
    lora: dict[str, Any] | None = None
    """The LoRAs that work, for the files too."""


class Tokens(CancelToken):
    """Cancels several requests."""

    def __init__(self, tokens: Sequence[CancelToken]) -> None:
        super().__init__()
        self._tokens = tokens

    def cancel(self) -> None:
        super().cancel()
        for token in self._tokens:
            token.cancel()


class JointBar:
    """One progress bar for the denoising of several requests, of which nobody else hears."""

    def __init__(self, bar: ProgressBar, requests: int) -> None:
        self._bar = bar
        self._requests = requests
        self._done = 0

    def __call__(self, progress: Progress) -> None:
        if progress.stage != "denoising":
            return
        total = progress.total * self._requests
        if progress.step:
            self._done += 1
        elif self._done:
            return
        self._bar(Progress(progress.stage, self._done, total, None))


class TogetherMethods(RequestMethods):
    """The method of a generator that takes several requests."""

    args: FastVideoArgs
    _turn: Any
    _adapters: Any

    @abstractmethod
    def _ordered(
        self, executor: Executor, prompts: Sequence[str], index: int, sampling: SamplingParam, control: Control,
        media: MediaInputs,
    ) -> Order:  # fmt: skip
        """The order of prompt number `index`."""

    @abstractmethod
    def _delivered(
        self, executor: Executor, order: Order, batch: ForwardBatch, seconds: float
    ) -> list[GenerationResult]:
        """The results of `order`, saved if asked for."""

    @property
    def batches(self) -> bool:
        """Whether there are requests that `generate_videos` makes together: not on several devices, with compiled
        blocks, or of a model that makes frames chunk by chunk."""
        return self.args.num_gpus == 1 and not self.args.enable_torch_compile and not self.entry.streams

    def generate_videos(
        self,
        requests: Sequence[str | Mapping[str, Any]],
        sampling_param: SamplingParam | None = None,
        *,
        return_exceptions: bool = False,
        on_result: Callable[[int, Results | Exception], None] | None = None,
        **fields: Any,
    ) -> list[Results | Exception]:
        """Make the videos of several requests: those that `generate_video` makes of each, bit for bit.

        Requests of one size and as many steps are denoised together where the model gives the same bits and it takes
        less time, which is tried, and as far as memory allows; all others are made one after the other. Prompts, seeds,
        negative prompts, guidance, media and files are each request's own.

        Args:
            requests: each a prompt, or a dict with `prompt` and arguments of `generate_video`, such as `seed`,
                `output_path`, `progress` or `cancel`.
            sampling_param: of all of them, where they do not say otherwise; the model's defaults when None.
            return_exceptions: have what ended a request in the place of its result. Otherwise the first such error is
                raised once all have ended.
            on_result: called with the number of a request and its result, or what ended it, as soon as it is there.
            fields: arguments of `generate_video` for all of them.

        Returns:
            The result of each, in the order of the requests; a list where `num_videos_per_prompt` is above 1.

        Raises:
            ValueError: a request is not one that the model can run; nothing was computed.
            OSError: an `output_path` cannot be written; nothing was computed.
            Exception: what else `generate_video` raises.
        """
        executor = self._running()
        rule = "must be a list of prompts and dicts"
        require(isinstance(requests, (list, tuple)) and len(requests) > 0, "requests", requests, rule)
        orders = self._orders(executor, [self._asked(request, sampling_param, fields) for request in requests])
        done: dict[int, Results | Exception] = {}

        def ended(number: int, outcome: ForwardBatch | Exception, seconds: float) -> None:
            result: Results | Exception = outcome if isinstance(outcome, Exception) else []
            if isinstance(outcome, ForwardBatch):
                order = orders[number]
                order.files = executor.on_first(order.name_files)  # names that were free before the others were saved
                made = self._delivered(executor, order, outcome, seconds)
                result = made[0] if len(made) == 1 else made
            done[number] = result
            if on_result is not None:
                on_result(number, result)

        for group in _groups([order.batch for order in orders]):
            self._make_together(executor, [(number, orders[number]) for number in group], ended)
        results = [done[number] for number in range(len(orders))]
        first = next((result for result in results if isinstance(result, Exception)), None)
        if first is not None and not return_exceptions:
            raise first
        return results

    def _asked(
        self, request: str | Mapping[str, Any], sampling_param: SamplingParam | None, fields: Mapping[str, Any]
    ) -> Asked:
        """What a request comes to."""
        require(isinstance(request, (str, Mapping)), "requests", request, "each must be a prompt, or a dict with one")
        own = {**fields, **({"prompt": request} if isinstance(request, str) else request)}
        prompt, sampling_param = own.pop("prompt", None), own.pop("sampling_param", sampling_param)
        require(isinstance(prompt, str), "prompt", prompt, "text", "give each request one")
        control = control_of(own.pop("progress", None), own.pop("cancel", None), own.pop("preview_every", 0))
        sampling, media = self._checked(prompt, sampling_param, own)
        if own.get("negative_prompt") and sampling.guidance_scale <= 1:
            logger.warning("negative_prompt does nothing without guidance (guidance_scale=%g)", sampling.guidance_scale)
        return Asked(prompt, sampling, control, media)

    def _orders(self, executor: Executor, asked: list[Asked]) -> list[Order]:
        """The orders of all requests. Those with one and the same file to be saved to are numbered on from it."""
        orders = []
        for index, (_, sampling, control, media) in enumerate(asked):
            same = [one for one, other in enumerate(asked) if other.sampling.output_path == sampling.output_path]
            prompts = [asked[one].prompt for one in same]
            orders.append(self._ordered(executor, prompts, same.index(index), sampling, control, media))
        return orders

    def _make_together(
        self, executor: Executor, orders: list[tuple[int, Order]],
        ended: Callable[[int, ForwardBatch | Exception, float], None],
    ) -> None:  # fmt: skip
        """Run orders that are alike, of which `ended` hears by their numbers, with the seconds that each took."""
        batches = [order.batch for _, order in orders]
        with ProgressBar(f"{len(orders)} requests: " if len(orders) > 1 else "") as bar:
            joint = JointBar(bar, len(orders))
            for batch in batches:
                if batch.control.report is no_report:
                    batch.control = replace(batch.control, report=joint)
            with self._turn, interrupt_cancels(Tokens([batch.control.cancel for batch in batches])):
                started = perf_counter()
                for _, order in orders:
                    order.lora = self._adapters.metadata()
                executor.execute_together(
                    batches, lambda which, outcome: ended(orders[which][0], outcome, perf_counter() - started)
                )


def _groups(batches: Sequence[ForwardBatch]) -> list[list[int]]:
    """The numbers of those that are alike, in the order of the first of each group."""
    groups: dict[Any, list[int]] = {}
    for number, batch in enumerate(batches):
        key = alike(batch.sampling.to_dict(), batch.media.names)
        groups.setdefault(number if key is None else key, []).append(number)
    return list(groups.values())
