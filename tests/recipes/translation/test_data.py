"""Prepared folders: formats, subwords, batches, and every way in which the files may not fit."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("tokenizers")
pytest.importorskip("sacremoses")

from recipes.timit.corpus import CorpusError
from recipes.translation.data import (
    Data,
    Vocabulary,
    batches,
    endless_batches,
    learn_vocabularies,
    load_data,
    moses_tokens,
    padded,
    read_lines,
    read_standard_input,
    write_data,
)
from recipes.translation.model import EOS, PAD, UNK
from recipes.translation.prepare import (
    Pair,
    aligned,
    description_pairs,
    dictionary_pairs,
    help_pairs,
    prepare_debian,
    prepare_iwslt,
    problem_of,
    split_by_document,
)
from tests.recipes.translation.toy import SIZES, numbers


def test_what_is_written_is_read_again(data: Data, prepared: Path) -> None:
    assert {split: len(pairs) for split, pairs in data.splits.items()} == SIZES
    german, english = numbers()["test"]
    pairs = data.splits["test"]
    assert pairs.text == english
    assert pairs.tokens == [line.lower().replace(".", " .") for line in english]
    assert data.target.decode(pairs.target) == pairs.tokens
    assert data.source.decode(pairs.source) == moses_tokens(german, "de")
    assert all(sentence[-1] == EOS and (sentence != PAD).all() for sentence in pairs.source + pairs.target)
    about = json.loads((prepared / "dataset.json").read_text())
    assert about["vocabularies"] == {"de": len(data.source), "en": len(data.target)}
    assert "a stand-in and not IWSLT'14" in data.title


def test_subwords_of_unseen_words_and_signs() -> None:
    (vocabulary,) = learn_vocabularies([["low lower lowest", "new newer"]], 30, joint=False)
    (ids,) = vocabulary.encode(["lower ß new"])
    assert ids[-1] == EOS and ids.tolist().count(UNK) == 1
    assert vocabulary.decode([ids]) == ["lower <unk> new"]
    assert vocabulary.decode([[PAD, *ids, 5, 6]]) == ["lower <unk> new"]


def test_languages_share_an_encoding_or_not() -> None:
    lines = [["abab abab"], ["baba cc"]]
    joint, own = learn_vocabularies(lines, 20, joint=True), learn_vocabularies(lines, 20, joint=False)
    assert joint[0].tokenizer is joint[1].tokenizer and own[0].tokenizer is not own[1].tokenizer
    # Each language keeps what occurs in it alone.
    assert joint[0].encode(["cc"])[0].tolist().count(UNK) > 0 and UNK not in joint[1].encode(["cc"])[0]


def test_a_vocabulary_comes_back_from_its_file(data: Data, tmp_path: Path) -> None:
    data.target.save(tmp_path / "bpe.json")
    again = Vocabulary.load(tmp_path / "bpe.json")
    assert again.fingerprint() == data.target.fingerprint() != data.source.fingerprint()
    line = data.splits["test"].tokens[0]
    np.testing.assert_array_equal(again.encode([line])[0], data.target.encode([line])[0])


@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.integers(5, 100), st.booleans())
def test_batches_hold_every_sentence_once_and_no_more_subwords_than_they_may(lengths, tokens, shuffled) -> None:
    lengths = np.array(lengths)
    found = batches(lengths, tokens, (3, 1) if shuffled else None)
    assert sorted(np.concatenate(found).tolist()) == list(range(len(lengths)))
    for batch in found:
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= tokens


def test_endless_batches_go_on_where_they_were_left_and_share_out() -> None:
    lengths = np.random.default_rng(0).integers(2, 20, 50)

    def first(n: int, **options: int) -> list[list[int]]:
        stream = endless_batches(lengths, 60, 1, **options)
        return [next(stream).tolist() for _ in range(n)]

    whole = first(60)
    assert first(40, skip=20) == whole[20:]
    assert first(20, rank=1, world=3, skip=10) == whole[31::3][:10] + first(30, rank=1, world=3)[20:]
    epoch = len(batches(lengths, 60, (1, 0)))
    assert whole[:epoch] != whole[epoch : 2 * epoch]


def test_padding_comes_last() -> None:
    assert padded([np.array([5, EOS]), np.array([7, 8, EOS])]).tolist() == [[5, EOS, PAD], [7, 8, EOS]]


# --- files that do not fit ---


@pytest.fixture
def broken(prepared: Path, tmp_path: Path) -> Path:
    return shutil.copytree(prepared, tmp_path / "copy")


def test_a_missing_file_is_named(broken: Path) -> None:
    (broken / "valid.tok.de").unlink()
    with pytest.raises(CorpusError, match=r"valid\.tok\.de is missing: expected a folder that .* prepare"):
        load_data(broken)


def test_a_line_too_few_is_named(broken: Path) -> None:
    lines = (broken / "test.tok.en").read_text().splitlines()
    (broken / "test.tok.en").write_text("\n".join(lines[1:]) + "\n")
    with pytest.raises(CorpusError, match=r"expected 30 lines in every file of test, got .*'tok.en': 29"):
        load_data(broken)


def test_an_empty_line_is_named(broken: Path) -> None:
    lines = (broken / "train.tok.de").read_text().splitlines()
    (broken / "train.tok.de").write_text("\n".join([*lines[:6], " ", *lines[7:]]) + "\n")
    with pytest.raises(CorpusError, match=r"train\.tok\.de, line 7 is empty"):
        load_data(broken)


def test_a_sentence_longer_than_the_models_take_is_named(broken: Path) -> None:
    # Train leaves pairs out, and the English of test is only compared.
    for name, refused in (("train.tok.de", 0), ("valid.tok.en", 1), ("test.tok.de", 1), ("test.tok.en", 0)):
        whole = (broken / name).read_text()
        lines = whole.splitlines()
        (broken / name).write_text("\n".join([*lines[:4], "null " * 1023 + "eins", *lines[5:]]) + "\n")
        if refused:
            with pytest.raises(CorpusError, match=rf"{name}, line 5 has \d+ subwords, and the models take 1024: cut"):
                load_data(broken)
        else:
            load_data(broken)
        (broken / name).write_text(whole)


def test_text_in_another_encoding_is_named(broken: Path) -> None:
    (broken / "test.en").write_bytes("Größe\n".encode("latin-1"))
    with pytest.raises(CorpusError, match=r"test\.en is no UTF-8 text .* iconv"):
        load_data(broken)


def test_nothing_is_overwritten_unasked_and_a_failure_leaves_nothing(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="overwrite it"):
        write_data(prepared, numbers(), {"name": "numbers"}, symbols=60, joint=True, progress=False)
    unequal = {**numbers(), "valid": (["Eins."], [])}
    with pytest.raises(CorpusError, match="valid: expected as many German as English sentences, and some, got 1 and 0"):
        write_data(tmp_path / "out", unequal, {"name": "x"}, symbols=60, joint=True, progress=False)
    assert not list(tmp_path.iterdir())


def test_lines_end_at_line_feeds_alone(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes("one\u2028two\r\nthree\u0085\n".encode())
    assert read_lines(tmp_path / "text") == ["one\u2028two", "three\u0085"]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"\xef\xbb\xbfone\n\xef\xbb\xbf\n")
    assert read_lines(tmp_path / "text") == ["one", "\ufeff"]


def test_standard_input_is_cut_as_files_are(monkeypatch) -> None:
    def standard_input(content: bytes) -> list[str]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="ascii"))
        return read_standard_input()

    assert standard_input("ä\u2028b\x0cc\u0085\n\nd\n".encode()) == ["ä\u2028b\x0cc\u0085", "", "d"]
    with pytest.raises(CorpusError, match=r"standard input is no UTF-8 text \(line 2: "):
        standard_input(b"one\n\xff\n")
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(CorpusError, match="standard input is closed: give text on it, or a file as --input"):
        read_standard_input()


@pytest.mark.parametrize("name", ["dataset.json", "bpe.de.json"])
@pytest.mark.parametrize("content", ["", "{}", "[]"])
def test_broken_descriptions_are_named(broken: Path, name: str, content: str) -> None:
    (broken / name).write_text(content)
    with pytest.raises(ValueError, match=rf"{name} cannot be read \(.*\): prepare the data anew"):
        load_data(broken)


# --- IWSLT'14 ---


def write_iwslt(folder: Path) -> Path:
    folder.mkdir()
    for split, sides in numbers().items():
        for language, lines in zip(("de", "en"), sides, strict=True):
            (folder / f"{split}.{language}").write_text("".join(f"{line}\n" for line in lines))
    return folder


def test_iwslt_from_plain_text(tmp_path: Path) -> None:
    source = write_iwslt(tmp_path / "plain")
    lines = (source / "train.en").read_text().splitlines()
    (source / "train.en").write_text("\n".join(["", *lines[1:]]) + "\n")
    found = load_data(prepare_iwslt(tmp_path / "out", source, symbols=60, progress=False))
    assert found.title == "IWSLT'14" and len(found.splits["train"]) == SIZES["train"] - 1
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["left_out"] == {"empty": 1}


def test_sentences_of_control_characters_alone_are_empty(tmp_path: Path) -> None:
    source = write_iwslt(tmp_path / "plain")
    for name in ("train.de", "valid.en"):
        lines = (source / name).read_text().splitlines()
        (source / name).write_text("\n".join([*lines[:2], "\x01", *lines[3:]]) + "\n")
    with pytest.raises(CorpusError, match=r"valid\.tok\.en: sentence 3 has no token"):
        prepare_iwslt(tmp_path / "out", source, symbols=60, progress=False)
    assert not list(tmp_path.glob("out*"))
    (source / "valid.en").write_text("".join(f"{line}\n" for line in numbers()["valid"][1]))
    found = load_data(prepare_iwslt(tmp_path / "out", source, symbols=60, progress=False))
    assert len(found.splits["train"]) == SIZES["train"] - 1
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["left_out"] == {"empty": 1}


def test_where_a_folder_cannot_be_written(tmp_path: Path, monkeypatch) -> None:
    options = {"joint": True, "overwrite": True, "progress": False}
    with pytest.raises(ValueError, match="expected --symbols >= 1, got 0"):
        write_data(tmp_path / "out", numbers(), {"name": "x"}, symbols=0, **options)
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="file is a file: expected a folder to write"):
        write_data(tmp_path / "file", numbers(), {"name": "x"}, symbols=60, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert load_data(write_data(Path(), numbers(), {"name": "x"}, symbols=60, **options)).name == "x"


def test_the_text_itself_and_folders_of_others_are_not_overwritten(tmp_path: Path) -> None:
    source = write_iwslt(tmp_path / "plain")
    options = {"symbols": 60, "overwrite": True, "progress": False}
    for out in (source, tmp_path):
        with pytest.raises(ValueError, match=r"would be written over .*plain, which is needed"):
            prepare_iwslt(out, source, **options)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.jpg").touch()
    with pytest.raises(FileExistsError, match="photos is not a folder that this recipe made"):
        prepare_iwslt(tmp_path / "photos", source, **options)
    with pytest.raises(ValueError, match="would be written over"):
        prepare_debian(tmp_path / "out", package=tmp_path / "out", **options)
    with pytest.raises(ValueError, match="would be written over"):
        prepare_debian(tmp_path / "out", work=tmp_path / "out" / "work", **options)
    assert (source / "train.de").exists() and (tmp_path / "photos" / "mine.jpg").exists()
    assert load_data(prepare_iwslt(source / "prepared", source, **options)).name == "IWSLT'14"
    assert load_data(prepare_iwslt(source / "prepared", source, **options)).name == "IWSLT'14"


def test_iwslt_in_tokens_gets_plain_text_too(tmp_path: Path) -> None:
    source = write_iwslt(tmp_path / "tokens")
    for path in source.iterdir():
        path.write_text(path.read_text().replace(".", " ."))
    found = load_data(prepare_iwslt(tmp_path / "out", source, symbols=60, tokenized=True, progress=False))
    assert found.splits["test"].text == numbers()["test"][1]
    assert found.splits["test"].tokens[0].endswith(" .")


def test_iwslt_that_does_not_fit(tmp_path: Path) -> None:
    source = write_iwslt(tmp_path / "plain")
    test = source / "test.de"
    lines = test.read_text().splitlines()
    test.write_text("\n".join(lines[1:]) + "\n")
    with pytest.raises(CorpusError, match=r"test\.de has 29 lines and .*test\.en 30"):
        prepare_iwslt(tmp_path / "out", source, progress=False)
    test.write_text("\n".join([*lines[:3], "", *lines[4:]]) + "\n")
    with pytest.raises(CorpusError, match=r"test\.de, line 4 is empty"):
        prepare_iwslt(tmp_path / "out", source, progress=False)
    test.unlink()
    with pytest.raises(CorpusError, match=r"test\.de is missing: .* prepare-iwslt14\.sh"):
        prepare_iwslt(tmp_path / "out", source, progress=False)


# --- the stand-in ---


def test_descriptions_are_joined_on_their_checksum(tmp_path: Path) -> None:
    head = "Package: libfoo-dev\nDescription-md5: aa\n"
    german = f"{head}Description-de: Bibliothek für Töne\n Sie ist schnell. Sehr schnell!\n .\n * ein Punkt\n"
    english = f"{head}Description-en: library for sounds\n It is fast. Very fast!\n .\n * an item\n"
    other = "\nPackage: bar\nDescription-md5: bb\nDescription-en: something else\n"
    (tmp_path / "x_Translation-de").write_text(german)
    (tmp_path / "x_Translation-en").write_text(english + other)
    assert list(description_pairs(tmp_path)) == [
        Pair("description foo", "Bibliothek für Töne", "library for sounds"),
        Pair("description foo", "Sie ist schnell.", "It is fast."),
        Pair("description foo", "Sehr schnell!", "Very fast!"),
        Pair("description foo", "ein Punkt", "an item"),
    ]


def test_help_is_joined_on_page_and_identifier(tmp_path: Path) -> None:
    pages = {
        "de": '<p id="par_id1">Ein <b>fetter</b> Text.</p><p>ohne</p><h1 id="hd_id2">Titel</h1>',
        "en-US": '<h1 id="hd_id2">Title</h1><p id="par_id1">A <b>bold</b> text.</p><p id="par_id3">More.</p>',
    }
    for language, page in pages.items():
        path = tmp_path / "usr/share/libreoffice/help" / language / "text" / "a.html"
        path.parent.mkdir(parents=True)
        path.write_text(page)
    # In the order of the German page.
    found = [(pair.german, pair.english) for pair in help_pairs(tmp_path)]
    assert found == [("Ein fetter Text.", "A bold text."), ("Titel", "Title")]


def test_example_sentences_of_the_dictionary(tmp_path: Path) -> None:
    path = tmp_path / "usr/share/trans/de-en"
    path.parent.mkdir(parents=True)
    path.write_text(
        "# a comment :: Ein Satz.\n"
        "Haus {n} | Das Haus ist rot. [ugs.] :: house | The house is red. (note)\n"
        "Baum | Der Baum :: tree\n"
    )
    assert list(dictionary_pairs(tmp_path)) == [Pair("dictionary 1", "Das Haus ist rot.", "The house is red.")]


def test_paragraphs_of_unequal_number_are_not_guessed() -> None:
    assert list(aligned("d", ["Eins.", "Zwei."], ["One."])) == []
    assert list(aligned("d", ["Das ist es. Und mehr."], ["This is it, and more."])) == [
        Pair("d", "Das ist es. Und mehr.", "This is it, and more.")
    ]


@pytest.mark.parametrize(
    ("german", "english", "problem"),
    [
        ("Das ist gut.", "Good.", "too short or too long"),
        ("Das ist gut.", "This is a very long sentence beside the other one.", "of unequal length"),
        ("Siehe https://x.org für mehr", "See https://x.org for more", "not text"),
        ("1 2 3 4 5 6 7", "1 2 3 4 5 6 7.", "not text"),
        ("The name of the file", "The name of this file", "untranslated"),
        ("Das ist ein guter Satz.", "This is a good sentence.", None),
    ],
)
def test_what_is_left_out(german: str, english: str, problem: str | None) -> None:
    assert problem_of(Pair("", german, english)) == problem


def test_splits_are_documents_and_share_no_sentence() -> None:
    pairs = [Pair(f"d{i // 4}", f"Satz {i % 37}", f"Sentence {i}") for i in range(200)]
    splits = split_by_document(pairs, 20)
    assert {name: len(part) for name, part in splits.items() if name != "train"} == {"valid": 20, "test": 20}
    german = {name: {p.german for p in part} for name, part in splits.items()}
    assert not german["test"] & german["valid"] and not (german["test"] | german["valid"]) & german["train"]
    # A document cut by the size of a split has nothing in the others.
    documents = {name: {p.document for p in part} for name, part in splits.items()}
    assert (
        not documents["test"] & documents["valid"] and not (documents["test"] | documents["valid"]) & documents["train"]
    )
    assert split_by_document(pairs, 20) == splits
    with pytest.raises(CorpusError, match="expected at least 300 pairs"):
        split_by_document(pairs, 100)
