"""``python -m recipes.translation counts|prepare|train|evaluate|translate|compare``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from recipes.common.command import raise_on_sigterm, run_command
from recipes.common.options import add_config_options, check_row, given_options
from recipes.translation.config import PRESETS, ROWS, Config, default_preset
from recipes.translation.counts import VOCABULARIES, markdown
from recipes.translation.data import Data, load_data


def main(argv: list[str] | None = None) -> int:
    """Run one command; errors of use end in one line on stderr and exit status 2."""
    return run_command(_parser(), argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m recipes.translation", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    counts = commands.add_parser("counts", help="parameters of every row beside the paper's, as a Markdown table")
    counts.add_argument(
        "--vocabularies", nargs=2, type=int, default=list(VOCABULARIES), metavar=("DE", "EN"),
        help="German and English subwords (default: those of IWSLT'14, %(default)s)",
    )  # fmt: skip
    counts.set_defaults(run=_counts)

    prepare = commands.add_parser("prepare", help="IWSLT'14 from plain text, or a stand-in from Debian packages")
    prepare.add_argument("data", choices=["iwslt", "debian"])
    prepare.add_argument("--out", type=Path, required=True, help="folder to write")
    prepare.add_argument("--symbols", type=int, help="of the byte-pair encoding (default: 10000; debian 6000)")
    prepare.add_argument("--separate", action="store_true", help="an encoding for each language, not a joint one")
    prepare.add_argument("--overwrite", action="store_true", help="replace the folder if this command made it")
    prepare.add_argument("--quiet", action="store_true", help="no progress bars")
    iwslt = prepare.add_argument_group("iwslt")
    iwslt.add_argument("--source", type=Path, help="folder with train, valid and test as .de and .en")
    iwslt.add_argument("--tokenized", action="store_true", help="the files hold Moses tokens already")
    debian = prepare.add_argument_group("debian")
    debian.add_argument("--package", type=Path, help="folder of the .deb files, or unpacked (default: download them)")
    debian.add_argument("--descriptions", type=Path, help="folder of Translation-de and -en (default: download them)")
    debian.add_argument("--work", type=Path, help="folder of downloads (default: OUT-work)")
    prepare.set_defaults(run=_prepare)

    train = commands.add_parser("train", help="train one row with one seed, and evaluate it")
    train.add_argument("--row", choices=list(ROWS), default="dynamicconv-k-ffn", help="default: %(default)s")
    train.add_argument("--out", type=Path, required=True, help="folder of the run; an unfinished one is resumed")
    _run_options(train)
    _config_options(train, leave_out=())
    train.set_defaults(run=_train)

    evaluate = commands.add_parser("evaluate", help="score a trained run again, perhaps with another search")
    evaluate.add_argument("--run", type=Path, required=True, dest="folder", help="folder of the run")
    evaluate.add_argument("--beam", type=int, help="default: the run's")
    evaluate.add_argument("--length-penalty", type=float, help="default: the run's")
    evaluate.add_argument("--int8", action="store_true", help="quantize the dense layers; written to int8.json")
    _run_options(evaluate)
    evaluate.set_defaults(run=_evaluate)

    translate = commands.add_parser("translate", help="translate German lines from a file or standard input")
    translate.add_argument("--run", type=Path, required=True, dest="folder", help="folder of the run")
    translate.add_argument("--data", type=Path, required=True, help="prepared folder that the run was trained on")
    translate.add_argument("--input", type=Path, help="a sentence a line (default: standard input)")
    translate.add_argument("--beam", type=int, help="default: the run's")
    translate.add_argument("--threads", type=int, help="CPU threads (default: torch's own)")
    translate.set_defaults(run=_translate)

    compare = commands.add_parser("compare", help="train several rows over several seeds; table and figure")
    compare.add_argument("--out", type=Path, required=True, help="folder of the comparison; finished runs are kept")
    compare.add_argument(
        "--rows", nargs="+", default=["transformer", "dynamicconv", "dynamicconv-k-ffn"], choices=list(ROWS),
        metavar="ROW", help=f"of {', '.join(ROWS)} (default: the first three)",
    )  # fmt: skip
    compare.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N", help="default: 0")
    _run_options(compare)
    _config_options(compare, leave_out=("mixer", "decoder_k", "encoder_k", "seed"))
    compare.set_defaults(run=_compare)
    return parser


def _run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="prepared folder")
    parser.add_argument("--accelerator", choices=("auto", "cpu", "gpu"), default="auto", help="default: %(default)s")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own)")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def _config_options(parser: argparse.ArgumentParser, leave_out: tuple[str, ...]) -> None:
    preset_help = "default: iwslt for IWSLT'14, small for a stand-in"
    add_config_options(parser, Config, PRESETS, preset_help=preset_help, leave_out=leave_out)


def _config(args: argparse.Namespace, data: Data, row: str) -> Config:
    given = given_options(args)
    check_row(row, given, ROWS)
    chosen: dict[str, Any] = {**PRESETS[args.preset or default_preset(data.name)], **ROWS[row], **given}
    return Config(**chosen)


def _counts(args: argparse.Namespace) -> None:
    if min(args.vocabularies) < 4:
        raise ValueError(f"expected --vocabularies of at least 4 subwords, got {args.vocabularies}")
    print(markdown(tuple(args.vocabularies)))


def _prepare(args: argparse.Namespace) -> None:
    from recipes.translation.prepare import prepare_debian, prepare_iwslt

    only = {"iwslt": ("source", "tokenized"), "debian": ("package", "descriptions", "work")}
    for data, names in only.items():
        strange = [name for name in names if getattr(args, name)]
        if data != args.data and strange:
            raise ValueError(f"--{strange[0]} is for {data}, not for {args.data}")
    shared = {"joint": not args.separate, "overwrite": args.overwrite, "progress": not args.quiet}
    if args.symbols is not None:
        shared["symbols"] = args.symbols
    if args.data == "iwslt":
        if args.source is None:
            raise ValueError("iwslt needs --source: a folder with train, valid and test, each as .de and .en")
        out = prepare_iwslt(args.out, args.source, tokenized=args.tokenized, **shared)
    else:
        out = prepare_debian(args.out, package=args.package, descriptions=args.descriptions, work=args.work, **shared)
    # Not args.out: the working directory may have been replaced, and a relative path leads from the old one.
    print(load_data(out).summary())


def _set_threads(args: argparse.Namespace) -> None:
    if args.threads is not None:
        import torch

        if args.threads < 1:
            raise ValueError(f"expected --threads >= 1, got {args.threads}")
        torch.set_num_threads(args.threads)


def _train(args: argparse.Namespace) -> None:
    from recipes.translation.evaluate import evaluate
    from recipes.translation.training import train

    _set_threads(args)
    data = load_data(args.data)
    print(data.summary())
    config = _config(args, data, args.row)
    if train(config, data, args.out, accelerator=args.accelerator, progress=not args.quiet):
        _print(evaluate(config, data, args.out, accelerator=args.accelerator, progress=not args.quiet))


def _load_config(folder: Path) -> Config:
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{path} is missing: expected the folder of a run")
    return Config.load(path)


def _evaluate(args: argparse.Namespace) -> None:
    from recipes.translation.evaluate import evaluate
    from recipes.translation.training import check_data

    _set_threads(args)
    config = _load_config(args.folder)
    given = {name: getattr(args, name) for name in ("beam", "length_penalty") if getattr(args, name) is not None}
    data = load_data(args.data)
    check_data(data, args.folder)
    config = replace(config, **given)
    options = {"accelerator": args.accelerator, "progress": not args.quiet, "int8": args.int8}
    _print(evaluate(config, data, args.folder, **options))


def _print(result: Any) -> None:
    print(json.dumps(dataclasses.asdict(result), indent=1))


def _translate(args: argparse.Namespace) -> None:
    from recipes.translation.data import read_lines, read_standard_input
    from recipes.translation.evaluate import translate_text
    from recipes.translation.training import check_data, load_averaged

    _set_threads(args)
    config = _load_config(args.folder)
    beam = config.beam if args.beam is None else args.beam
    if beam < 1:
        raise ValueError(f"expected --beam >= 1, got {beam}")
    data = load_data(args.data)
    check_data(data, args.folder)
    model = load_averaged(config, data, args.folder)
    if args.input is not None and not args.input.is_file():
        raise ValueError(f"--input: there is no {args.input}")
    lines = read_lines(args.input) if args.input else read_standard_input()
    for line in translate_text(model, data, lines, beam=beam, length_penalty=config.length_penalty):
        print(line)


def _compare(args: argparse.Namespace) -> None:
    from recipes.translation.compare import compare

    _set_threads(args)
    data = load_data(args.data)
    print(data.summary())
    configs = {row: _config(args, data, row) for row in args.rows}
    print(compare(configs, data, args.out, seeds=args.seeds, accelerator=args.accelerator, progress=not args.quiet))


if __name__ == "__main__":
    raise_on_sigterm()
    sys.exit(main())
