"""The training loop: repeatable, resumable, and clear about what goes wrong."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from coa_compress.errors import CoaWarning, SettingError, TrainingError, WeightsError
from coa_compress.training import engine
from coa_compress.training.averaging import tensors_of
from coa_compress.training.loop import TrainingJob, TrainingResult, fit
from coa_compress.training.schedule import learning_rate_at
from coa_compress.training.seeds import generator_of
from coa_compress.training.settings import TrainingSettings
from coa_compress.training.state import CHECKPOINT_NAME

STEPS = 8


class StopError(Exception):
    """Raised by a progress callback in place of a power cut."""


def tiny_net() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Conv2d(4, 1, 3, padding=1),
        )


def halving(model, averaged, generator):
    """Teach a network to halve its input."""
    x = torch.rand(2, 1, 8, 8, generator=generator)
    output = model(x)
    with torch.no_grad():
        slow = averaged(x)
    return {"l1": (output - x / 2).abs().mean(), "slow": (output - slow).square().mean()}


def error_on_ones(model):
    x = torch.ones(1, 1, 8, 8)
    return -float((model(x) - x / 2).abs().mean().detach())


def make_job(**changes) -> TrainingJob:
    values = {
        "name": "halve",
        "model": tiny_net(),
        "step_losses": halving,
        "weights": {"l1": 1.0, "slow": 0.1},
        "validate": error_on_ones,
    }
    return TrainingJob(**(values | changes))


def make_settings(**changes) -> TrainingSettings:
    values = {
        "steps": STEPS,
        "learning_rate": 1e-2,
        "warmup_steps": 2,
        "accumulate": 2,
        "checkpoint_every": 3,
        "validate_every": 3,
        "precision": "fp32",
    }
    return TrainingSettings(**(values | changes))


def run(job=None, settings=None, **changes) -> TrainingResult:
    values = {"seed": 0, "device": "cpu", "folder": None}
    return fit(job or make_job(), settings or make_settings(), **(values | changes))


def stop_at(step):
    def progress(done, total, values):
        if done == step:
            raise StopError

    return progress


def assert_same(left: TrainingResult, right: TrainingResult) -> None:
    assert left.history == right.history
    assert (left.best_step, left.best_value) == (right.best_step, right.best_value)
    others = dict(tensors_of(right.model))
    assert all(torch.equal(value, others[name]) for name, value in tensors_of(left.model))


def test_training_learns_and_leaves_the_network_it_was_given_alone():
    job = make_job()
    before = copy.deepcopy(job.model.state_dict())

    result = run(job, make_settings(steps=60, accumulate=1))

    assert all(torch.equal(before[n], value) for n, value in job.model.state_dict().items())
    assert job.model.training
    assert not result.model.training
    assert error_on_ones(result.model) > error_on_ones(copy.deepcopy(job.model).eval()) + 0.05
    assert result.model[0].weight.is_contiguous()
    assert result.model[0].weight.requires_grad
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in result.model.modules())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_seed_gives_the_same_bits_and_no_global_number_is_drawn(precision):
    settings = make_settings(precision=precision)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = run(settings=settings)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)

    assert_same(first, run(settings=settings))
    other = run(settings=settings, seed=1)
    assert not torch.equal(first.model[0].weight, other.model[0].weight)


def test_the_loop_equals_one_written_by_hand():
    settings = make_settings(
        ema_decay=0.0, weight_decay=0.0, accumulate=1, clip_norm=1e9, steps=5, warmup_steps=0
    )
    net = nn.Sequential(nn.Linear(3, 2))
    job = TrainingJob(
        name="line",
        model=net,
        weights={"sum": 0.5},
        step_losses=lambda model, _, g: {
            "sum": model(torch.rand(4, 3, generator=g)).square().sum()
        },
    )
    by_hand = copy.deepcopy(net)
    optimizer = torch.optim.AdamW(by_hand.parameters(), weight_decay=0.0)
    for step in range(5):
        optimizer.zero_grad()
        x = torch.rand(4, 3, generator=generator_of("step", "line", 0, step, 0))
        (0.5 * by_hand(x).square().sum()).backward()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, settings)
        optimizer.step()

    result = run(job, settings)

    torch.testing.assert_close(result.model[0].weight, by_hand[0].weight)
    assert result.best_step == 5
    assert result.best_value is None


@pytest.mark.parametrize("step", [1, 3, 4, 7, 8])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, step):
    with pytest.raises(StopError):
        run(folder=tmp_path, progress=stop_at(step))

    seen = []
    resumed = run(folder=tmp_path, progress=lambda done, total, values: seen.append(done))

    assert_same(resumed, run())
    assert seen == list(range(step // 3 * 3 if step < STEPS else STEPS, STEPS + 1))[1:]


def test_a_resumed_run_with_extras_and_bf16_equals_an_uninterrupted_one(tmp_path):
    adapter = nn.Conv2d(1, 1, 1)
    before = copy.deepcopy(adapter.state_dict())

    def losses(model, averaged, generator):
        x = torch.rand(2, 1, 8, 8, generator=generator)
        return {"l1": (adapter(model(x)) - x).abs().mean()}

    job = make_job(step_losses=losses, weights={"l1": 1.0}, trainable_extras=adapter)
    settings = make_settings(precision="bf16")
    whole = run(job, settings)
    for step in (2, 5):
        with pytest.raises(StopError):
            run(job, settings, folder=tmp_path, progress=stop_at(step))

    assert_same(run(job, settings, folder=tmp_path), whole)
    assert all(torch.equal(before[n], value) for n, value in adapter.state_dict().items())
    assert adapter.weight.grad is None


class ByHand(torch.autograd.Function):
    """A product whose backward pass no autocast helps: it mixes bfloat16 with float32."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight.detach())
        return x @ weight.to(x.dtype)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        return gradient @ weight.t(), x.flatten(0, -2).t() @ gradient.flatten(0, -2)


class OnlyFloat32(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.weight = nn.Parameter(torch.eye(8))

    def forward(self, x):
        return ByHand.apply(self.first(self.norm(x)), self.weight)[:, :1]


def test_a_network_that_cannot_run_in_bf16_is_trained_in_fp32(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "_multiplies_bf16_fast", lambda device: True)
    torch.manual_seed(0)
    job = make_job(model=OnlyFloat32())
    whole = run(job, make_settings(precision="fp32"))
    said = r"'halve' cannot run in bf16 \(expected .*\): it is trained in fp32"

    with pytest.warns(CoaWarning, match=said):
        assert_same(run(job, make_settings(precision="auto")), whole)
    with pytest.warns(CoaWarning, match=said), pytest.raises(StopError):
        run(job, make_settings(precision="auto"), folder=tmp_path, progress=stop_at(5))
    with pytest.warns(CoaWarning, match=said):
        assert_same(run(job, make_settings(precision="auto"), folder=tmp_path), whole)
    with pytest.raises(TrainingError) as caught:
        run(job, make_settings(precision="bf16"))
    assert str(caught.value).startswith("'halve' cannot run in bf16 (expected ")
    assert str(caught.value).endswith("): set precision to fp32 or auto")


def test_what_fails_in_every_precision_is_raised_as_it_is(monkeypatch):
    monkeypatch.setattr(engine, "_multiplies_bf16_fast", lambda device: True)

    def losses(model, averaged, generator):
        return {"l1": model(torch.rand(1, 2, 8, 8)).sum()}

    job = make_job(step_losses=losses, weights={"l1": 1.0})
    with (
        pytest.warns(CoaWarning),
        pytest.raises(RuntimeError, match="to have 1 channels") as caught,
    ):
        run(job, make_settings(precision="auto"))

    assert not isinstance(caught.value, TrainingError)


def test_a_finished_run_is_not_trained_again(tmp_path):
    first = run(folder=tmp_path)
    second = run(folder=tmp_path, progress=stop_at(STEPS))
    assert_same(first, second)


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import coa_compress.training.loop
assert "lightning_fabric" not in sys.modules
from test_training_loop import run
def progress(done, total, values):
    if done == 5:
        Path(sys.argv[2], "ready").touch()
        time.sleep(900)
run(folder=Path(sys.argv[2]), progress=progress)
"""


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path):
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    with subprocess.Popen(command, env=environment) as process:
        until = time.monotonic() + 900
        while not (tmp_path / "ready").exists():
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)

    seen = []
    resumed = run(folder=tmp_path, progress=lambda done, total, values: seen.append(done))

    assert seen[0] == 4
    assert_same(resumed, run())


def test_history_holds_means_and_the_best_weights_are_returned():
    settings = make_settings(steps=200, validate_every=50, accumulate=1, ema_decay=0.0)
    figures = iter([1.0, 3.0, 3.0, 2.0])
    kept = []

    def validate(model):
        kept.append(copy.deepcopy(model.state_dict()))
        return next(figures)

    losses, shown = [], []

    def losses_now(model, averaged, generator):
        found = halving(model, averaged, generator)
        losses.append(float(found["l1"].detach()))
        return found | {"free": torch.tensor(7.0)}

    result = run(
        make_job(validate=validate, step_losses=losses_now),
        settings,
        progress=lambda *a: shown.append(a),
    )

    history = result.history
    assert history.steps == tuple(range(2, 201, 2))
    assert history.losses["l1"][3] == pytest.approx((losses[6] + losses[7]) / 2)
    assert set(history.losses["free"]) == {7.0}
    assert history.validation == ((50, 1.0), (100, 3.0), (150, 3.0), (200, 2.0))
    assert (result.best_step, result.best_value) == (100, 3.0)
    assert all(torch.equal(kept[1][n], v) for n, v in result.model.state_dict().items())
    done, total, values = shown[-1]
    assert (done, total) == (200, 200)
    assert values["lr"] == pytest.approx(1e-6)
    assert values["loss"] == pytest.approx(values["l1"] + 0.1 * values["slow"])


def test_a_network_that_needs_the_plain_layout_trains():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.norm = nn.BatchNorm2d(4)
            self.head = nn.Linear(36, 1)

        def forward(self, x):
            y = self.norm(self.conv(x))
            return self.head(y.view(x.shape[0], -1))

    def losses(model, averaged, generator):
        return {"l2": model(torch.rand(2, 3, 5, 5, generator=generator)).square().mean()}

    job = make_job(model=Flat(), step_losses=losses, weights={"l2": 1.0}, validate=None)
    result = run(job, make_settings(steps=3, accumulate=1))

    assert int(result.model.norm.num_batches_tracked) == 3


@pytest.mark.parametrize("dilation", [1, 2, (1, 3)])
@pytest.mark.parametrize("operator", ["conv2d", "conv_transpose2d"])
def test_a_dilated_kernel_has_the_same_gradient_in_bf16(operator, dilation):
    # oneDNN leaves those of channels 17 to 24 undefined in some layouts: nan, garbage or a crash
    convolve = getattr(nn.functional, operator)

    class Dilated(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 24, 1)
            self.kernel = nn.Parameter(torch.randn(24, 24, 3, 3))

        def forward(self, x):
            return convolve(self.first(x), self.kernel, padding=dilation, dilation=dilation)

    def losses(model, averaged, generator):
        return {"l2": model(torch.rand(2, 3, 32, 32, generator=generator)).square().mean()}

    torch.manual_seed(0)
    job = make_job(model=Dilated(), step_losses=losses, weights={"l2": 1.0}, validate=None)
    changes = []
    for precision in ("fp32", "bf16"):
        made = run(job, make_settings(steps=1, accumulate=1, precision=precision))
        changes.append((made.model.kernel - job.model.kernel).flatten())

    assert torch.cosine_similarity(*changes, dim=0) > 0.9


def test_losses_see_float32_and_no_autocast_is_left_when_a_forward_fails():
    seen = []

    def losses(model, averaged, generator):
        output = model(torch.rand(1, 1, 8, 8, generator=generator))
        seen.append((output.dtype, torch.is_autocast_enabled("cpu")))
        model(torch.rand(1, 2, 8, 8))
        return {"l1": output.mean()}

    with pytest.raises(RuntimeError, match="expected input"):
        run(make_job(step_losses=losses), make_settings(precision="bf16"))

    assert seen == [(torch.float32, False)]
    assert not torch.is_autocast_enabled("cpu")


def test_one_dimensional_parameters_do_not_decay():
    net = nn.Conv2d(1, 1, 1)

    def losses(model, averaged, generator):
        return {"zero": 0.0 * model(torch.rand(1, 1, 2, 2, generator=generator)).sum()}

    job = make_job(model=net, step_losses=losses, weights={"zero": 1.0}, validate=None)
    result = run(job, make_settings(weight_decay=1.0, ema_decay=0.0))

    assert torch.equal(result.model.bias, net.bias)
    assert result.model.weight.abs().sum() < net.weight.abs().sum()


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        ({"l1": 0.0, "slow": 0.0}, r"every loss weight is 0 \(l1, slow\)"),
        ({}, "every loss weight is 0"),
        ({"l1": float("nan")}, "weight of loss 'l1' is nan"),
        ({"l1": 1.0, "slwo": 0.0}, "no loss named 'slwo': did you mean slow"),
    ],
)
def test_weights_that_mean_nothing_are_errors(weights, text):
    with pytest.raises(TrainingError, match=text):
        run(make_job(weights=weights))


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (lambda output: output.detach().mean(), "loss 'l1' has weight 1 but carries no gradient"),
        (lambda output: output.mean(0), r"loss 'l1' has shape \(1, 8, 8\): reduce it"),
    ],
)
def test_a_loss_that_cannot_train_is_an_error(loss, text):
    def losses(model, averaged, generator):
        return {"l1": loss(model(torch.rand(2, 1, 8, 8, generator=generator)))}

    with pytest.raises(TrainingError, match=text):
        run(make_job(step_losses=losses, weights={"l1": 1.0}))


def test_other_names_at_a_later_step_are_an_error():
    names = iter(["a", "a", "b"])

    def losses(model, averaged, generator):
        loss = model(torch.rand(2, 1, 8, 8, generator=generator)).mean()
        return {"l1": loss, next(names): loss.detach()}

    job = make_job(step_losses=losses, weights={"l1": 1.0}, validate=None)
    with pytest.raises(TrainingError, match="every step must return the same names"):
        run(job, make_settings(accumulate=1))


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_divergence_stops_and_keeps_the_last_good_state(tmp_path, where):
    calls = []

    def losses(model, averaged, generator):
        calls.append(1)
        found = halving(model, averaged, generator)
        if len(calls) == 5 and where == "loss":
            found["l1"] = found["l1"] + model(torch.full((2, 1, 8, 8), float("inf"))).sum()
        if len(calls) == 5 and where == "gradient":
            # adds 0, with a slope that is not finite
            found["l1"] = found["l1"] + (found["l1"] - found["l1"].detach()).abs().sqrt()
        return found

    job = make_job(step_losses=losses, validate=None)
    settings = make_settings(accumulate=1, checkpoint_every=100)
    what = "loss 'l1'" if where == "loss" else "the norm of the gradient"
    text = f"{what} became nan at step 5 of 8 of 'halve': lower learning_rate .now 0.01"
    with pytest.raises(TrainingError, match=text) as caught:
        run(job, settings, folder=tmp_path)

    assert str(tmp_path / CHECKPOINT_NAME) in str(caught.value)
    with safe_open(tmp_path / CHECKPOINT_NAME, framework="pt") as file:
        assert json.loads(file.metadata()["state"])["step"] == 4
        assert all(file.get_tensor(name).isfinite().all() for name in file.keys())  # noqa: SIM118
    assert_same(run(job, settings, folder=tmp_path), run(make_job(validate=None), settings))


@pytest.mark.parametrize(("precision", "said"), [("fp32", False), ("bf16", True)])
def test_more_digits_are_a_remedy_where_there_are_few(precision, said):
    def losses(model, averaged, generator):
        return {"l1": model(torch.full((2, 1, 8, 8), float("inf"))).sum()}

    job = make_job(step_losses=losses, weights={"l1": 1.0}, validate=None)
    with pytest.raises(TrainingError, match="clip_norm") as caught:
        run(job, make_settings(precision=precision))

    assert str(caught.value).endswith(", or set precision to fp32") == said


@pytest.mark.parametrize("part", [0, 5, 100, -1])
def test_a_damaged_checkpoint_is_named_with_the_remedy(tmp_path, part):
    run(folder=tmp_path)
    path = tmp_path / CHECKPOINT_NAME
    path.write_bytes(path.read_bytes()[:part])
    with pytest.raises(WeightsError, match=r"training.safetensors is damaged .*: delete it"):
        run(folder=tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"settings": make_settings(learning_rate=1e-3)},
        {"job": make_job(name="other")},
        {"job": make_job(model=nn.Conv2d(1, 1, 1))},
    ],
)
def test_a_checkpoint_of_another_job_is_left_alone(tmp_path, changes):
    run(folder=tmp_path)
    before = (tmp_path / CHECKPOINT_NAME).read_bytes()
    with pytest.raises(TrainingError, match=r"checkpoint of another job.*delete the file"):
        run(folder=tmp_path, **changes)
    assert (tmp_path / CHECKPOINT_NAME).read_bytes() == before


def test_checkpoints_can_come_at_other_steps_in_the_resumed_run(tmp_path):
    with pytest.raises(StopError):
        run(folder=tmp_path, progress=stop_at(4))
    assert_same(run(settings=make_settings(checkpoint_every=1), folder=tmp_path), run())
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT_NAME]


def test_other_mistakes_are_errors():
    with pytest.raises(TrainingError, match="validation of 'halve' returned nan at step 3"):
        run(make_job(validate=lambda _: float("nan")))
    with pytest.raises(TrainingError, match="nothing to train"):
        run(make_job(model=tiny_net().requires_grad_(requires_grad=False)))
    with pytest.raises(TrainingError, match="cannot train on device 'gpu'"):
        run(device="gpu")
    with pytest.raises(SettingError, match="final_learning_rate is 1, above"):
        TrainingSettings(final_learning_rate=1.0)
    with pytest.raises(SettingError, match=r"ema_decay must be below 1\.0"):
        TrainingSettings(ema_decay=1.0)
