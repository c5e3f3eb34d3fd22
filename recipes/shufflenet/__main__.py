"""``python -m recipes.shufflenet counts|prepare``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from recipes.shufflenet.counts import PAPER_MIXINGS, count_all, markdown
from recipes.shufflenet.model import CHANNELS, MIXINGS, STAGE2
from recipes.timit.corpus import CorpusError


def main(argv: list[str] | None = None) -> int:
    """Run one command; errors of use end in one line on stderr and exit status 2."""
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except (CorpusError, ValueError, FileNotFoundError, FileExistsError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


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
    prepare.add_argument("--overwrite", action="store_true", help="replace the folder if it exists")
    prepare.add_argument("--quiet", action="store_true", help="no progress bar")
    prepare.set_defaults(run=_prepare)
    return parser


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


if __name__ == "__main__":
    sys.exit(main())
