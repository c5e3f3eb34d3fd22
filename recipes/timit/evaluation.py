"""From a trained model to numbers: LM weight from dev, strict and forgiving PER on test, confusions, files."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import track

from recipes.common.files import replace_text
from recipes.timit.config import Config
from recipes.timit.frontends import spec_of
from recipes.timit.identity import check_identity
from recipes.timit.phones import transcript_39
from recipes.timit.scoring import ErrorCounts, score_corpus
from recipes.timit.training import (
    PhoneRecognition,
    Speech,
    check_accelerator,
    curves,
    decode,
    inference_mode,
    load_best,
)

LM_WEIGHTS = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0)
OPTIONAL_SILENCE = frozenset({"sil"})


@dataclass(frozen=True)
class RunResult:
    """What one run gave; written to ``result.json`` in its folder.

    Attributes:
        corpus, labels: name of the corpus and kind of its labels: a stand-in's number is never read as TIMIT's.
        skipped: bad utterances left out; with any, the numbers do not compare with other tables.
        frontend, title, seed: the run.
        parameters, frontend_parameters: learned numbers, in all and in the front end.
        epochs, seconds_per_epoch: done so far; the median, at ``threads`` threads on ``hardware``.
        lm_weight: chosen on dev.
        dev_per, first_epoch_dev_per: percent, strict; the second with the weight monitored during training.
        strict, forgiving: errors on test; in the second a deleted silence counts as correct.
        confusions: [reference phone or null, recognised phone or null, count] over test.
    """

    corpus: str
    labels: str
    skipped: int
    frontend: str
    title: str
    seed: int
    parameters: int
    frontend_parameters: int
    epochs: int
    seconds_per_epoch: float
    threads: int
    hardware: str
    lm_weight: float
    dev_per: float
    first_epoch_dev_per: float
    strict: ErrorCounts
    forgiving: ErrorCounts
    confusions: list[tuple[str | None, str | None, int]]

    def save(self, path: Path) -> None:
        """Write as JSON."""
        replace_text(path, json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> RunResult:
        """Read what `save` wrote."""
        values = json.loads(path.read_text())
        for name in ("strict", "forgiving"):
            values[name] = ErrorCounts(**values[name])
        values["confusions"] = [tuple(row) for row in values["confusions"]]
        return cls(**values)


def decode_split(
    task: PhoneRecognition, data: Speech, split: str, lm_weights: tuple[float, ...], *, progress: bool = False
) -> dict[float, dict[str, list[str]]]:
    """Phones of the 39 set of every utterance of a split, ``{lm_weight: {key: phones}}``."""
    task.measure_speakers(data, split)
    utterances = data.dataset(split).utterances
    decoded: dict[float, dict[str, list[str]]] = {weight: {} for weight in lm_weights}
    batches = list(data.batches(split))
    with torch.no_grad(), inference_mode(task):
        for batch in track(batches, description=f"Decoding {split}", disable=not progress, transient=True):
            scores = task.log_likelihoods(batch.to(task.device), utterances)
            for i, score_of_frames in zip(batch.index.tolist(), scores, strict=True):
                sequences = decode(score_of_frames, task.bigram, task.inventory, lm_weights)
                for weight, phones in zip(lm_weights, sequences, strict=True):
                    decoded[weight][utterances[i].key] = phones
    return decoded


def evaluate(
    config: Config, data: Speech, run_dir: Path, *, accelerator: str = "auto", progress: bool = False
) -> RunResult:
    """Score the best model of a run; write result.json and sclite's files test.ref.trn and test.hyp.trn.

    Of an unfinished run (fewer ``epochs`` in the result than in ``config``) nothing is written: result.json says that
    a run is finished.

    Args:
        config: of the run.
        data: the corpus.
        run_dir: folder of the run.
        accelerator: ``"cpu"``, ``"gpu"`` or ``"auto"``.
        progress: show bars.

    Raises:
        ValueError: the run was trained on another corpus, or there is no GPU where one is asked for.
    """
    check_accelerator(accelerator)
    check_identity(data.corpus, run_dir)
    task = load_best(config, data, run_dir)
    if accelerator != "cpu" and torch.cuda.is_available():
        task.to("cuda")
    history = curves(run_dir)
    dev = references(data, "dev")
    by_weight = decode_split(task, data, "dev", LM_WEIGHTS, progress=progress)
    dev_per = {weight: score_corpus(dev, hypotheses).counts.error_rate for weight, hypotheses in by_weight.items()}
    lm_weight = min(dev_per, key=lambda weight: dev_per[weight])
    test = references(data, "test")
    hypotheses = decode_split(task, data, "test", (lm_weight,), progress=progress)[lm_weight]
    strict = score_corpus(test, hypotheses)
    result = RunResult(
        corpus=data.corpus.name,
        labels=data.corpus.labels,
        skipped=len(data.corpus.skipped),
        frontend=config.frontend,
        title=spec_of(config.frontend).title,
        seed=config.seed,
        parameters=sum(p.numel() for p in task.parameters() if p.requires_grad),
        frontend_parameters=sum(p.numel() for p in task.model.frontend.parameters() if p.requires_grad),
        epochs=len(history),
        seconds_per_epoch=statistics.median(record["seconds"] for record in history),
        threads=torch.get_num_threads(),
        hardware=hardware(),
        lm_weight=lm_weight,
        dev_per=dev_per[lm_weight],
        first_epoch_dev_per=history[0]["dev_per"],
        strict=strict.counts,
        forgiving=score_corpus(test, hypotheses, optional=OPTIONAL_SILENCE).counts,
        confusions=[(*pair, count) for pair, count in sorted(strict.confusions.items(), key=lambda kv: -kv[1])],
    )
    if result.epochs < config.epochs:
        return result
    for name, phones in (("ref", test), ("hyp", hypotheses)):
        lines = [f"{' '.join(phones[key])} ({key})" for key in sorted(phones)]
        (run_dir / f"test.{name}.trn").write_text("\n".join(lines) + "\n")
    result.save(run_dir / "result.json")
    return result


def references(data: Speech, split: str) -> dict[str, list[str]]:
    """Transcripts of a split on the 39 set, ``{key: phones}``."""
    return {u.key: transcript_39(u.segments) for u in data.dataset(split).utterances}


def hardware() -> str:
    """The processor's or GPU's name and the number of cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    return f"{name}, {os.cpu_count()} cores"
