import json
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from fastvideo.training.ema import EMA
from fastvideo.training.optimizer import MuonAdamW
from fastvideo.training.trainer import Metrics, StepInfo, Trainer, TrainerConfig


def model() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))


def config(folder: Path, **changes) -> TrainerConfig:
    values = {"steps": 12, "lr": 1e-2, "warmup_steps": 3, "precision": "fp32", "log_every": 4, "checkpoint_every": 5}
    return TrainerConfig(output_dir=folder, **{**values, **changes})


def trainer(folder: Path, stop_at: int | None = None, muon: bool = False, **changes) -> Trainer:
    module = model()
    target = torch.arange(12.0).view(4, 3)

    def loss(info: StepInfo) -> tuple[torch.Tensor, Metrics]:
        if info.step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        # both sources of randomness that a recipe uses
        x = torch.randn(16, 4) + float(info.rng.normal())
        return (module(x) - x @ target).square().mean(), {}

    optimizer = MuonAdamW(module, module[0], lr=1e-2) if muon else None
    return Trainer(module, config(folder, **changes), loss, optimizer=optimizer)


def parameters(run: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in run.module.named_parameters()}


@pytest.mark.parametrize("muon", [False, True])
@pytest.mark.parametrize("stop_at", [0, 4, 5, 11])
def test_a_run_that_is_stopped_and_resumed_ends_where_an_undisturbed_one_does(tmp_path, stop_at, muon):
    whole = trainer(tmp_path / "whole", muon=muon)
    whole.run()
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "parts", stop_at=stop_at, muon=muon).run()
    resumed = trainer(tmp_path / "parts", muon=muon)
    assert resumed.step == stop_at + 1
    resumed.run()
    for name, value in parameters(whole).items():
        assert torch.equal(value, parameters(resumed)[name])
        assert torch.equal(whole.ema.parameters[name], resumed.ema.parameters[name])


def test_a_kill_between_checkpoints_loses_only_the_steps_since(tmp_path):
    first = trainer(tmp_path, steps=12)
    for _ in range(7):
        first._one_step()
        first.step += 1
        if first.step == 5:
            first.save()
    whole = trainer(tmp_path / "whole")
    whole.run()
    resumed = trainer(tmp_path)
    assert resumed.step == 5
    resumed.run()
    assert all(torch.equal(value, parameters(resumed)[name]) for name, value in parameters(whole).items())


def test_training_lowers_the_loss_and_logs_it(tmp_path):
    trainer(tmp_path, steps=200, lr=3e-2).run()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(4, 201, 4))
    assert lines[-1]["loss"] < 0.2 * lines[0]["loss"]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_rate(tmp_path):
    module = model()
    run = Trainer(module, config(tmp_path), lambda info: (module(torch.full((1, 4), torch.nan)).sum(), {}))
    with pytest.raises(FloatingPointError, match="at step 0: lower the learning rate"):
        run.run()


def test_the_learning_rate_warms_up_stays_and_falls():
    rates = [config(Path("."), steps=100, warmup_steps=10, cooldown=0.3, lr=1.0).lr_at(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:71] == [1.0] * 62
    assert all(a > b for a, b in zip(rates[71:], rates[72:], strict=False))
    assert rates[100] == pytest.approx(0.02)


def test_evaluation_sees_the_average_and_leaves_the_trained_parameters(tmp_path):
    module = model()
    seen = {}

    def evaluate(step: int) -> Metrics:
        seen.update({name: p.detach().clone() for name, p in module.named_parameters()})
        return {"score": 1.0}

    run = Trainer(
        module, config(tmp_path, steps=4), lambda info: (module(torch.randn(2, 4)).square().mean(), {}), evaluate, 4
    )
    run.run()
    assert all(torch.equal(seen[name], value) for name, value in run.ema.parameters.items())
    assert not any(torch.equal(seen[name], p) for name, p in module.named_parameters())
    assert '"score": 1.0' in (tmp_path / "log.jsonl").read_text()


def test_the_average_follows_the_parameters():
    module = nn.Linear(1, 1, bias=False)
    module.weight.data.fill_(0.0)
    ema = EMA(module, decay=0.5)
    module.weight.data.fill_(1.0)
    for step in (1000, 1001):
        ema.update(module, step)
    assert ema.parameters["weight"].item() == pytest.approx(0.75)
    with pytest.raises(ValueError, match=r"decay=1.0: must be in \[0, 1\)"):
        EMA(module, decay=1.0)
