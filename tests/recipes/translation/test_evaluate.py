"""BLEU in both ways, a run that learns a toy language, translation of new text, the comparison and its table."""

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("tokenizers")
pytest.importorskip("sacremoses")
pytest.importorskip("sacrebleu")

from recipes.translation.__main__ import main
from recipes.translation.compare import compare, is_finished, load_run, markdown, sampling
from recipes.translation.config import Config
from recipes.translation.data import Data, Vocabulary
from recipes.translation.evaluate import Result, bleu, evaluate, translate_text
from recipes.translation.quantize import Unavailable
from recipes.translation.training import load_averaged, train

LEARNS = {
    "updates": 600,
    "save_every": 200,
    "label_smoothing": 0.0,
    "lr": 1e-2,
    "batch_tokens": 400,
    "dropout": 0.0,
    "dim": 32,
    "average": 1,
}


@pytest.fixture(scope="module")
def learned(data: Data, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    run_dir = tmp_path_factory.mktemp("learned")
    config = Config(
        mixer="dynamicconv", decoder_k="ffn", ffn=32, heads=2, encoder_layers=1, decoder_layers=1, max_length=40,
        warmup=50, **LEARNS,
    )  # fmt: skip
    train(config, data, run_dir, accelerator="cpu", progress=False)
    evaluate(config, data, run_dir, accelerator="cpu", progress=False)
    return config, run_dir


REFERENCES = ["the cat sat on the mat .", "it's a dog , he said ."]


def test_bleu_by_hand() -> None:
    # 6 of 7 words, 4 of 6, 3 of 5 and 2 of 4 sequences of two, three and four; no brevity penalty.
    score, signature = bleu(["the cat lay on the mat ."], REFERENCES[:1], tokenized=True)
    assert score == pytest.approx(100 * (6 / 7 * 4 / 6 * 2 / 5 * 1 / 4) ** 0.25)
    assert "tok:none" in signature and "case:mixed" in signature


def test_detokenised_bleu_ignores_case_and_cuts_by_itself() -> None:
    plain = ["The cat sat on the mat.", "It's a dog, he said."]
    score, signature = bleu([line.lower() for line in plain], plain, tokenized=False)
    assert score == 100.0 and "tok:13a" in signature and "case:lc" in signature
    assert bleu(REFERENCES, REFERENCES, tokenized=True)[0] == 100.0
    assert bleu(REFERENCES, REFERENCES[::-1], tokenized=True)[0] < 10.0
    with pytest.raises(ValueError, match="expected a reference for each of 2 sentences, got 1"):
        bleu(REFERENCES, REFERENCES[:1], tokenized=True)


def test_it_learns_the_numbers_and_says_what_it_found(learned, data) -> None:
    config, run_dir = learned
    result = Result.load(run_dir / "result.json")
    assert result.test_bleu > 90 and result.test_detokenized > 85 and result.valid_bleu > 90
    assert (result.updates, result.checkpoints, result.beam) == (config.updates, 1, 4)
    assert "a stand-in and not IWSLT'14" in result.data
    hypotheses = (run_dir / "test.hyp").read_text().splitlines()
    assert bleu(hypotheses, data.splits["test"].tokens, tokenized=True)[0] == result.test_bleu
    try:
        int8 = evaluate(config, data, run_dir, accelerator="cpu", progress=False, int8=True)
    except Unavailable:
        pass
    else:
        assert int8.test_bleu > 80 and int8.parameters == result.parameters
        assert Result.load(run_dir / "int8.json") == int8 and Result.load(run_dir / "result.json") == result
    greedy = evaluate(replace(config, beam=1), data, run_dir, accelerator="cpu", progress=False)
    assert greedy.beam == 1 and greedy.test_bleu > 80
    evaluate(config, data, run_dir, accelerator="cpu", progress=False)


def test_new_text_is_translated_in_its_order_and_empty_lines_stay(learned, data) -> None:
    config, run_dir = learned
    model = load_averaged(config, data, run_dir)
    lines = ["Drei vier eins.", "", "Zehn acht.", "   ", "\x01\x02"]
    found = translate_text(model, data, lines, beam=4, length_penalty=1.0)
    assert found == ["three four one.", "", "ten eight.", "", ""]
    with pytest.raises(ValueError, match=r"line 2 has .* subwords, and the model takes 1024: cut it"):
        translate_text(model, data, ["Eins.", "eins " * 2000], beam=1, length_penalty=1.0)


# --- comparison ---


def test_a_comparison_is_for_one_process(data, tiny, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="expected one process, got 2: compare trains one run after another"):
        compare({"transformer": tiny("transformer")}, data, tmp_path, seeds=[0], accelerator="cpu", progress=False)


def test_a_comparison_trains_what_is_missing_and_only_that(data, tiny, tmp_path) -> None:
    rows = ("transformer", "dynamicconv-k-ffn")
    configs = {row: tiny(row, updates=4) for row in rows}
    table = compare(configs, data, tmp_path, seeds=[0, 1], accelerator="cpu", progress=False)
    assert "| Transformer | " in table and " ± " in table and "| 34.4 |" in table
    assert "Seed 0, BLEU of tokens with 95 %" in table and "(p = " in table
    assert "numbers, a stand-in and not IWSLT'14. Seeds: 0, 1; mean and standard deviation." in table
    assert (tmp_path / "table.md").read_text() == table + "\n" and (tmp_path / "curves.png").stat().st_size > 10_000
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/result.json")}
    assert len(times) == 4
    assert compare(configs, data, tmp_path, seeds=[0, 1], accelerator="cpu", progress=False) == table
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/result.json")} == times
    folder = tmp_path / "transformer-seed0"
    assert is_finished(configs["transformer"], folder)
    assert not is_finished(replace(configs["transformer"], updates=8), folder)
    # Another search than the run's own, which the table would mix with it.
    evaluate(replace(configs["transformer"], beam=1), data, folder, accelerator="cpu", progress=False)
    assert not is_finished(configs["transformer"], folder)
    assert compare(configs, data, tmp_path, seeds=[0, 1, 0], accelerator="cpu", progress=False) == table
    runs = [load_run("transformer", folder)]
    assert "Seeds: 0." in markdown(runs, data.title)
    (folder / "result.json").unlink()
    with pytest.raises(ValueError, match=r"result\.json is missing: train and evaluate the run first"):
        load_run("transformer", folder)


def test_a_comparison_does_not_take_runs_of_other_data_for_its_own(data, tiny, tmp_path) -> None:
    configs = {"transformer": tiny("transformer", updates=4)}
    compare(configs, data, tmp_path, seeds=[0], accelerator="cpu", progress=False)
    shuffled = replace(data, target=Vocabulary(data.target.tokenizer, data.target.kept[::-1]))
    with pytest.raises(ValueError, match="transformer-seed0 was trained with other subwords of the same number"):
        compare(configs, shuffled, tmp_path, seeds=[1, 0], accelerator="cpu", progress=False)
    assert not (tmp_path / "transformer-seed1").exists(), "told before the others are trained"


def test_a_better_model_is_told_from_one_that_is_as_good(data) -> None:
    references = data.splits["test"].tokens
    worse = [" ".join(line.split()[:-1]) if i % 2 else line for i, line in enumerate(references)]
    # The same number of errors, on other sentences.
    other = [line if i % 2 else " ".join(line.split()[:-1]) for i, line in enumerate(references)]
    note = sampling({"transformer": references, "dynamicconv": worse, "dynamicconv-k-ffn": other}, references, 0)
    parts = note.split(": ", 1)[1].split("; ")
    p_values = [float(part.split("p = ")[1].rstrip(").")) for part in parts[1:]]
    assert parts[0].startswith("DynamicConv ") and "p = " not in parts[0]
    assert parts[1].startswith("Transformer 100.00 ± 0.00") and p_values[0] < 0.01 < 0.05 < p_values[1]
    assert sampling({"transformer": references}, references, 0) == ""


# --- command line ---


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


TINY = ("--preset", "small", "--dim", 32, "--ffn", 32, "--encoder-layers", 1, "--decoder-layers", 1, "--updates", 4,
        "--batch-tokens", 200, "--save-every", 2)  # fmt: skip


def test_commands_from_training_to_translation(prepared, tmp_path, capsys, monkeypatch) -> None:
    out = tmp_path / "run"
    shared = ("--data", prepared, "--accelerator", "cpu", "--quiet")
    assert run("train", "--row", "transformer", "--out", out, *shared, *TINY) == 0
    printed = capsys.readouterr().out
    assert "numbers, a stand-in and not IWSLT'14: pairs: 400 in train" in printed
    result = json.loads(printed[printed.index("{") :])
    assert (result["updates"], result["left_out"]) == (4, 0)
    # As earlier versions wrote it.
    del result["left_out"]
    (tmp_path / "older.json").write_text(json.dumps(result))
    assert Result.load(tmp_path / "older.json").left_out is None
    assert run("evaluate", "--run", out, "--beam", 1, *shared) == 0
    assert json.loads(capsys.readouterr().out)["beam"] == 1
    (tmp_path / "german").write_text("Eins zwei.\n\nDrei.\n")
    assert run("translate", "--run", out, "--data", prepared, "--input", tmp_path / "german") == 0
    from_file = capsys.readouterr().out
    assert from_file.count("\n") == 3 and from_file.splitlines()[1] == ""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Eins zwei.\n\nDrei.\n")))
    assert run("translate", "--run", out, "--data", prepared) == 0
    assert capsys.readouterr().out == from_file
    assert run("compare", "--out", tmp_path / "all", "--rows", "transformer", *shared, *TINY) == 0
    assert "| Transformer |" in capsys.readouterr().out


def test_counts_and_preparation(prepared, tmp_path, capsys) -> None:
    assert run("counts") == 0
    assert "29,936,128" in capsys.readouterr().out
    assert run("counts", "--vocabularies", 100, 50) == 0
    assert "100 German and 50 English" in capsys.readouterr().out
    source = tmp_path / "plain"
    source.mkdir()
    for split in ("train", "valid", "test"):
        for language in ("de", "en"):
            (source / f"{split}.{language}").write_text((prepared / f"{split}.{language}").read_text())
    arguments = ("prepare", "iwslt", "--source", source, "--out", tmp_path / "out", "--symbols", 60, "--quiet")
    assert run(*arguments) == 0
    assert capsys.readouterr().out.startswith("IWSLT'14: pairs: 400 in train")
    assert run(*arguments) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run(*arguments, "--overwrite") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("counts", "--vocabularies", 3, 50), "at least 4 subwords"),
        (("prepare", "iwslt", "--out", "{tmp}/x"), "iwslt needs --source"),
        (("prepare", "debian", "--out", "{tmp}/x", "--source", "{tmp}"), "--source is for iwslt, not for debian"),
        (("prepare", "iwslt", "--out", "{tmp}/x", "--source", "{tmp}"), "train.de is missing"),
        (("train", "--out", "{tmp}/x", "--data", "{tmp}/nothing"), "dataset.json is missing"),
        (("train", "--out", "{tmp}/x", "--data", "{data}", "--threads", 0), "expected --threads >= 1"),
        (("train", "--out", "{tmp}/x", "--data", "{data}", "--heads", 3), "multiple of heads"),
        (
            ("train", "--out", "{tmp}/x", "--data", "{data}", "--row", "transformer", "--mixer", "dynamicconv"),
            "the row 'transformer' has --mixer attention: give another row, or leave --mixer out",
        ),
        (("train", "--out", "{data}/train.de", "--data", "{data}"), "train.de: File exists"),
        (("train", "--out", "{data}/train.de/x", "--data", "{data}"), "train.de/x: Not a directory"),
        (("evaluate", "--run", "{tmp}/x", "--data", "{data}"), "config.json is missing: expected the folder of a run"),
        (("translate", "--run", "{tmp}/x", "--data", "{data}"), "config.json is missing"),
    ],
)
def test_errors_of_use_are_one_line(arguments, message, prepared, tmp_path, capsys) -> None:
    filled = [str(a).format(tmp=tmp_path, data=prepared) for a in arguments]
    assert main(filled) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_translation_with_the_wrong_data_or_file(learned, prepared, tmp_path, capsys) -> None:
    _, run_dir = learned
    assert run("translate", "--run", run_dir, "--data", prepared, "--input", tmp_path / "none") == 2
    assert "--input: there is no" in capsys.readouterr().err
    assert run("translate", "--run", run_dir, "--data", prepared, "--beam", 0) == 2
    assert "expected --beam >= 1, got 0" in capsys.readouterr().err
    source = tmp_path / "plain"
    source.mkdir()
    for split in ("train", "valid", "test"):
        for language in ("de", "en"):
            (source / f"{split}.{language}").write_text((prepared / f"{split}.{language}").read_text())
    assert run("prepare", "iwslt", "--source", source, "--out", tmp_path / "o", "--symbols", 50, "--quiet") == 0
    assert run("translate", "--run", run_dir, "--data", tmp_path / "o") == 2
    assert "was trained on other data" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert run("evaluate", "--run", run_dir, "--data", prepared, "--accelerator", "gpu") == 2
        assert "--accelerator gpu: " in capsys.readouterr().err
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "result.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"result\.json cannot be read \(missing 'signatures'\): remove it to evaluate"
    ):
        Result.load(tmp_path / "cut" / "result.json")


def test_a_reader_that_has_enough_ends_the_translation_quietly(learned, prepared, tmp_path) -> None:
    (tmp_path / "many").write_text("Eins.\n" * 20_000)
    (tmp_path / "few").write_text("Eins.\n")
    command = [sys.executable, "-m", "recipes.translation", "translate", "--run", str(learned[1]), "--data",
               str(prepared), "--threads", "1", "--beam", "1", "--input"]  # fmt: skip
    with subprocess.Popen(
        [*command, str(tmp_path / "many")], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 141
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [*command, str(tmp_path / "few")], stdout=full, stderr=subprocess.PIPE, text=True, env=environment
        )
    assert (result.returncode, result.stderr) == (2, "error: standard output: No space left on device\n")
