"""``python -m recipes.shufflenet counts|prepare|train|evaluate|latency|compare``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import torch

from recipes.common.command import raise_on_sigterm, run_command
from recipes.common.options import add_config_options, given_options
from recipes.shufflenet.config import PRESETS, Config, default_preset
from recipes.shufflenet.counts import PAPER_MIXINGS, count_all, markdown
from recipes.shufflenet.data import ImageData, load_images
from recipes.shufflenet.model import CHANNELS, K_INITS, MIXINGS, STAGE2

DEFAULT_ROWS = ("shuffle", "none", "random", "hadamard", "k-odo", "k-odo:shuffle", "k")


def main(argv: list[str] | None = None) -> int:
    """Run one command; errors of use end in one line on stderr and exit status 2."""
    return run_command(_parser(), argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m recipes.shufflenet", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    counts = commands.add_parser("counts", help="parameters and multiply-adds beside the paper's, as a Markdown table")
    counts.add_argument("--widths", nargs="+", type=float, default=list(CHANNELS), metavar="WIDTH")
    counts.add_argument(
        "--mixings", nargs="+", default=list(PAPER_MIXINGS), choices=MIXINGS, metavar="NAME",
        help=f"of {', '.join(MIXINGS)} (default: {' '.join(PAPER_MIXINGS)})",
    )  # fmt: skip
    counts.add_argument("--stage2", nargs="+", default=list(STAGE2), choices=STAGE2, help="default: both")
    counts.add_argument("--image-size", type=int, default=224, help="height and width in pixels (default: 224)")
    counts.set_defaults(run=_counts)

    prepare = commands.add_parser("prepare", help="build a stand-in for ImageNet in its layout")
    prepare.add_argument("data", choices=["openclipart"])
    prepare.add_argument("--out", type=Path, required=True, help="folder to write")
    prepare.add_argument("--size", type=int, default=64, help="height and width in pixels (default: 64)")
    prepare.add_argument("--seed", type=int, default=0, help="of the split into train and val")
    prepare.add_argument("--package", type=Path, help="the .deb file or unpacked tree (default: download it, 131 MB)")
    prepare.add_argument("--work", type=Path, help="folder of the download (default: OUT-work)")
    prepare.add_argument("--overwrite", action="store_true", help="replace the folder if this command made it")
    prepare.add_argument("--quiet", action="store_true", help="no progress bar")
    prepare.set_defaults(run=_prepare)

    train = commands.add_parser("train", help="train one network with one seed, and evaluate it")
    train.add_argument("--out", type=Path, required=True, help="folder of the run; an unfinished one is resumed")
    _run_options(train)
    _config_options(train, leave_out=())
    train.set_defaults(run=_train)

    evaluate = commands.add_parser("evaluate", help="score a trained run again: top-1, top-5, and of averaged weights")
    evaluate.add_argument("--run", type=Path, required=True, dest="folder", help="folder of the run")
    _run_options(evaluate)
    evaluate.set_defaults(run=_evaluate)

    latency = commands.add_parser("latency", help="milliseconds an image of every network, side by side, in Markdown")
    latency.add_argument("--widths", nargs="+", type=float, default=list(CHANNELS), metavar="WIDTH")
    latency.add_argument(
        "--mixings", nargs="+", default=list(MIXINGS), choices=MIXINGS, metavar="NAME",
        help=f"of {', '.join(MIXINGS)} (default: all); the first is what the others are compared with",
    )  # fmt: skip
    latency.add_argument("--stage2", nargs="+", default=["authors"], choices=STAGE2, help="default: authors")
    latency.add_argument("--image-size", type=int, default=224, help="height and width in pixels (default: 224)")
    latency.add_argument("--accelerator", choices=("auto", "cpu", "gpu"), default="auto")
    latency.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    latency.add_argument("--quiet", action="store_true", help="no progress bar")
    latency.set_defaults(run=_latency)

    compare = commands.add_parser("compare", help="train several networks over several seeds; table and figure")
    compare.add_argument("--out", type=Path, required=True, help="folder of the comparison; finished runs are kept")
    compare.add_argument(
        "--rows", nargs="+", default=list(DEFAULT_ROWS), metavar="ROW",
        help=f"mixings ({', '.join(MIXINGS)}), K-matrices also as NAME:START with START of {', '.join(K_INITS)} "
        f"(default: {' '.join(DEFAULT_ROWS)})",
    )  # fmt: skip
    compare.add_argument(
        "--widths", nargs="+", type=float, default=[0.25, 0.5], metavar="WIDTH", help="default: .25 .5"
    )
    compare.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="default: 0 1 2")
    _run_options(compare)
    _config_options(compare, leave_out=("width", "mixing", "k_init", "position", "seed"))
    compare.set_defaults(run=_compare)
    return parser


def _run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="folder with train/CLASS/* and val/CLASS/*")
    parser.add_argument("--accelerator", choices=("auto", "cpu", "gpu"), default="auto", help="default: %(default)s")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own)")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images (default: 0, in this one)")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def _config_options(parser: argparse.ArgumentParser, leave_out: tuple[str, ...]) -> None:
    preset_help = "default: authors for ImageNet, small for others"
    add_config_options(parser, Config, PRESETS, preset_help=preset_help, leave_out=leave_out)


def _config(args: argparse.Namespace, data: ImageData) -> Config:
    return Config(**{**PRESETS[args.preset or default_preset(data.name)], **given_options(args)})


def _check_options(args: argparse.Namespace) -> None:
    if args.threads is not None:
        if args.threads < 1:
            raise ValueError(f"expected --threads >= 1, got {args.threads}")
        torch.set_num_threads(args.threads)
    if getattr(args, "workers", 0) < 0:
        raise ValueError(f"expected --workers >= 0, got {args.workers}")


def _counts(args: argparse.Namespace) -> None:
    if args.image_size < 1:
        raise ValueError(f"expected --image-size >= 1, got {args.image_size}")
    counts = count_all(args.widths, args.mixings, args.stage2, image_size=args.image_size)
    print(markdown(counts, image_size=args.image_size))


def _prepare(args: argparse.Namespace) -> None:
    from recipes.shufflenet.prepare import prepare_openclipart

    prepare_openclipart(
        args.out,
        size=args.size,
        seed=args.seed,
        package=args.package,
        work=args.work,
        overwrite=args.overwrite,
        progress=not args.quiet,
    )


def _train(args: argparse.Namespace) -> None:
    from recipes.shufflenet.evaluation import evaluate
    from recipes.shufflenet.training import train

    _check_options(args)
    data = load_images(args.data)
    config = _config(args, data)
    options = {"accelerator": args.accelerator, "workers": args.workers}
    if train(config, data, args.out, progress=not args.quiet, **options):
        print(data.summary())
        print(json.dumps(dataclasses.asdict(evaluate(config, data, args.out, **options)), indent=1))


def _evaluate(args: argparse.Namespace) -> None:
    from recipes.shufflenet.evaluation import evaluate

    _check_options(args)
    path = args.folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{path} is missing: expected the folder of a run")
    data = load_images(args.data)
    result = evaluate(Config.load(path), data, args.folder, accelerator=args.accelerator, workers=args.workers)
    print(json.dumps(dataclasses.asdict(result), indent=1))


def _latency(args: argparse.Namespace) -> None:
    from recipes.shufflenet.latency import latency_table

    _check_options(args)
    if args.image_size < 1:
        raise ValueError(f"expected --image-size >= 1, got {args.image_size}")
    networks = [
        Config(width=width, mixing=mixing, stage2=stage2)
        for width in args.widths
        for stage2 in args.stage2
        for mixing in args.mixings
    ]
    options = {"threads": args.threads, "accelerator": args.accelerator, "progress": not args.quiet}
    print(latency_table(networks, args.image_size, **options))


def _compare(args: argparse.Namespace) -> None:
    from recipes.shufflenet.compare import Row, compare

    _check_options(args)
    rows = [Row.of(name) for name in args.rows]
    data = load_images(args.data)
    print(data.summary())
    table = compare(
        _config(args, data),
        data,
        args.out,
        rows=rows,
        widths=args.widths,
        seeds=args.seeds,
        accelerator=args.accelerator,
        workers=args.workers,
        threads=args.threads,
        progress=not args.quiet,
    )
    print(table)


if __name__ == "__main__":
    raise_on_sigterm()
    sys.exit(main())
