"""The convolution that takes oneDNN: the numbers of PyTorch's own, and the same bits whatever the batch."""

import pytest
import torch
import torch.nn.functional as F

from fastvideo.layers.convolution import conv3d

CASES = [((3, 8, 4, 12, 10), (16, 8, 3, 3, 3), (0, 1, 1)), ((2, 5, 3, 7, 9), (3, 5, 1, 1, 1), (0, 0, 0)),
         ((3, 6, 5, 8, 8), (12, 6, 3, 1, 1), (0, 0, 0))]  # fmt: skip


@pytest.mark.parametrize(("shape", "kernel", "padding"), CASES)
def test_the_same_numbers_and_no_dependence_on_the_batch(
    shape: tuple[int, ...], kernel: tuple[int, ...], padding: tuple[int, int, int]
) -> None:
    draw = torch.Generator().manual_seed(3)
    x, weight, bias = (torch.randn(size, generator=draw) for size in (shape, kernel, kernel[:1]))
    x = x.contiguous(memory_format=torch.channels_last_3d)
    made = conv3d(x, weight, bias, padding)
    exact = F.conv3d(x.double(), weight.double(), bias.double(), padding=padding)
    assert (made - exact).abs().max() < 1e-5 * exact.abs().max()
    assert torch.equal(made, torch.cat([conv3d(one, weight, bias, padding) for one in x.split(1)]))


def test_under_autocast_it_is_what_autocast_makes_of_a_convolution() -> None:
    draw = torch.Generator().manual_seed(3)
    x, weight = torch.randn(1, 4, 3, 8, 8, generator=draw), torch.randn(6, 4, 3, 3, 3, generator=draw)
    with torch.autocast("cpu", torch.bfloat16):
        made, expected = conv3d(x, weight, None, (0, 1, 1)), F.conv3d(x, weight, padding=(0, 1, 1))
    assert made.dtype == torch.bfloat16
    assert torch.equal(made, expected)


def test_what_onednn_does_not_run_here() -> None:
    x, weight = torch.ones(1, 2, 3, 4, 4, dtype=torch.float64), torch.ones(2, 2, 3, 3, 3, dtype=torch.float64)
    assert torch.equal(conv3d(x, weight, None, (0, 1, 1)), F.conv3d(x, weight, padding=(0, 1, 1)))
    assert conv3d(x.to("meta"), weight.to("meta"), None, (0, 1, 1)).device.type == "meta"
