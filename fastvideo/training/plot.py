"""Training curves as a picture, from the trainer's log."""

import json
from collections import defaultdict
from pathlib import Path


def read_log(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values of each metric in `log.jsonl`."""
    curves: dict[str, tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        for name, value in entry.items():
            if name != "step":
                curves[name][0].append(entry["step"])
                curves[name][1].append(value)
    return dict(curves)


def plot_logs(logs: dict[str, Path], path: Path, metrics: tuple[str, ...]) -> None:
    """One panel for each of `metrics` that some log has, a line for each of `logs` (name -> file), as a PNG.

    Noisy metrics (more than 100 points) are drawn pale under their running mean.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    curves = {name: read_log(file) for name, file in logs.items() if file.exists()}
    shown = [metric for metric in metrics if any(metric in one for one in curves.values())]
    if not shown:
        raise ValueError(f"logs={[str(file) for file in logs.values()]}: none has any of {', '.join(metrics)}")
    figure, axes = plt.subplots(1, len(shown), figsize=(4.2 * len(shown), 3.2), layout="constrained", squeeze=False)
    for axis, metric in zip(axes[0], shown, strict=True):
        for name, one in curves.items():
            if metric not in one:
                continue
            steps, values = one[metric]
            if len(values) > 100:
                (line,) = axis.plot(steps, values, alpha=0.25, linewidth=0.8)
                window = np.ones(25) / 25
                mean = np.convolve(values, window, mode="valid")
                axis.plot(steps[12 : 12 + len(mean)], mean, color=line.get_color(), label=name)
            else:
                axis.plot(steps, values, marker="o", markersize=3, label=name)
        axis.set(title=metric, xlabel="step")
        axis.grid(alpha=0.3)
        axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
