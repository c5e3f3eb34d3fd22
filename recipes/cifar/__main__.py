"""``python -m recipes.cifar counts|prepare|recover|train|evaluate|compare``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch

from recipes.cifar.config import METHODS, PRESETS, ROWS, Config, default_preset
from recipes.cifar.counts import markdown
from recipes.cifar.data import CifarData, load_data
from recipes.cifar.recoveries import CASES, recover_all
from recipes.common.command import raise_on_sigterm, run_command
from recipes.common.options import add_config_options, check_row, given_options

DEFAULT_ROWS = (
    "fc", "rnn", "cnn", "dense-cnn", "k-cnn", "k-identity-cnn", "recovered-k-cnn", "recovered-faq-cnn", "unpermuted",
)  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run one command; errors of use end in one line on stderr and exit status 2."""
    return run_command(_parser(), argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m recipes.cifar", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    counts = commands.add_parser("counts", help="parameters of every row beside the paper's accuracies, in Markdown")
    counts.add_argument("--width", type=int, default=64, help="channels of ResNet18's first stage (default: 64)")
    counts.set_defaults(run=_counts)

    prepare = commands.add_parser("prepare", help="build a stand-in for CIFAR-10 in its binary layout")
    prepare.add_argument("data", choices=["photos"])
    prepare.add_argument("--out", type=Path, required=True, help="folder to write")
    prepare.add_argument("--per-class", type=int, default=1000, help="training patches of a picture (default: 1000)")
    prepare.add_argument("--stride", type=int, default=8, help="pixels between patches (default: 8)")
    prepare.add_argument("--seed", type=int, default=0, help="of the choice and order of patches")
    prepare.add_argument("--texture", action="store_true", help="grey patches of equal mean and contrast")
    prepare.add_argument("--wheels", type=Path, help="folder of the two wheels (default: download them, 23 MB)")
    prepare.add_argument("--work", type=Path, help="folder of the download (default: OUT-work)")
    prepare.add_argument("--overwrite", action="store_true", help="replace the folder if this command made it")
    prepare.add_argument("--quiet", action="store_true", help="no progress bar")
    prepare.set_defaults(run=_prepare)

    recover = commands.add_parser("recover", help="recover permutations without labels, by several methods; a table")
    recover.add_argument("--data", type=Path, required=True, help="folder of the binary files")
    recover.add_argument("--out", type=Path, required=True, help="folder of the outcomes; finished ones are kept")
    recover.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES), help="default: all")
    recover.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, help="default: all")
    recover.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], metavar="N", help="default: 0 to 4")
    recover.add_argument("--images", type=int, default=5000, help="of train that a method sees (default: 5000)")
    recover.add_argument("--threads", type=int, help="CPU threads (default: torch's own)")
    recover.add_argument("--quiet", action="store_true", help="no progress bars")
    recover.set_defaults(run=_recover)

    train = commands.add_parser("train", help="train one row with one seed, and evaluate it")
    train.add_argument("--row", choices=list(ROWS), default="k-cnn", help="default: %(default)s")
    train.add_argument("--out", type=Path, required=True, help="folder of the run; an unfinished one is resumed")
    _run_options(train)
    _config_options(train, leave_out=("net", "front", "recovery"))
    train.set_defaults(run=_train)

    evaluate = commands.add_parser("evaluate", help="score a trained run again")
    evaluate.add_argument("--run", type=Path, required=True, dest="folder", help="folder of the run")
    _run_options(evaluate)
    evaluate.set_defaults(run=_evaluate)

    compare = commands.add_parser("compare", help="train several rows over several seeds; table and figure")
    compare.add_argument("--out", type=Path, required=True, help="folder of the comparison; finished runs are kept")
    compare.add_argument(
        "--rows", nargs="+", default=list(DEFAULT_ROWS), choices=list(ROWS), metavar="ROW",
        help=f"of {', '.join(ROWS)} (default: {' '.join(DEFAULT_ROWS)})",
    )  # fmt: skip
    compare.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N", help="default: 0")
    compare.add_argument(
        "--permutations", nargs="+", default=["random", "bitreversal"], choices=["random", "bitreversal"],
        help="default: both",
    )  # fmt: skip
    compare.add_argument("--no-figure", action="store_true", help="do not draw recovery.png")
    _run_options(compare)
    _config_options(compare, leave_out=("net", "front", "recovery", "permutation", "seed"))
    compare.set_defaults(run=_compare)
    return parser


def _run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="folder of the binary files")
    parser.add_argument("--accelerator", choices=("auto", "cpu", "gpu"), default="auto", help="default: %(default)s")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own)")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def _config_options(parser: argparse.ArgumentParser, leave_out: tuple[str, ...]) -> None:
    preset_help = "default: cifar for CIFAR-10, small for a stand-in"
    add_config_options(parser, Config, PRESETS, preset_help=preset_help, leave_out=leave_out)


def _config(args: argparse.Namespace, data: CifarData, row: str) -> Config:
    given = given_options(args)
    check_row(row, given, ROWS)
    chosen: dict[str, Any] = {**PRESETS[args.preset or default_preset(data.name)], **ROWS[row], **given}
    return Config(**chosen)


def _counts(args: argparse.Namespace) -> None:
    print(markdown(width=args.width))


def _prepare(args: argparse.Namespace) -> None:
    from recipes.cifar.prepare import prepare_photos

    out = prepare_photos(
        args.out,
        per_class=args.per_class,
        stride=args.stride,
        seed=args.seed,
        texture=args.texture,
        wheels=args.wheels,
        work=args.work,
        overwrite=args.overwrite,
        progress=not args.quiet,
    )
    print(load_data(out).summary())


def _set_threads(args: argparse.Namespace) -> None:
    if args.threads is not None:
        if args.threads < 1:
            raise ValueError(f"expected --threads >= 1, got {args.threads}")
        torch.set_num_threads(args.threads)


def _recover(args: argparse.Namespace) -> None:
    _set_threads(args)
    data = load_data(args.data)
    print(data.summary())
    options = {"cases": args.cases, "methods": args.methods, "seeds": args.seeds, "images": args.images}
    print(recover_all(data, args.out, progress=not args.quiet, **options))


def _train(args: argparse.Namespace) -> None:
    from recipes.cifar.evaluation import evaluate
    from recipes.cifar.training import train

    _set_threads(args)
    data = load_data(args.data)
    print(data.summary())
    config = _config(args, data, args.row)
    if train(config, data, args.out, accelerator=args.accelerator, progress=not args.quiet):
        print(json.dumps(dataclasses.asdict(evaluate(config, data, args.out, accelerator=args.accelerator)), indent=1))


def _evaluate(args: argparse.Namespace) -> None:
    from recipes.cifar.evaluation import evaluate

    _set_threads(args)
    path = args.folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{path} is missing: expected the folder of a run")
    result = evaluate(Config.load(path), load_data(args.data), args.folder, accelerator=args.accelerator)
    print(json.dumps(dataclasses.asdict(result), indent=1))


def _compare(args: argparse.Namespace) -> None:
    from recipes.cifar.compare import compare

    _set_threads(args)
    data = load_data(args.data)
    print(data.summary())
    configs = {row: _config(args, data, row) for row in args.rows}
    table = compare(
        configs,
        data,
        args.out,
        permutations=args.permutations,
        seeds=args.seeds,
        accelerator=args.accelerator,
        progress=not args.quiet,
        figure=not args.no_figure,
    )
    print(table)


if __name__ == "__main__":
    raise_on_sigterm()
    sys.exit(main())
