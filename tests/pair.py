"""One of two processes that train together, started by test_training_processes.py."""

import os
import signal
import sys
from pathlib import Path

import torch
from small_runs import Doubling, small_recipe
from torch import nn

from coa_compress.compressor import Compressor
from coa_compress.errors import CoaError
from coa_compress.training.loop import TrainingJob, fit
from coa_compress.training.processes import ALONE, Processes
from coa_compress.training.settings import TrainingSettings
from coa_compress.training.state import CHECKPOINT_NAME

RUN = """\
name: small
device: cpu
task: {name: restoration}
stages:
  score: {scorer: magnitude}
  allocate: {keep_macs: 0.6, round_to: 2, min_channels: 2, allocator: uniform}
  prune: {}
  distill: {training: {steps: 4, batch_size: 2, validate_every: 2, precision: fp32}, taps: 0,
            feature: 0.0}
"""

SETTINGS = {
    "steps": 6,
    "batch_size": 4,
    "learning_rate": 1e-2,
    "warmup_steps": 2,
    "accumulate": 2,
    "checkpoint_every": 2,
    "validate_every": 3,
    "precision": "fp32",
}


class StopError(Exception):
    """Raised by a progress callback in place of a power cut."""


class Small(nn.Module):
    """Convolutions with a batch normalization, and a parameter that is never used."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 1, 3, padding=1)
        self.idle = nn.Parameter(torch.ones(3))
        self.register_buffer("largest", torch.zeros(()))

    def forward(self, image):
        if self.training:
            self.largest.copy_(image.detach().max())
        return self.last(torch.relu(self.norm(self.first(image))))


def small(dtype=torch.float32):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Small().to(dtype)


class Trial:
    """A job whose every process works on its share of the batch."""

    def __init__(self, processes=ALONE, *, dtype=torch.float32, adapter=None, bad=None):
        self.processes, self.dtype, self.adapter, self.bad = processes, dtype, adapter, bad
        self.validations = 0
        self.examples = []

    def losses(self, model, averaged, generator):
        batch = torch.rand(4, 1, 8, 8, generator=generator, dtype=self.dtype)
        image = self.processes.share(batch)
        self.examples.append(len(image))
        if self.bad == (self.processes.rank, len(self.examples)):
            image = image * float("nan")
        output = model(image)
        with torch.no_grad():
            slow = averaged(image)
        if self.adapter is not None:
            output = self.adapter(output)
        return {
            "halve": (output - image / 2).square().mean(),
            "slow": (output - slow).square().mean(),
        }

    def validate(self, model):
        self.validations += 1
        image = torch.ones(1, 1, 8, 8, dtype=self.dtype)
        return -float((model(image) - image / 2).abs().mean())

    def fit(self, *, settings=None, stop_at=None, kill_at=None, **changes):
        def progress(done, total, values):
            if done == stop_at:
                raise StopError
            if done == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

        job = TrainingJob(
            name="halve",
            model=small(self.dtype),
            step_losses=self.losses,
            weights={"halve": 1.0, "slow": 0.125},
            validate=self.validate,
            trainable_extras=self.adapter,
        )
        values = {"seed": 0, "device": "cpu", "folder": None, "progress": progress}
        result = fit(
            job,
            TrainingSettings(**(SETTINGS | (settings or {}))),
            processes=self.processes,
            **(values | changes),
        )
        return {
            "state": result.model.state_dict(),
            "losses": result.history.losses,
            "validation": result.history.validation,
            "best": (result.best_step, result.best_value),
            "validations": self.validations,
            "examples": self.examples,
        }


def adapter():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Conv2d(1, 1, 1)


def said(work):
    """Return how some work fails: the kind, the text, and the notes."""
    try:
        work()
    except (CoaError, StopError, IndexError) as error:
        return type(error).__name__, str(error), getattr(error, "__notes__", [])
    return None


def resumed(processes, folder, strategy="ddp"):
    for step in (3, 5):
        trial = Trial(processes, adapter=adapter())
        assert said(lambda trial=trial, step=step: trial.fit(folder=folder, stop_at=step))
    return Trial(processes, adapter=adapter()).fit(folder=folder)


def diverged(processes, folder):
    return said(lambda: Trial(processes, bad=(1, 6)).fit(folder=folder))


def bad_validation(processes):
    trial = Trial(processes)
    trial.validate = lambda model: float("nan")
    return said(trial.fit)


def failing_validation(processes):
    trial = Trial(processes)
    if processes.leads:
        trial.validate = lambda model: [][0]
    return said(trial.fit)


def other_jobs(processes):
    settings = {"learning_rate": 1e-3} if processes.rank else {}
    return said(lambda: Trial(processes).fit(settings=settings))


def apart(processes, folder):
    """Give each process a folder of its own, of which one holds a checkpoint."""
    if processes.leads:
        said(lambda: Trial().fit(folder=folder / "0", stop_at=3))
    return said(lambda: Trial(processes).fit(folder=folder / str(processes.rank)))


def whole_run(processes, folder):
    """Compress and distill a small network; return what the run says."""
    compressor = Compressor(recipe=small_recipe(RUN), task=Doubling(), out=folder)
    result = compressor.run(processes=processes)
    return {
        "state": result.student.state_dict(),
        "losses": result.report.histories["distill"].losses,
        "widths": result.report.allocation["groups"],
        "page": result.report_path.name,
    }


def scenarios(processes, root):
    split = Processes(rank=processes.rank, count=processes.count, strategy="fsdp")
    yield "plain", lambda: Trial(processes).fit()
    yield "double", lambda: Trial(processes, dtype=torch.float64).fit()
    yield "adapter", lambda: Trial(processes, adapter=adapter()).fit()
    yield "resumed", lambda: resumed(processes, root / "resumed")
    yield "killed", lambda: Trial(processes).fit(folder=root / "killed")
    yield "diverged", lambda: diverged(processes, root / "diverged")
    yield "bad_validation", lambda: bad_validation(processes)
    yield "failing_validation", lambda: failing_validation(processes)
    yield "other_jobs", lambda: other_jobs(processes)
    yield "apart", lambda: apart(processes, root / "apart")
    yield "run", lambda: whole_run(processes, root / "run")
    yield "split", lambda: Trial(split, adapter=adapter()).fit()
    yield "split_resumed", lambda: resumed(split, root / "split")
    yield "split_diverged", lambda: diverged(split, root / "split_diverged")


def joined(rank, store):
    """Return this process of a pair that meets through a file."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2
    )
    return Processes(rank=rank, count=2)


def killed(rank, root):
    """Train in a copy of this process, and kill it in the middle."""
    child = os.fork()  # before there is any thread; a new interpreter takes seconds to import
    if child == 0:
        Trial(joined(rank, root / "store_killed")).fit(folder=root / "killed", kill_at=5)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return status == signal.SIGKILL and (root / "killed" / CHECKPOINT_NAME).exists()


def main(rank, root):
    found = {"was_killed": killed(rank, root)}
    for name, work in scenarios(joined(rank, root / "store"), root):
        found[name] = work()
    torch.save(found, root / f"found_{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
