"""The report of a comparison: tables, pictures, and one page that shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console
from torch import nn

from recipes.timit import figures, filters
from recipes.timit.corpus import Corpus, Utterance, read_audio
from recipes.timit.frontends import spec_of
from recipes.timit.runs import Groups, Run, group_runs, load_run
from recipes.timit.tables import corpus_title, markdown, print_table, write_csv
from recipes.timit.training import Speech, build_task, load_best

DPI = 150
_UTTERANCE_SECONDS = 3.0


@dataclass(frozen=True)
class Picture:
    """A figure in the report: its file, the heading above it, and what to see in it."""

    name: str
    heading: str
    caption: str
    figure: Figure


def write_report(out: Path, run_dirs: Sequence[Path], corpus: Corpus, *, console: Console) -> None:
    """Write table.md, table.csv, report.md and the figures of finished runs; print the table.

    Any subset of the front ends and any number of seeds will do. Pictures of single models are those of each front
    end's lowest seed.

    Args:
        out: folder that receives the files; made if need be.
        run_dirs: folders of runs on ``corpus``, each with config.json, result.json, checkpoints/best.ckpt, and
            checkpoints/last.ckpt or history.json.
        corpus: what the runs were trained on.
        console: where the table is printed.

    Raises:
        ValueError: no runs, a file that is missing, a run on another corpus, or two runs of one front end and seed;
            the message names the files.
    """
    groups = group_runs([load_run(folder) for folder in run_dirs], corpus)
    out.mkdir(parents=True, exist_ok=True)
    table = markdown(groups, corpus)
    (out / "table.md").write_text(table, encoding="utf-8")
    write_csv(out / "table.csv", groups)
    print_table(groups, corpus, console)
    pictures = draw(groups, corpus)
    for picture in pictures:
        picture.figure.savefig(out / picture.name, dpi=DPI)
    shown = [f"## {p.heading}\n\n{p.caption}\n\n![{p.heading}]({p.name})\n" for p in pictures]
    (out / "report.md").write_text("\n".join([table, *shown]), encoding="utf-8")
    console.print(f"Report with {len(pictures)} pictures: {out / 'report.md'}", markup=False, highlight=False)


def draw(groups: Groups, corpus: Corpus) -> list[Picture]:
    """All pictures of a comparison, in the order of the report."""
    title = corpus_title(corpus)
    firsts = {name: runs[0] for name, runs in groups.items()}
    config = next(iter(firsts.values())).config
    pictures = [
        Picture(
            "training_curves.png",
            "Training curves",
            "Errors by epoch: the lower and the sooner, the better; the frame error on train is measured under dropout "
            "and, once labels are realigned, against those labels, that on dev always against the corpus's.",
            figures.training_curves(
                {name: [run.history for run in runs] for name, runs in groups.items()},
                title=title,
                lm_weight=config.monitor_lm_weight,
                realign_after=config.realign_after,
            ),
        )
    ]
    trained: dict[str, nn.Module] = {}
    for name, run in firsts.items():
        trained[name] = _frontend(run, corpus, trained=True)
        learned = filters.learned_filters(
            _frontend(run, corpus, trained=False),
            trained[name],
            title=f"{spec_of(name).title}, before and after training; seed {run.result.seed}, {title}",
            colour=figures.colour_of(name),
            bandwidth=corpus.bandwidth,
        )
        if learned is not None:
            figure, caption = learned
            heading = f"Learned filters: {spec_of(name).title}"
            pictures.append(Picture(f"learned_filters_{name}.png", heading, caption, figure))
    utterance = typical_utterance(corpus)
    audio = figures.LabelledAudio(
        utterance.key,
        read_audio(utterance.wav, sample_rate=corpus.sample_rate),
        corpus.sample_rate,
        utterance.segments,
    )
    pictures.append(
        Picture(
            "features.png",
            "Features",
            "What the recognizer sees of one dev utterance, with the corpus's phone boundaries: good features change "
            "where the phone does (mel channels go up in frequency, those of SincNet have no order).",
            figures.features(trained, audio, title=title, preemphasis=config.preemphasis),
        )
    )
    matrices = {name: figures.confusion_matrix(run.result.confusions) for name, run in firsts.items()}
    pictures.append(
        Picture(
            "confusions.png",
            "Confusions",
            "Rows are reference phones and add up to 100 %: what is off the diagonal but in a box on it is a confusion "
            "within a class of sounds.",
            figures.confusions(matrices, title=title),
        )
    )
    return pictures


def _frontend(run: Run, corpus: Corpus, *, trained: bool) -> nn.Module:
    """The front end of a run, as training left it or as it began: the run's seed gives the same start again."""
    data = Speech(corpus, run.config)
    task = load_best(run.config, data, run.folder) if trained else build_task(run.config, data)
    return task.model.frontend.eval()


def typical_utterance(corpus: Corpus) -> Utterance:
    """The dev utterance whose length is nearest to three seconds: long enough to show much, short enough to see it."""
    wanted = _UTTERANCE_SECONDS * corpus.sample_rate
    return min(corpus.dev, key=lambda utterance: abs(utterance.n_samples - wanted))
