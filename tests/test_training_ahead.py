"""Batches drawn ahead in worker processes: the same bits, and no process left behind."""

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from coa_compress.artifacts import Batch
from coa_compress.errors import DataError, NoEffectWarning, SettingError, TrainingError
from coa_compress.tasks.dehazing.settings import DehazingSettings
from coa_compress.tasks.dehazing.task import DehazingTask
from coa_compress.training import ahead
from coa_compress.training.ahead import BatchSupply, Request, _prepared, _Queue
from coa_compress.training.seeds import step_seed
from coa_compress.training.settings import TrainingSettings

JOB, SEED = "job", 3


class Drawing:
    """A task that counts what is drawn in this process."""

    def __init__(self, bad=None):
        self.here = 0
        self.bad = bad

    def training_batch(self, batch_size, generator):
        self.here += 1
        if generator.initial_seed() == self.bad:
            message = "the file is gone"
            raise DataError(message)
        image = torch.rand(batch_size, 1, 4, 4, generator=generator)
        return Batch(image, image.double())

    def real_batch(self, batch_size, generator):
        self.here += 1
        return torch.rand(batch_size, 1, 4, 4, generator=generator)


class NearbyWorker:
    """A worker in this process."""

    def __init__(self, task, *, gone=False, lost=False):
        self.task, self.gone, self.lost = task, gone, lost
        self.answers = []

    def ask(self, seed, requests):
        if not self.gone:
            self.answers.append(_prepared(self.task, seed, requests))
        return not self.gone

    def answer(self):
        found = self.answers.pop(0)
        return [] if self.lost else found


def seeds(steps):
    return [step_seed(JOB, SEED, step, 0) for step in range(steps)]


def one_step(draw, seed, *, early=0, late=0):
    """Return everything random in a step, as numbers."""
    generator = torch.Generator().manual_seed(seed)
    torch.rand(early, generator=generator)
    real = draw("real_batch", 2, generator)
    between = torch.rand(late, generator=generator)
    pair = draw("training_batch", 2, generator)
    after = torch.rand(2, generator=generator)
    parts = (real, between, pair.input, pair.target, after)
    return torch.cat([part.double().flatten() for part in parts])


@budget(deadline=None, max_examples=40)
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 9), st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=14
    ),
    kinds=st.lists(st.sampled_from(["well", "gone", "lost"]), min_size=1, max_size=3),
)
def test_whatever_a_job_draws_it_draws_the_same_bits(steps, kinds):
    workers = [NearbyWorker(Drawing(), gone=kind == "gone", lost=kind == "lost") for kind in kinds]
    queue = _Queue(Drawing(), workers, seeds(10))
    alone = BatchSupply(Drawing())

    for step, early, late in steps:
        seed = seeds(10)[step]
        found = one_step(
            lambda method, size, generator: queue.draw(Request(method, size), generator),
            seed,
            early=early,
            late=late,
        )
        assert torch.equal(found, one_step(alone.draw, seed, early=early, late=late))


@pytest.mark.parametrize("start", [0, 4])
def test_after_the_first_two_steps_workers_draw_everything(start):
    here = Drawing()
    queue = _Queue(here, [NearbyWorker(Drawing()) for _ in range(3)], seeds(12))

    for seed in seeds(12)[start:]:
        one_step(lambda m, size, g: queue.draw(Request(m, size), g), seed)

    assert here.here == 4


def test_steps_that_draw_nothing_and_steps_begun_twice_keep_the_workers_in_order():
    here, workers = Drawing(), [NearbyWorker(Drawing()) for _ in range(2)]
    queue = _Queue(here, workers, seeds(20))

    for step in (0, 0, 1, 3, 6, 7, 8, 12, 13, 14):
        one_step(lambda m, size, g: queue.draw(Request(m, size), g), seeds(20)[step])

    # steps 0 (twice) and 1
    assert here.here == 6
    assert all(len(worker.answers) <= 4 for worker in workers)
    assert max(len(found) for worker in workers for found in worker.answers) == 2


def test_other_generators_are_left_to_this_process():
    here = Drawing()
    queue = _Queue(here, [NearbyWorker(Drawing())], seeds(5))
    for seed in seeds(5):
        one_step(lambda m, size, g: queue.draw(Request(m, size), g), seed)
    before = here.here

    one_step(lambda m, size, g: queue.draw(Request(m, size), g), 99)

    assert here.here == before + 2


def test_workers_that_never_help_are_an_effect_that_is_missing(monkeypatch):
    monkeypatch.setattr(ahead, "_workers", lambda task, count: nearby(task))
    supply = BatchSupply(Drawing())

    def job():
        with supply.ahead(JOB, TrainingSettings(steps=9, workers=1), seed=SEED):
            for seed in seeds(9):
                one_step(supply.draw, seed, early=1)

    with pytest.warns(NoEffectWarning, match=r"training.workers has no effect: each step draws"):
        job()


class nearby:  # noqa: N801 - stands in for a function
    def __init__(self, task):
        self.workers = [NearbyWorker(task)]

    def __enter__(self):
        return self.workers

    def __exit__(self, *_):
        return None


def test_processes_give_the_same_bits_and_end_with_the_job():
    here = Drawing(bad=step_seed(JOB, SEED, 7, 0))
    supply, alone = BatchSupply(here), BatchSupply(Drawing())
    seen = []

    def job():
        with supply.ahead(JOB, TrainingSettings(steps=8, workers=2), seed=SEED):
            seen.append(len(multiprocessing.active_children()))
            for seed in seeds(7):
                assert torch.equal(one_step(supply.draw, seed), one_step(alone.draw, seed))
            seen.append(here.here)
            one_step(supply.draw, seeds(8)[7])

    with pytest.raises(DataError, match="the file is gone"):
        job()

    assert seen == [2, 4]
    assert multiprocessing.active_children() == []


def test_a_killed_worker_costs_time_only(caplog):
    supply, alone = BatchSupply(Drawing()), BatchSupply(Drawing())

    def job():
        with supply.ahead(JOB, TrainingSettings(steps=8, workers=1), seed=SEED):
            (worker,) = multiprocessing.active_children()
            for step, seed in enumerate(seeds(8)):
                if step == 3:
                    os.kill(worker.pid, signal.SIGKILL)
                assert torch.equal(one_step(supply.draw, seed), one_step(alone.draw, seed))
            raise KeyboardInterrupt

    with caplog.at_level(logging.WARNING), pytest.raises(KeyboardInterrupt):
        job()

    assert "a worker process ended with code -9: its batches are drawn in this process" in (
        caplog.text
    )
    assert multiprocessing.active_children() == []


def test_a_task_that_cannot_travel_is_refused_before_anything_starts():
    task = Drawing()
    task.opened = lambda: None
    supply = BatchSupply(task)

    with (
        pytest.raises(
            TrainingError,
            match=r"task Drawing cannot be sent to worker processes .*: set training.workers to 0",
        ),
        supply.ahead(JOB, TrainingSettings(workers=1), seed=SEED),
    ):
        pass

    assert multiprocessing.active_children() == []


def test_without_workers_nothing_is_started():
    supply = BatchSupply(Drawing())

    with warnings.catch_warnings(), supply.ahead(JOB, TrainingSettings(), seed=SEED):
        warnings.simplefilter("error")
        assert multiprocessing.active_children() == []
        one_step(supply.draw, 1)


def test_a_batch_is_drawn_on_one_thread_and_the_threads_are_given_back():
    seen = []

    class Watching(Drawing):
        def real_batch(self, batch_size, generator):
            seen.append(torch.get_num_threads())
            return super().real_batch(batch_size, generator)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        BatchSupply(Watching()).draw("real_batch", 1, torch.Generator())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [1]


def test_workers_are_counted_from_0():
    with pytest.raises(SettingError, match=r"TrainingSettings.workers must be at least 0, got -1"):
        TrainingSettings(workers=-1)


def test_the_dehazing_task_travels_without_its_images_and_draws_the_same():
    import pickle

    task = DehazingTask(DehazingSettings(crop=32))
    first = task.training_batch(2, torch.Generator().manual_seed(1))

    sent = pickle.loads(pickle.dumps(task))
    again = sent.training_batch(2, torch.Generator().manual_seed(1))

    assert torch.equal(first.input, again.input)
    assert torch.equal(first.target, again.target)
    assert sent.data.cache.used_mb == 0


_KILLED = """
import multiprocessing, os, signal, sys
from test_training_ahead import JOB, SEED, Drawing, one_step, seeds
from coa_compress.training.ahead import BatchSupply
from coa_compress.training.settings import TrainingSettings

if __name__ == "__main__":
    supply = BatchSupply(Drawing())
    with supply.ahead(JOB, TrainingSettings(steps=9, workers=1), seed=SEED):
        for seed in seeds(4):
            one_step(supply.draw, seed)
        print(multiprocessing.active_children()[0].pid, flush=True)
        os.kill(0, signal.SIGINT) if sys.argv[1] == "SIGINT" else os.kill(os.getpid(), 9)
        sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_no_worker_outlives_a_job_that_is_killed(tmp_path, name):
    (tmp_path / "job.py").write_text(_KILLED)
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])

    done = subprocess.run(
        [sys.executable, "job.py", name],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        start_new_session=True,
        # a shell that runs in the background makes its children ignore it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )

    worker = Path("/proc") / done.stdout.strip()
    until = time.monotonic() + 60
    while worker.exists() and time.monotonic() < until:
        time.sleep(0.05)
    # with lightning-fabric on Python 3.12 an interrupted process ends with 1
    ends = (-signal.SIGINT, 1) if name == "SIGINT" else (-signal.SIGKILL,)
    assert done.returncode in ends
    assert not worker.exists()
    assert done.stderr.count("Traceback") == (name == "SIGINT")
