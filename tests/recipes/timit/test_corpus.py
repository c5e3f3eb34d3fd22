from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile

from recipes.timit.corpus import (
    END_TOLERANCE,
    Corpus,
    CorpusError,
    Segment,
    find_corpus,
    load_corpus,
    read_audio,
    read_phn,
)
from recipes.timit.phones import transcript_39

N_GOOD = 8  # utterances of the made-up tree, without SA


def everything(corpus: Corpus) -> list[str]:
    return [u.key for split in ("train", "dev", "test") for u in corpus.split(split)]


@contextmanager
def moved(path: Path, target: Path) -> Iterator[None]:
    path.rename(target)
    try:
        yield
    finally:
        target.rename(path)


# TIMIT itself: 462, 50 and 24 speakers


@pytest.fixture(scope="module")
def timit_corpus(timit: Path) -> Corpus:
    return load_corpus(timit)


def test_timit_has_its_counts(timit_corpus: Corpus) -> None:
    corpus = timit_corpus
    assert (corpus.name, corpus.labels, corpus.sample_rate, corpus.bandwidth) == ("TIMIT", "human", 16000, 8000.0)
    counts = [(len({u.speaker for u in its}), len(its)) for its in (corpus.train, corpus.dev, corpus.test)]
    assert counts == [(462, 3696), (50, 400), (24, 192)]
    assert sum(len(transcript_39(u.segments)) for u in corpus.dev) == 15057
    assert sum(len(transcript_39(u.segments)) for u in corpus.test) == 7215
    assert corpus.skipped == ()
    assert "3696 utterances" in corpus.summary() and "INCOMPLETE" not in corpus.summary()


def test_timit_leaves_out_sa_sentences_and_other_test_speakers(timit_corpus: Corpus) -> None:
    corpus = timit_corpus
    keys = everything(corpus)
    assert len(set(keys)) == len(keys) == 4288
    assert not [key for key in keys if key.endswith(("_sa1", "_sa2"))]
    assert not {"mxyz0", "fsa10", "msx10"} & {u.speaker for u in corpus.dev + corpus.test}
    for its in (corpus.train, corpus.dev, corpus.test):
        assert [u.key for u in its] == sorted(u.key for u in its)


@pytest.mark.parametrize(
    ("split", "n_women", "digest"), [("dev", 18, "403ee9d0901e6493"), ("test", 8, "b1342cbe60c721ae")]
)
def test_speaker_lists_are_kaldis(timit_corpus: Corpus, split: str, n_women: int, digest: str) -> None:
    # The digests are those of the sorted names in Kaldi's conf/dev_spk.list and conf/test_spk.list.
    speakers = sorted({u.speaker for u in timit_corpus.split(split)})
    assert sum(speaker.startswith("f") for speaker in speakers) == n_women
    assert hashlib.sha256(" ".join(speakers).encode()).hexdigest()[:16] == digest


def test_words_in_the_path_above_do_not_change_the_split(timit: Path, timit_corpus: Corpus) -> None:
    assert {"train", "test", "sa1"} <= set(re.findall("train|test|sa1", str(timit.parent)))
    assert {u.wav.relative_to(timit).parts[0] for u in timit_corpus.train} == {"TRAIN"}


@pytest.mark.parametrize("levels", [1, 2])
def test_folder_above_will_do(timit: Path, levels: int) -> None:
    assert find_corpus(timit.parents[levels - 1]).samefile(timit)


def test_missing_dev_and_core_test_speakers_are_named(timit: Path, tmp_path: Path) -> None:
    dev, core = (next(timit.glob(f"TEST/DR?/{name}")) for name in ("FADG0", "MWEW0"))
    with moved(dev, tmp_path / "a"), moved(core, tmp_path / "b"), pytest.raises(CorpusError) as error:
        load_corpus(timit)
    message = str(error.value)
    assert "dev has 49 of 50 speakers and 392 of 400 utterances; missing speakers: fadg0" in message
    assert "test has 23 of 24 speakers and 184 of 192 utterances; missing speakers: mwew0" in message
    assert "train has" not in message


def test_missing_train_speaker_is_located(timit: Path, tmp_path: Path) -> None:
    with moved(timit / "TRAIN/DR3/M3070", tmp_path / "a"), pytest.raises(CorpusError) as error:
        load_corpus(timit)
    assert "train has 461 of 462 speakers and 3688 of 3696 utterances" in str(error.value)
    assert "DR3 has 75 of 76" in str(error.value)


def test_missing_utterance_is_located(timit: Path, tmp_path: Path) -> None:
    folder = timit / "TRAIN/DR1/M1000"
    with (
        moved(folder / "SX2.WAV", tmp_path / "a"),
        moved(folder / "SX2.PHN", tmp_path / "b"),
        pytest.raises(CorpusError, match=r"3695 of 3696 .* m1000 has 7 of 8 \(si1 si2 si3 sx1 sx3 sx4 sx5\)"),
    ):
        load_corpus(timit, skip_bad=True)


def test_extra_utterance_is_named(timit: Path) -> None:
    extra = timit / "TRAIN/DR1/M1000/SX1 (copy).WAV"
    shutil.copy(extra.with_name("SX1.WAV"), extra)
    try:
        with pytest.raises(CorpusError, match=r"m1000 has 9 of 8 \(.*sx1 \(copy\)"):
            load_corpus(timit)
    finally:
        extra.unlink()


@pytest.mark.parametrize("target", ["TRAIN/DR2/M1000", "TEST/DR1/M1000"])
def test_doubled_speaker_is_named_with_both_folders(timit: Path, target: str) -> None:
    shutil.copytree(timit / "TRAIN/DR1/M1000", timit / target)
    try:
        with pytest.raises(CorpusError, match="more than once: m1000") as error:
            load_corpus(timit, skip_bad=True)
        assert str(timit / target) in str(error.value) and str(timit / "TRAIN/DR1/M1000") in str(error.value)
    finally:
        shutil.rmtree(timit / target)


def test_dev_speaker_in_train_is_an_error(timit: Path) -> None:
    home = next(timit.glob("TEST/DR?/FADG0"))
    with moved(home, timit / "TRAIN/DR1/FADG0"), pytest.raises(CorpusError, match="in TRAIN: fadg0"):
        load_corpus(timit)


def test_labels_that_are_not_timits_are_noticed(timit: Path, tmp_path: Path) -> None:
    phn = next(timit.glob("TEST/DR?/MWEW0")) / "SX1.PHN"
    with moved(phn, tmp_path / "a"):
        phn.write_text("0 400 h#\n400 800 iy\n")
        with pytest.raises(CorpusError, match=r"\.PHN files of test hold \d+ phones .* expected 7215"):
            load_corpus(timit)
        phn.unlink()


# Finding the corpus


def test_stand_in_is_described_by_its_json(tree) -> None:
    corpus = load_corpus(tree.root)
    assert (corpus.name, corpus.labels, corpus.sample_rate, corpus.bandwidth) == ("made-up", "exact", 16000, 8000.0)
    assert [u.key for u in corpus.train] == ["fsa10_si9", "fsa10_sx1", "mabc0_si9", "mabc0_sx1"]
    assert [u.key for u in corpus.dev] == ["fdev0_si9", "fdev0_sx1"]
    assert [u.key for u in corpus.test] == ["mtst0_si9", "mtst0_sx1"]
    utterance = corpus.train[-1]
    assert (utterance.speaker, utterance.sentence, utterance.n_samples) == ("mabc0", "sx1", 8000)
    assert (utterance.wav, utterance.phn) == (tree.wav, tree.phn)
    assert utterance.segments[1] == Segment(2000, 3000, "sh")


@pytest.mark.parametrize("case", [str.lower, str.title, str.swapcase])
def test_case_of_names_does_not_matter(make_tree, case: Callable[[str], str]) -> None:
    assert everything(load_corpus(make_tree("a", case).root)) == everything(load_corpus(make_tree("b").root))


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="nowhere does not exist; give the folder"):
        load_corpus(tmp_path / "nowhere")


def test_file_instead_of_folder(tree) -> None:
    with pytest.raises(CorpusError, match=r"SX1\.WAV is a file, not a folder"):
        load_corpus(tree.wav)


def test_folder_that_is_not_timit(tmp_path: Path) -> None:
    (tmp_path / "LibriSpeech").mkdir()
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(
        CorpusError, match=r"looked for a folder that contains TRAIN and TEST.*found LibriSpeech, notes.txt"
    ):
        load_corpus(tmp_path)
    with pytest.raises(CorpusError, match="found nothing"):
        load_corpus(tmp_path / "LibriSpeech")


def test_train_and_test_of_something_else(tmp_path: Path) -> None:
    for half in ("train", "test"):
        (tmp_path / half / "cats").mkdir(parents=True)
        (tmp_path / half / "cats" / "1.jpg").write_text("")
    with pytest.raises(CorpusError, match=r"no speech in TIMIT's layout.*found train.cats.1\.jpg"):
        load_corpus(tmp_path)


def test_small_corpus_without_description_is_not_taken_for_timit(tree) -> None:
    (tree.root / "corpus.json").unlink()
    with pytest.raises(CorpusError, match=r"is not all of TIMIT: train has 2 of 462 speakers.*corpus.json"):
        load_corpus(tree.root)


def test_part_of_a_corpus(tree) -> None:
    with pytest.raises(CorpusError, match=f"give the folder above it, {re.escape(str(tree.root))}"):
        load_corpus(tree.root / "TRAIN")


def test_several_corpora_are_ambiguous(make_tree, tmp_path: Path) -> None:
    make_tree("one"), make_tree("two/data")
    with pytest.raises(CorpusError, match=r"several corpora: .*one, .*data; give one of them"):
        load_corpus(tmp_path)


def test_link_to_a_corpus_and_hidden_folders_are_not_ambiguous(make_tree, tmp_path: Path) -> None:
    tree = make_tree("one")
    make_tree(".two.partial")
    (tmp_path / "link").symlink_to(tree.root, target_is_directory=True)
    assert find_corpus(tmp_path).samefile(tree.root)


def test_two_train_folders_are_an_error(tree) -> None:
    try:
        (tree.root / "train").mkdir()
    except FileExistsError:
        pytest.skip("the file system does not tell upper from lower case")
    with pytest.raises(CorpusError, match="both TRAIN and train"):
        load_corpus(tree.root)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "TIMIT"}, "without 'TIMIT'"),
        ({"labels": "guessed"}, "labels 'guessed'"),
        ({"sample_rate": None}, "no 'sample_rate'"),
        ({"bandwidth": 9000}, "bandwidth 9000"),
        ({"speakers": {"train": ["mabc0", "fdev0"], "dev": ["FDEV0"], "test": ["mtst0"]}}, "more than once: fdev0"),
        ({"speakers": {"train": ["mabc0"], "dev": [], "test": ["mtst0"]}}, "no speakers in dev"),
        ({"utterances": {"train": 4, "dev": 2}}, "no 'test'"),
        ({"speakers": "mabc0"}, "indices"),
    ],
)
def test_bad_description(tree, changes: dict[str, object], message: str) -> None:
    tree.describe(**changes)
    with pytest.raises(CorpusError, match=rf"corpus\.json: not a description .*{message}"):
        load_corpus(tree.root)


def test_description_that_is_not_json(tree) -> None:
    (tree.root / "corpus.json").write_text("{")
    with pytest.raises(CorpusError, match=r"corpus\.json: not a description"):
        load_corpus(tree.root)


def test_stand_in_speaker_missing_and_one_too_many(tree) -> None:
    tree.folder("mabc0").rename(tree.folder("mnew0"))
    with pytest.raises(CorpusError, match="missing speakers: mabc0; speakers that do not belong: mnew0"):
        load_corpus(tree.root)


def test_stand_in_count_is_asserted(tree) -> None:
    tree.describe(utterances={"train": 4, "dev": 3, "test": 2})
    with pytest.raises(CorpusError, match=r"dev has 1 of 1 speakers and 2 of 3 utterances.*make the stand-in again"):
        load_corpus(tree.root)


def test_progress_counts_to_the_end(tree) -> None:
    calls: list[tuple[int, int]] = []
    load_corpus(tree.root, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i + 1, N_GOOD) for i in range(N_GOOD)]


def test_unknown_split_is_an_error(tree) -> None:
    with pytest.raises(ValueError, match="expected one of train, dev, test"):
        load_corpus(tree.root).split("valid")


# Formats and copies

SPHERE_HEADER = """NIST_1A
   1024
database_id -s5 TIMIT
database_version -s3 1.0
utterance_id -s8 abc0_sx1
channel_count -i 1
sample_count -i {count}
sample_rate -i 16000
sample_min -i -3000
sample_max -i 2999
sample_n_bytes -i 2
sample_byte_format -s2 {order}
sample_sig_bits -i 16
end_head
"""


def sphere_bytes(samples: np.ndarray, order: str = "01") -> bytes:
    header = SPHERE_HEADER.format(count=len(samples), order=order).encode().ljust(1024, b" ")
    return header + samples.astype("<i2" if order == "01" else ">i2").tobytes()


@pytest.mark.parametrize("order", ["01", "10"])
def test_sphere_is_read_exactly_whatever_its_name(tmp_path: Path, order: str) -> None:
    samples = np.arange(-32768, 32768, 7, dtype=np.int16)
    for name in ("a.WAV", "a.wav", "a.mp3", "a"):
        (tmp_path / name).write_bytes(sphere_bytes(samples, order))
        audio = read_audio(tmp_path / name)
        assert audio.dtype == np.float32
        np.testing.assert_array_equal(audio * 32768, samples)


def test_riff_is_read_exactly(tree, tmp_path: Path) -> None:
    tree.riff(tmp_path / "a.WAV", tree.noise())
    np.testing.assert_array_equal(read_audio(tmp_path / "a.WAV") * 32768, tree.noise())


def test_other_rate_on_request(tree, tmp_path: Path) -> None:
    tree.riff(tmp_path / "a.wav", tree.noise(), rate=8000)
    assert len(read_audio(tmp_path / "a.wav", sample_rate=8000)) == 8000


def test_riff_copy_beside_the_original_counts_once(tree) -> None:
    for wav in tree.root.rglob("*.WAV"):
        samples, _ = soundfile.read(wav, dtype="int16")
        tree.riff(wav.with_name(wav.name + ".wav"), samples)
    corpus = load_corpus(tree.root)
    assert len(everything(corpus)) == N_GOOD
    assert {u.wav.suffixes[-1] for u in corpus.train} == {".WAV"}


def test_riff_copy_alone_will_do(tree) -> None:
    tree.wav.unlink()
    tree.riff(tree.wav.with_name("SX1.WAV.wav"), tree.noise())
    assert load_corpus(tree.root).train[-1].wav.name == "SX1.WAV.wav"


def test_sphere_is_preferred_by_its_first_bytes(tree) -> None:
    samples, _ = soundfile.read(tree.wav, dtype="int16")
    tree.wav.rename(tree.wav.with_name("SX1.WAV.WAV"))
    tree.riff(tree.wav, samples)
    assert load_corpus(tree.root).train[-1].wav.name == "SX1.WAV.WAV"


def test_copy_may_differ_by_rounding(tree) -> None:
    samples, _ = soundfile.read(tree.wav, dtype="int16")
    rounded = samples + np.where(np.arange(len(samples)) % 2, 1, -1).astype(np.int16)
    tree.riff(tree.wav.with_name("SX1.WAV.wav"), rounded)
    assert len(everything(load_corpus(tree.root))) == N_GOOD


@pytest.mark.parametrize(("n_samples", "problem"), [(8000, "samples differ by up to"), (7999, "8000 and 7999 samples")])
def test_conflicting_copy_is_an_error(tree, n_samples: int, problem: str) -> None:
    copy = tree.wav.with_name("SX1.WAV.wav")
    tree.riff(copy, tree.noise(n_samples, seed=99))
    with pytest.raises(CorpusError, match=problem) as error:
        load_corpus(tree.root)
    assert str(tree.wav) in str(error.value) and str(copy) in str(error.value)
    assert [s.key for s in load_corpus(tree.root, skip_bad=True).skipped] == ["mabc0_sx1"]


def test_conflicting_label_files_are_an_error(tree) -> None:
    other = tree.phn.with_name("sx1.phn")
    if other.exists():
        pytest.skip("the file system does not tell upper from lower case")
    other.write_text(tree.phn.read_text())
    assert len(everything(load_corpus(tree.root))) == N_GOOD
    other.write_text("0 8000 h#\n")
    with pytest.raises(CorpusError, match="two label files"):
        load_corpus(tree.root)


def test_notes_of_other_programs_are_not_audio(tree) -> None:
    tree.wav.with_name("._SX1.WAV").write_bytes(b"\0\5\26\7Mac OS X")
    (tree.wav.parent / ".cache").mkdir()
    tree.sphere(tree.wav.parent / ".cache" / "SX7.WAV", tree.noise())
    (tree.root / "TRAIN" / "Thumbs.db").write_bytes(b"x")
    assert len(everything(load_corpus(tree.root))) == N_GOOD


# Bad files: each is an error that names the file, or a reported skip


def cut(path: Path, n_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:n_bytes])


def as_float(tree, scale: float = 1.0, bad: float | None = None) -> None:
    samples = (tree.noise() / 32768 * scale).astype(np.float32)
    if bad is not None:
        samples[[5, 77]] = bad
    tree.riff(tree.wav, samples, subtype="FLOAT")


def long_header(tree) -> None:
    """A RIFF file whose data begin after 6000 bytes of notes, cut short."""
    tree.riff(tree.wav, tree.noise())
    riff = tree.wav.read_bytes()
    notes = b"LIST" + (6000).to_bytes(4, "little") + b"INFO".ljust(6000, b"\0")
    tree.wav.write_bytes((riff[:36] + notes + riff[36:])[:-1000])


BAD_AUDIO = {
    "truncated SPHERE": (lambda t: cut(t.wav, 9000), "truncated: its header promises 8000 samples, it holds 3988"),
    "truncated RIFF": (
        lambda t: (t.riff(t.wav, t.noise()), cut(t.wav, 10044)),
        "truncated: its header promises 8000 samples, it holds 5000",
    ),
    "truncated RIFF with notes": (long_header, "truncated: its header promises 8000 samples, it holds 7500"),
    "no bytes": (lambda t: t.wav.write_bytes(b""), "empty file"),
    "no samples": (lambda t: t.sphere(t.wav, t.noise()[:0]), "no samples"),
    "cut header": (lambda t: cut(t.wav, 40), "damaged NIST SPHERE header"),
    "NaN": (lambda t: as_float(t, bad=np.nan), "2 of 8000 samples are NaN or infinite"),
    "infinity": (lambda t: as_float(t, bad=-np.inf), "2 of 8000 samples are NaN or infinite"),
    "unscaled floats": (lambda t: as_float(t, scale=32768), r"float samples reach 3000, expected \[-1, 1\]"),
    "8 kHz": (lambda t: t.sphere(t.wav, t.noise(), rate=8000), "8000 Hz, expected 16000 Hz"),
    "stereo": (lambda t: t.sphere(t.wav, np.stack([t.noise()] * 2, 1)), "2 channels, expected one"),
    "web page": (lambda t: t.wav.write_text("<html>Not found</html>"), "cannot be read as audio"),
    "shortened": (
        lambda t: t.wav.write_bytes(t.wav.read_bytes().replace(b"-s3 pcm\n", b"-s26 pcm,embedded-shorten-v2.00\n", 1)),
        "compressed NIST SPHERE.*sph2pipe",
    ),
}
BAD_UTTERANCE = {
    "399 samples": (lambda t: t.sphere(t.wav, t.noise(399)), "399 samples, shorter than one frame of 25 ms"),
    "all zero": (lambda t: t.sphere(t.wav, t.noise() * 0), "every sample is zero"),
    "no audio": (lambda t: t.wav.unlink(), "no audio file"),
    "no labels": (lambda t: t.phn.unlink(), "no label file"),
}
BAD_LABELS = {
    "no rows": ("", "no segments"),
    "blank": ("\n \n", "no segments"),
    "two fields": ("0 4000 h#\n4000 8000\n", ":2: expected `begin end phone`.*'4000 8000'"),
    "four fields": ("0 4000 h# 7\n", ":1: expected `begin end phone`"),
    "not a number": ("0 4k h#\n", ":1: expected `begin end phone`"),
    "seconds": ("0.0 0.25 h#\n", ":1: expected `begin end phone`"),
    "unknown phone": ("0 4000 h#\n4000 8000 xx\n", ":2: xx is not one of TIMIT's 61 phones"),
    "stress mark": ("0 8000 iy1\n", ":1: iy1 is not one of"),
    "negative": ("-1 8000 h#\n", ":1: h# runs from sample -1 to 8000"),
    "empty segment": ("0 4000 h#\n4000 4000 iy\n", ":2: iy runs from sample 4000 to 4000"),
    "backwards": ("4000 0 h#\n", ":1: h# runs from sample 4000 to 0"),
    "overlap": ("0 4000 h#\n3999 8000 iy\n", ":2: iy begins at sample 3999 and overlaps .* ends at 4000"),
    "out of order": ("4000 8000 h#\n0 4000 iy\n", ":2: iy begins at sample 0, out of order"),
    "beyond the end": ("0 9601 h#\n", ":1: h# ends at sample 9601, beyond the audio's 8000"),
    "begins beyond the end": ("0 8000 h#\n8000 8100 h#\n", ":2: h# ends at sample 8100, beyond"),
    "early row beyond the end": ("0 8100 h#\n8100 8200 h#\n", ":1: h# ends at sample 8100, beyond"),
    "not text": ("0 8000 h#\xff\n", "cannot be read as text"),
}


def assert_bad(tree, message: str) -> None:
    with pytest.raises(CorpusError, match=rf"1 of 8 utterances are bad:\n.*{message}[\s\S]*--skip-bad") as error:
        load_corpus(tree.root)
    assert "MABC0" in str(error.value) and "SX1" in str(error.value)
    corpus = load_corpus(tree.root, skip_bad=True)
    assert len(everything(corpus)) == N_GOOD - 1
    (skipped,) = corpus.skipped
    assert (skipped.split, skipped.key) == ("train", "mabc0_sx1")
    assert re.search(message, skipped.reason) and skipped.path.parent == tree.folder()
    assert "INCOMPLETE: bad utterances left out: 1 of train" in corpus.summary()
    assert skipped.reason in corpus.summary()


@pytest.mark.parametrize("case", BAD_AUDIO)
def test_bad_audio(tree, case: str) -> None:
    spoil, message = BAD_AUDIO[case]
    spoil(tree)
    with pytest.raises(CorpusError, match=message) as error:
        read_audio(tree.wav)
    assert str(error.value).startswith(f"{tree.wav}: ")
    assert_bad(tree, message)


@pytest.mark.parametrize("case", BAD_UTTERANCE)
def test_bad_utterance(tree, case: str) -> None:
    spoil, message = BAD_UTTERANCE[case]
    spoil(tree)
    assert_bad(tree, message)


@pytest.mark.parametrize("case", BAD_LABELS)
def test_bad_labels(tree, case: str) -> None:
    rows, message = BAD_LABELS[case]
    tree.phn.write_bytes(rows.encode("latin-1"))
    with pytest.raises(CorpusError, match=message) as error:
        read_phn(tree.phn, n_samples=8000)
    assert str(error.value).startswith(f"{tree.phn}:")
    assert_bad(tree, message)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for read in (lambda path: read_audio(path), lambda path: read_phn(path, n_samples=1)):
        with pytest.raises(CorpusError, match="nowhere: no such file"):
            read(tmp_path / "nowhere")


def test_one_frame_is_long_enough(tree) -> None:
    tree.sphere(tree.wav, tree.noise(400))
    tree.phn.write_text("0 400 h#\n")
    assert load_corpus(tree.root).train[-1].n_samples == 400


def test_all_bad_files_are_reported_at_once(tree) -> None:
    cut(tree.wav, 9000)
    tree.phn.with_name("SI9.PHN").write_text("")
    with pytest.raises(CorpusError, match="2 of 8 utterances are bad") as error:
        load_corpus(tree.root)
    assert "truncated" in str(error.value) and "no segments" in str(error.value)


def test_split_without_a_good_utterance_is_an_error(tree) -> None:
    for phn in tree.folder("fdev0", "dev").glob("S[IX]*.PHN"):
        phn.unlink()
    with pytest.raises(CorpusError, match=r"no good utterance in dev; first reason: .*no label file"):
        load_corpus(tree.root, skip_bad=True)


# Labels that are allowed


def test_last_end_is_clamped_within_the_tolerance(tree) -> None:
    for end in (8001, 8000 + END_TOLERANCE):
        tree.phn.write_text(f"0 4000 h#\n4000 {end} iy\n")
        assert read_phn(tree.phn, n_samples=8000)[-1] == Segment(4000, 8000, "iy")


def test_gaps_and_unlabelled_edges_are_allowed(tree) -> None:
    tree.phn.write_text("160 4000 iy\n4100 7000 h#\n")
    assert read_phn(tree.phn, n_samples=8000) == (Segment(160, 4000, "iy"), Segment(4100, 7000, "h#"))


def test_labels_in_other_writing(tree) -> None:
    tree.phn.write_bytes(b"0\t4000  H#\r\n4000 8000 AX-H \r\n\r\n")
    assert read_phn(tree.phn, n_samples=8000) == (Segment(0, 4000, "h#"), Segment(4000, 8000, "ax-h"))


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="needs links")
def test_speaker_folders_may_be_links(tree, tmp_path: Path) -> None:
    home = tree.folder()
    home.rename(tmp_path / "elsewhere")
    home.symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert "mabc0_sx1" in everything(load_corpus(tree.root))


def test_an_utterance_of_q_alone_is_bad(tree) -> None:
    tree.phn.write_text("0 8000 q\n")
    assert_bad(tree, r"SX1\.PHN: no phone but q")


def test_a_description_that_may_not_be_read_is_named(tree, monkeypatch) -> None:
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(CorpusError, match=r"corpus\.json: cannot be read \(Permission denied\)"):
        load_corpus(tree.root)
