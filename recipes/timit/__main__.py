"""``python -m recipes.timit prepare|train|evaluate|compare``."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from recipes.common.command import raise_on_sigterm, run_command
from recipes.common.files import check_apart
from recipes.common.options import add_config_options, given_options
from recipes.timit.config import PRESETS, Config, default_preset
from recipes.timit.corpus import Corpus, load_corpus
from recipes.timit.frontends import FRONTENDS
from recipes.timit.prepare import BUILDERS


def main(argv: list[str] | None = None) -> int:
    """Run one command; errors of use end in one line on stderr and exit status 2."""
    return run_command(_parser(), argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m recipes.timit", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    prepare = commands.add_parser("prepare", help="build a stand-in corpus in TIMIT's layout")
    prepare.add_argument("corpus", choices=list(BUILDERS))
    prepare.add_argument("--out", type=Path, required=True, help="folder to write")
    prepare.add_argument("--minutes", type=float, help="amount of speech (default: the corpus's own)")
    prepare.add_argument("--seed", type=int, default=0)
    prepare.add_argument("--overwrite", action="store_true", help="replace the folder if it is a stand-in")
    prepare.add_argument("--keep", action="store_true", help="do nothing if the folder holds a corpus already")
    prepare.add_argument("--quiet", action="store_true", help="no progress bars")
    packaged = prepare.add_argument_group("corpora from packages", "amazon-queen and asterisk")
    packaged.add_argument(
        "--package", type=Path, help="the package's .deb file or unpacked tree (default: download it)"
    )
    packaged.add_argument("--work", type=Path, help="folder of downloads and finished alignments (default: OUT-work)")
    packaged.add_argument("--workers", type=int, help="processes that align (default: one a core)")
    prepare.set_defaults(run=_prepare)

    train = commands.add_parser("train", help="train one front end with one seed, and evaluate it")
    _data_options(train)
    train.add_argument("--out", type=Path, required=True, help="folder of the run; an unfinished one is resumed")
    train.add_argument("--devices", type=int, default=1, help="processes; more than one trains by DDP")
    train.add_argument("--config", type=Path, help="a config.json to start from, in place of a preset")
    train.add_argument("--threads", type=int, help="CPU threads (default: torch's own)")
    _config_options(train, leave_out=())
    train.set_defaults(run=_train)

    evaluate = commands.add_parser("evaluate", help="score a trained run again")
    _data_options(evaluate)
    evaluate.add_argument("--run", type=Path, required=True, dest="out", help="folder of the run")
    evaluate.set_defaults(run=_evaluate)

    compare = commands.add_parser("compare", help="train several front ends over several seeds; table and figures")
    _data_options(compare)
    compare.add_argument("--out", type=Path, help="folder of the comparison (default: runs/CORPUS)")
    compare.add_argument(
        "--frontends", nargs="+", default=["mfsc", "sincnet", "kaleidoscope"], choices=list(FRONTENDS), metavar="NAME",
        help=f"of {', '.join(FRONTENDS)} (default: mfsc sincnet kaleidoscope)",
    )  # fmt: skip
    compare.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="default: 0 1 2")
    compare.add_argument("--jobs", type=int, default=1, help="trainings at the same time")
    _config_options(compare, leave_out=("frontend", "seed"))
    compare.set_defaults(run=_compare)
    return parser


def _data_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="folder of TIMIT or of a prepared stand-in")
    parser.add_argument("--skip-bad", action="store_true", help="leave out bad files and report them, not stop")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.add_argument("--accelerator", choices=("auto", "cpu", "gpu"), default="auto")


def _config_options(parser: argparse.ArgumentParser, leave_out: tuple[str, ...]) -> None:
    add_config_options(
        parser,
        Config,
        PRESETS,
        preset_help="default: timit for TIMIT, small for a stand-in",
        leave_out=leave_out,
        choices={"frontend": FRONTENDS},
    )


def _config(args: argparse.Namespace, corpus: Corpus) -> Config:
    start: dict[str, Any] = PRESETS[args.preset or default_preset(corpus.name)]
    config = Config.load(args.config, "mend it") if getattr(args, "config", None) else Config(**start)
    return replace(config, **given_options(args))


def _load(args: argparse.Namespace, console: Console) -> Corpus:
    with Progress(console=console, transient=True, disable=args.quiet) as progress:
        bar = progress.add_task(f"Checking {args.data}")
        corpus = load_corpus(
            args.data,
            skip_bad=args.skip_bad,
            progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    console.print(corpus.summary(), markup=False, highlight=False)
    return corpus


def _prepare(args: argparse.Namespace) -> None:
    if args.keep and (args.out / "corpus.json").exists():
        print(f"{args.out} is there already")
        return
    options = {name: getattr(args, name) for name in ("package", "work", "workers")}
    given = {name: value for name, value in options.items() if value is not None}
    if given and args.corpus == "synthetic":
        raise ValueError(f"--{' --'.join(given)}: only for corpora from packages, not for synthetic")
    check_apart(args.out, (args.package, args.work))
    BUILDERS[args.corpus](
        args.out,
        seed=args.seed,
        minutes=args.minutes,
        overwrite=args.overwrite,
        progress=not args.quiet,
        **given,
    )


def _train(args: argparse.Namespace) -> None:
    from lightning.pytorch.callbacks import Callback

    from recipes.common.files import sole_trainer
    from recipes.timit.evaluation import evaluate
    from recipes.timit.training import ProgressFile, Speech, train

    if args.threads is not None:
        import torch

        if args.threads < 1:
            raise ValueError(f"expected threads >= 1, got {args.threads}")
        torch.set_num_threads(args.threads)
    console = Console()
    corpus = _load(args, console)
    config = _config(args, corpus)
    data = Speech(corpus, config, progress=not args.quiet)
    callbacks: list[Callback] = [ProgressFile(args.out / "progress.json")]
    with sole_trainer(args.out):
        is_first_process = train(
            config,
            data,
            args.out,
            accelerator=args.accelerator,
            devices=args.devices,
            progress=not args.quiet,
            callbacks=callbacks,
        )
    if is_first_process:
        result = evaluate(config, data, args.out, accelerator=args.accelerator, progress=not args.quiet)
        console.print(_summary(result, config, corpus, args.out), markup=False)


def _evaluate(args: argparse.Namespace) -> None:
    from recipes.timit.evaluation import evaluate
    from recipes.timit.training import Speech

    console = Console()
    config_path = args.out / "config.json"
    if not config_path.exists():
        raise ValueError(f"{config_path} is missing: expected the folder of a run")
    config = Config.load(config_path)
    corpus = _load(args, console)
    data = Speech(corpus, config, progress=not args.quiet)
    result = evaluate(config, data, args.out, accelerator=args.accelerator, progress=not args.quiet)
    console.print(_summary(result, config, corpus, args.out), markup=False)


def _compare(args: argparse.Namespace) -> None:
    from recipes.timit.compare import Plan, compare

    console = Console()
    corpus = _load(args, console)
    plan = Plan(
        data=args.data,
        out=args.out or Path("runs") / corpus.name.lower(),
        base=_config(args, corpus),
        frontends=args.frontends,
        seeds=args.seeds,
        jobs=args.jobs,
        accelerator=args.accelerator,
        skip_bad=args.skip_bad,
        console=console,
    )
    compare(plan, corpus)


def _summary(result: Any, config: Config, corpus: Corpus, out: Path) -> str:
    strict, forgiving = result.strict, result.forgiving
    numbers = json.dumps(
        {
            "corpus": corpus.title,
            "front end": f"{result.title}, seed {result.seed}",
            "dev PER strict %": round(result.dev_per, 2),
            "test PER strict %": round(strict.error_rate, 2),
            "test PER forgiving %": round(forgiving.error_rate, 2),
            "substitutions, deletions, insertions": [
                strict.substitutions,
                strict.deletions,
                strict.insertions,
            ],
            "LM weight (from dev)": result.lm_weight,
            "files": str(out),
        },
        indent=1,
    )
    if result.epochs == config.epochs:
        return numbers
    return f"{numbers}\nUNFINISHED: {result.epochs} of {config.epochs} epochs are done, so no result.json is written"


if __name__ == "__main__":
    # Without it, Lightning would end in status 0.
    raise_on_sigterm()
    sys.exit(main())
