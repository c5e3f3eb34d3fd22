"""Train several front ends over several seeds with one and the same recognizer, and report."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from recipes.common.files import sole_trainer
from recipes.timit.config import Config
from recipes.timit.corpus import Corpus
from recipes.timit.evaluation import RunResult
from recipes.timit.frontends import spec_of
from recipes.timit.runs import is_finished
from recipes.timit.training import Speech, build_task, prepare_run_dir


@dataclass
class Job:
    """One training in a process of its own."""

    config: Config
    run_dir: Path
    process: subprocess.Popen | None = None
    bar: TaskID | None = None
    started: float = 0.0

    @property
    def minutes(self) -> float:
        """Since the process was started."""
        return (time.monotonic() - self.started) / 60

    @property
    def title(self) -> str:
        """Front end and seed."""
        return f"{spec_of(self.config.frontend).title}, seed {self.config.seed}"

    @property
    def result(self) -> Path:
        """What a finished run gave."""
        return self.run_dir / "result.json"

    @property
    def log(self) -> Path:
        """What the process printed."""
        return self.run_dir / "log.txt"


@dataclass(frozen=True)
class Plan:
    """What to compare.

    Attributes:
        data: folder of the corpus.
        out: receives a folder a run, the tables and the figures.
        base: configuration shared by all runs.
        frontends, seeds: the runs are all their pairs.
        jobs: trainings at the same time, each with an equal share of the cores.
        accelerator: as in `recipes.timit.training.train`.
        skip_bad: leave out bad files rather than stop.
    """

    data: Path
    out: Path
    base: Config
    frontends: Sequence[str]
    seeds: Sequence[int]
    jobs: int = 1
    accelerator: str = "auto"
    skip_bad: bool = False
    console: Console = field(default_factory=Console)

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise ValueError(f"expected jobs >= 1, got {self.jobs}")

    def all_jobs(self) -> list[Job]:
        """Every run once, seed by seed, so that an interrupted comparison is fair to all front ends."""
        return [
            Job(replace(self.base, frontend=name, seed=seed), self.out / "runs" / f"{name}-seed{seed}")
            for seed in dict.fromkeys(self.seeds)
            for name in dict.fromkeys(self.frontends)
        ]


def compare(plan: Plan, corpus: Corpus) -> list[RunResult]:
    """Run what is not finished yet, then write the tables and figures of all runs.

    A comparison that was interrupted goes on where it stopped: finished runs are kept, unfinished ones resume
    from their last epoch.

    Raises:
        RuntimeError: a run failed; its log is named and its last lines shown.
    """
    from recipes.timit.report import write_report

    jobs = plan.all_jobs()
    # A setting that a front end cannot be built with stops the comparison before it has a folder.
    for config in {job.config.frontend: job.config for job in jobs}.values():
        build_task(config, Speech(corpus, config))
    for job in jobs:
        # The lock: a folder without a checkpoint may be that of a training in its first epoch.
        with sole_trainer(job.run_dir):
            prepare_run_dir(job.config, corpus, job.run_dir)
    _run(plan, [job for job in jobs if not is_finished(job.run_dir)], total=len(jobs))
    results = [RunResult.load(job.result) for job in jobs]
    write_report(plan.out, [job.run_dir for job in jobs], corpus, console=plan.console)
    return results


def _run(plan: Plan, waiting: list[Job], *, total: int) -> None:
    if len(waiting) < total:
        plan.console.print(f"{total - len(waiting)} of {total} runs are finished already")
    running: list[Job] = []
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
        console=plan.console,
    ) as progress:
        overall = progress.add_task("All runs", total=max(1, total), completed=total - len(waiting), note="")
        try:
            while waiting or running:
                while waiting and len(running) < plan.jobs:
                    job = waiting.pop(0)
                    job.bar = progress.add_task(job.title, total=1.0, note="starting")
                    running.append(job)
                    job.process = _start(plan, job)
                    job.started = time.monotonic()
                time.sleep(0.5)
                for job in list(running):
                    assert job.process is not None and job.bar is not None
                    done, note = read_progress(job.run_dir, job.config)
                    progress.update(job.bar, completed=done, note=note)
                    if job.process.poll() is None:
                        continue
                    running.remove(job)
                    if job.process.returncode or not is_finished(job.run_dir):
                        raise RuntimeError(_failure(job))
                    per = RunResult.load(job.result).strict.error_rate
                    progress.update(job.bar, visible=False)
                    progress.console.print(f"{job.title}: PER {per:.1f} %, after {job.minutes:.1f} minutes")
                    progress.advance(overall)
        finally:
            _stop([job.process for job in running if job.process is not None])


def _stop(processes: Sequence[subprocess.Popen]) -> None:
    """End what still runs; not before that does the next comparison find the folders unlocked."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()


def _start(plan: Plan, job: Job) -> subprocess.Popen:
    threads = max(1, (os.cpu_count() or 1) // plan.jobs)
    command = [
        sys.executable,
        "-m",
        "recipes.timit",
        "train",
        "--data",
        str(plan.data),
        "--out",
        str(job.run_dir),
    ]
    command += ["--config", str(job.run_dir / "config.json"), "--accelerator", plan.accelerator, "--quiet"]
    command += ["--threads", str(threads), *(["--skip-bad"] if plan.skip_bad else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    with job.log.open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)


def read_progress(run_dir: Path, config: Config) -> tuple[float, str]:
    """How far a run is, between 0 and 1, and its latest dev PER in words, if it has one yet."""
    try:
        state = json.loads((run_dir / "progress.json").read_text())
        done = min((state["epoch"] + state["batch"] / max(1, state["batches"])) / config.epochs, 1.0)
        note = f"epoch {state['epoch'] + 1}/{config.epochs}" if done < 1.0 else "decoding"
        dev_per = state["dev_per"]
        return done, note if dev_per is None else f"{note}, dev PER {dev_per:.1f} %"
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        # Whatever the file holds, e.g. another version's state: it is only for the bar.
        return 0.0, "starting"


def _failure(job: Job) -> str:
    lines = job.log.read_text(errors="replace").splitlines()[-25:]
    assert job.process is not None
    status = job.process.returncode
    cause = ""
    if status < 0:
        # Nothing in the log tells of it.
        memory = ": out of memory?" if status == -signal.SIGKILL else ""
        cause = f" (killed by {signal.Signals(-status).name}{memory})"
    head = f"{job.title} failed, exit status {status}{cause}; the end of {job.log}:"
    return "\n".join([head, *(f"  {line}" for line in lines)])
