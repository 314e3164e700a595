"""The sparse attentions as their papers write them: a mask over all pairs of tokens, made token by token, and a plain
softmax. Nothing here is shared with the package."""

import itertools
import math

import torch

Grid = tuple[int, int, int]


def positions(grid: Grid) -> list[Grid]:
    """Where each token is."""
    return list(itertools.product(*map(range, grid)))


def block_numbers(grid: Grid, tile: Grid) -> tuple[torch.Tensor, Grid]:
    """The number of each token's block, and the blocks along each axis."""
    counts = tuple(math.ceil(length / size) for length, size in zip(grid, tile, strict=True))
    numbers = []
    for place in positions(grid):
        t, h, w = (where // size for where, size in zip(place, tile, strict=True))
        numbers.append((t * counts[1] + h) * counts[2] + w)
    return torch.tensor(numbers), (counts[0], counts[1], counts[2])


def masked_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Softmax attention [B, L, heads, D] over the keys that `seen`, broadcastable to [B, heads, L, L], allows."""
    logits = torch.einsum("blhd,bshd->bhls", q, k) / math.sqrt(q.shape[-1])
    weights = logits.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("bhls,bshd->blhd", weights, v)


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention over all keys."""
    return masked_attention(q, k, v, torch.ones(1, 1, 1, 1, dtype=torch.bool))


def block_means(x: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """The mean of `x` [B, L, heads, D] over each block: [B, heads, N, D]."""
    count = int(numbers.max()) + 1
    return torch.stack([x[:, numbers == block].mean(1) for block in range(count)], dim=2)


def video_sparse(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grid: Grid, kept: int, gate: torch.Tensor | None = None
) -> torch.Tensor:
    """VSA with `kept` cubes for each cube of queries."""
    numbers, _ = block_numbers(grid, (4, 4, 4))
    means = [block_means(x, numbers) for x in (q, k, v)]
    coarse_logits = means[0] @ means[1].mT / math.sqrt(q.shape[-1])
    batch, heads, count, _ = coarse_logits.shape
    seen = torch.zeros(batch, heads, count, count, dtype=torch.bool)
    for b, h, block in itertools.product(range(batch), range(heads), range(count)):
        best = sorted(range(count), key=lambda other, row=coarse_logits[b, h, block]: -float(row[other]))
        seen[b, h, block, best[:kept]] = True
    fine = masked_attention(q, k, v, seen[:, :, numbers][:, :, :, numbers])
    if gate is None:
        return fine
    coarse = coarse_logits.softmax(-1) @ means[2]
    return fine + gate * coarse[:, :, numbers].transpose(1, 2)


def sliding_tile(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grid: Grid, tile: Grid, windows: list[Grid]
) -> torch.Tensor:
    """STA with a window for each head."""
    numbers, counts = block_numbers(grid, tile)
    tiles = positions(counts)
    seen = torch.zeros(len(windows), len(tiles), len(tiles), dtype=torch.bool)
    for (head, window), (i, query), (j, key) in itertools.product(
        enumerate(windows), enumerate(tiles), enumerate(tiles)
    ):
        inside = []
        for where, other, width, count in zip(query, key, window, counts, strict=True):
            first = max(0, min(where - width // 2, count - width))
            inside.append(first <= other < first + width)
        seen[head, i, j] = all(inside)
    return masked_attention(q, k, v, seen[:, numbers][:, :, numbers])


def chosen_chunks(likeness: torch.Tensor, numbers: torch.Tensor, mode: str, kind: str, amount: float) -> torch.Tensor:
    """VMoBA's choice [heads, L, C] of one sample, from the likeness [heads, L, C] of queries to chunks."""
    heads, length, count = likeness.shape
    everything = list(itertools.product(range(heads), range(length), range(count)))
    rival = {
        "query_head": lambda h, i, c: (h, i), "block": lambda h, i, c: c,
        "head_global": lambda h, i, c: h, "overall": lambda h, i, c: 0,
    }[kind]  # fmt: skip
    chosen = torch.zeros_like(likeness, dtype=torch.bool)
    groups: dict[object, list[tuple[int, int, int]]] = {}
    for place in everything:
        groups.setdefault(rival(*place), []).append(place)
    for members in groups.values():
        own = [place for place in members if int(numbers[place[1]]) == place[2]]
        others = [place for place in members if int(numbers[place[1]]) != place[2]]
        others.sort(key=lambda place: -float(likeness[place]))
        if mode == "topk":
            whole = round(amount * len(members) / count)
            taken = [*own, *others][:whole]
        else:
            values = [float(likeness[place]) for place in members]
            low, span = min(values), max(values) - min(values) or 1
            weight = {place: (float(likeness[place]) - low) / span for place in members}
            total = sum(weight.values()) or 1
            reached, taken = sum(weight[place] for place in own) / total, list(own)
            for number, place in enumerate(others):
                if number > 0 and reached >= amount:
                    break
                taken.append(place)
                reached += weight[place] / total
        for place in taken:
            chosen[place] = True
    return chosen


def mixture_of_blocks(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grid: Grid, chunk: Grid, mode: str, kind: str, amount: float
) -> torch.Tensor:
    """VMoBA with one shape of chunks; `amount` is the threshold or the topk."""
    numbers, _ = block_numbers(grid, chunk)
    means = block_means(k, numbers)
    likeness = torch.einsum("blhd,bhcd->bhlc", q, means)
    chosen = torch.stack([chosen_chunks(sample, numbers, mode, kind, amount) for sample in likeness])
    return masked_attention(q, k, v, chosen[:, :, :, numbers])
