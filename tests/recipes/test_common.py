"""What the recipes share: options of a configuration, files, and errors of commands."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from recipes.common.command import run_command
from recipes.common.files import check_free, new_folder, replace_text, save_checkpoint
from recipes.common.options import add_config_options, check_choices, check_row, choice, given_options


@dataclass
class Example:
    """An example.

    Attributes:
        kind: of the thing, in `KINDS`,
            over two lines.
        size, share: in 100 %.
        quiet: whether it is.
    """

    kind: str = choice("a", ("a", "b"))
    size: int = 3
    share: float = 0.5
    quiet: bool = False
    hidden: int | None = None


def example_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    presets = {"plain": {}, "small": {"size": 1}}
    add_config_options(parser, Example, presets, preset_help="default: plain", leave_out=("hidden",))
    return parser


def test_options_say_what_they_mean_and_what_they_take() -> None:
    text = " ".join(example_parser().format_help().split())
    assert "--kind {a,b} of the thing, in KINDS, over two lines (default: a)" in text
    assert "--size INT in 100 % (default: 3; small: 1)" in text and "--hidden" not in text
    args = example_parser().parse_args(["--size", "7", "--no-quiet"])
    assert given_options(args) == {"size": 7, "quiet": False}
    with pytest.raises(ValueError, match=r"expected kind in \('a', 'b'\), got 'c'"):
        check_choices(Example(kind="c"))


@pytest.mark.parametrize("name", ["translation", "cifar", "shufflenet"])
@pytest.mark.parametrize("command", ["train", "compare"])
def test_every_option_of_a_recipe_is_explained(name, command, capsys) -> None:
    main = pytest.importorskip(f"recipes.{name}.__main__").main
    with pytest.raises(SystemExit):
        main([command, "--help"])
    entries = capsys.readouterr().out.split("configuration:")[1].split("\n  --")[1:]
    assert len(entries) > 5
    # Defaults alone are no explanation.
    assert not [entry for entry in entries if len(entry.partition("(")[0].split()) < 3 and "preset" not in entry]


def test_a_row_is_not_contradicted() -> None:
    rows = {"plain": {"kind": "a"}}
    check_row("plain", {"kind": "a", "size": 7}, rows)
    with pytest.raises(ValueError, match="the row 'plain' has --kind a: give another row, or leave --kind out"):
        check_row("plain", {"kind": "b"}, rows)


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (PermissionError(13, "Permission denied", "a/b"), 2, "error: a/b: Permission denied\n"),
        (RuntimeError("first:\n\tsecond"), 2, "error: first: second\n"),
        (ValueError("Caught ValueError in DataLoader worker process 0.\nTraceback\nValueError: x.png: no"), 2,
         "error: x.png: no\n"),
        (BrokenPipeError(32, "Broken pipe"), 141, ""),
    ],
)  # fmt: skip
def test_errors_are_one_line(error, status, message, capsys) -> None:
    def run(args: argparse.Namespace) -> None:
        raise error

    parser = argparse.ArgumentParser()
    parser.set_defaults(run=run)
    assert run_command(parser, []) == status
    assert capsys.readouterr().err == message


def test_a_full_disk_is_named(tmp_path) -> None:
    (tmp_path / "a.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: '.*/a\.json'"):
        replace_text(tmp_path / "a.json", "text")
    with pytest.raises(RuntimeError, match=r"a\.pt cannot be written \(.*\): is the disk full\?"):
        save_checkpoint({"a": torch.zeros(100_000)}, tmp_path / "a.pt")


@pytest.mark.parametrize("description", [None, "", "[]", '{"name": "mine"}'])
def test_only_what_a_recipe_made_is_overwritten(tmp_path, description) -> None:
    out = tmp_path / "out"
    (out / "precious").mkdir(parents=True)
    if description is not None:
        (out / "dataset.json").write_text(description)
    with pytest.raises(FileExistsError, match="out is not a folder that this recipe made"):
        check_free(out, overwrite=True, made=("name", "size"))
    (out / "dataset.json").write_text(json.dumps({"name": "ours", "size": 1, "more": 2}))
    with pytest.raises(FileExistsError, match="out exists already"):
        check_free(out, overwrite=False, made=("name", "size"))
    with new_folder(out, overwrite=True, made=("name", "size")) as folder:
        (folder / "new").touch()
        assert (out / "precious").exists()
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob("*")] == [out.relative_to(tmp_path), Path("out/new")]


def test_a_folder_that_is_needed_is_never_in_the_one_that_is_written(tmp_path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "out")
    for needed in (tmp_path / "out", tmp_path / "out" / "a.deb", tmp_path / "link" / "deeper", tmp_path / "x/../out"):
        with pytest.raises(ValueError, match=r"out would be written over .*, which is needed: give another --out"):
            check_free(tmp_path / "out", overwrite=False, made=(), needed=[None, needed])
    # An installed package is in the root of all folders.
    check_free(tmp_path / "out", overwrite=False, made=(), needed=[Path("/"), tmp_path, tmp_path / "out-work"])


@pytest.mark.parametrize("stop", [OSError, KeyboardInterrupt])
def test_a_stop_between_two_renames_leaves_the_old_folder(tmp_path, monkeypatch, stop) -> None:
    with new_folder(tmp_path / "out", overwrite=False, made=()) as folder:
        (folder / "old").touch()

    def rename(path: Path, target: Path) -> Path:
        if path.name.endswith(".partial"):
            raise stop
        return renamed(path, target)

    renamed = Path.rename
    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(stop), new_folder(tmp_path / "out", overwrite=True, made=()) as folder:
        (folder / "new").touch()
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "out", tmp_path / "out" / "old"]


def test_a_folder_that_fails_to_be_written_leaves_the_old_one(tmp_path) -> None:
    with new_folder(tmp_path / "out", overwrite=False, made=()) as folder:
        (folder / "old").touch()
    with pytest.raises(RuntimeError, match="no more"), new_folder(tmp_path / "out", overwrite=True, made=()) as folder:
        (folder / "new").touch()
        raise RuntimeError("no more")
    with pytest.raises(FileExistsError), new_folder(tmp_path / "out", overwrite=False, made=()):
        pass
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "out", tmp_path / "out" / "old"]
