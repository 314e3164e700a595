"""Which jobs are made together."""

import json
from collections.abc import Hashable, Sequence
from typing import Any

from fastvideo.configs.sample.alike import alike
from fastvideo.entrypoints.serve.intake import inputs_of
from fastvideo.entrypoints.serve.records import Job


def sort_of(job: Job) -> Hashable | None:
    """What is equal for jobs that can be made together: their kind, their size and steps, their priority and their
    LoRAs. None for one that is made alone: that was begun before, and so may be what its server died of, or with a step
    cache."""
    sampling = {name: value for name, value in job.sampling.items() if name != "loras"}
    shared = alike(sampling, tuple(inputs_of(job)))
    if job.attempts or shared is None:
        return None
    return job.kind, job.priority, json.dumps(job.sampling.get("loras", [])), shared


class Batching:
    """Says which jobs are made together, and learns where that came to nothing."""

    def __init__(self, most: int) -> None:
        """At most so `most` at a time."""
        self.most = most
        self._alone: set[Hashable] = set()

    def joins(self, first: Job, other: Job) -> bool:
        """Whether `other`, which would be begun after `first`, can be made with it."""
        sort = sort_of(first)
        return sort is not None and sort == sort_of(other) and sort not in self._alone

    def learn(self, jobs: Sequence[Job], results: Sequence[Any]) -> None:
        """Take note of what became of jobs that were begun together. Where all were made one by one after all, the next
        of their sort are begun one by one, so that others can go between them."""
        if len(jobs) == len(results) > 1 and all(result.batch_size == 1 for result in results):
            self._alone.add(sort_of_begun(jobs[0]))


def sort_of_begun(job: Job) -> Hashable | None:
    """As `sort_of`, before this beginning was counted."""
    return sort_of(Job(**vars(job) | {"attempts": job.attempts - 1}))
