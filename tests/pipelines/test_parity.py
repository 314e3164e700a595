"""The table of `docs/parity.md`, sampled: one request of each pipeline. `make parity` runs all of them."""

from pathlib import Path

import pytest

from fastvideo.configs.registry import MODELS
from tests import fun_repos
from tests.pipelines.parity_cases import CASES, Case, pixel_error
from tests.pipelines.wan_pairs import LEVEL

PAGE = Path(__file__).parents[2] / "docs" / "parity.md"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_request_of_each_pipeline(case: Case, tmp_path: Path) -> None:
    # the second: of a size that is not the usual one
    assert pixel_error(case, case.make(tmp_path / case.name), case.requests[1]) < LEVEL


def test_every_pipeline_is_in_the_table() -> None:
    rows = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| Wan ")]
    assert [tuple(row[:2]) for row in rows] == [(case.family, case.title) for case in CASES]
    restated = {
        "WanDMDPipeline", "WanCausalDMDPipeline", "WanRCMPipeline", "WanRCMImageToVideoPipeline",
        *(kind.pipeline_class for kind in fun_repos.KINDS.values()),
    }  # fmt: skip
    compared = {case.reference_class or case.against for case in CASES} | restated
    assert {entry.pipeline_class for entry in MODELS} <= compared
