"""Parallel text in a prepared folder: sentences, Moses tokens, subwords, batches.

A prepared folder holds ``train``, ``valid`` and ``test``, each as ``.de`` and ``.en`` (text as it was, a sentence a
line) and as ``.tok.de`` and ``.tok.en`` (Moses tokens, lower-cased); ``bpe.de.json`` and ``bpe.en.json``; and
``dataset.json``, which says what it is. `write_data` makes it and `load_data` reads it.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from recipes.common.files import check_free, naming, new_folder
from recipes.timit.corpus import CorpusError
from recipes.translation.config import LONGEST
from recipes.translation.model import EOS, PAD, UNK

SPLITS = ("train", "valid", "test")
LANGUAGES = ("de", "en")
_SPECIAL = ("<pad>", "</s>", "<unk>")
_SUFFIX = "</w>"

MADE = ("pairs", "bpe", "vocabularies")
"""Names in every dataset.json that `write_data` writes: a folder with them may be overwritten."""

_PREPARE_ANEW = "prepare the data anew"

Text = Mapping[str, tuple[Sequence[str], Sequence[str]]]
"""By split: German sentences and the English ones, in the same order."""


def moses_tokens(lines: Iterable[str], language: str) -> list[str]:
    """Lower-cased Moses tokens, with spaces between them.

    >>> moses_tokens(["Don't (stop)."], "en")
    ["don 't ( stop ) ."]
    """
    from sacremoses import MosesTokenizer

    tokenizer = MosesTokenizer(lang=language)
    return [tokenizer.tokenize(line, return_str=True, escape=False).lower() for line in lines]


def detokenized(lines: Iterable[str], language: str = "en") -> list[str]:
    """Text of Moses tokens.

    >>> detokenized(["don 't ( stop ) ."])
    ["don't (stop)."]
    """
    from sacremoses import MosesDetokenizer

    detokenizer = MosesDetokenizer(lang=language)
    return [detokenizer.detokenize(line.split(), unescape=False) for line in lines]


class Vocabulary:
    """Subwords of one language: byte-pair encoding within tokens, and those of its symbols that occur in train.

    Args:
        tokenizer: the encoding, which may be shared with the other language.
        kept: ids of the encoding that this language uses, in the order of its own ids, which begin after the
            special ones.
    """

    def __init__(self, tokenizer: Tokenizer, kept: Sequence[int]) -> None:
        self.tokenizer = tokenizer
        self.kept = list(kept)
        self._own = np.full(tokenizer.get_vocab_size(), UNK)
        self._own[self.kept] = np.arange(len(self.kept)) + len(_SPECIAL)

    def __len__(self) -> int:
        return len(_SPECIAL) + len(self.kept)

    def encode(self, lines: Sequence[str]) -> list[np.ndarray]:
        """Ids of lines of tokens, each with `EOS` at its end."""
        encoded = self.tokenizer.encode_batch(list(lines))
        return [np.append(self._own[np.array(e.ids, dtype=np.int64)], EOS) for e in encoded]

    def decode(self, ids: Iterable[Sequence[int]]) -> list[str]:
        """Lines of tokens; padding and everything from `EOS` on is left out."""
        lines = []
        for sentence in ids:
            symbols = []
            for i in sentence:
                if i == EOS:
                    break
                if i != PAD:
                    symbols.append(self._symbol(int(i)))
            lines.append("".join(symbols).replace(_SUFFIX, " ").strip())
        return lines

    def _symbol(self, i: int) -> str:
        first = len(_SPECIAL)
        return str(self.tokenizer.id_to_token(self.kept[i - first])) if i >= first else _SPECIAL[i] + _SUFFIX

    def fingerprint(self) -> str:
        """Of the subwords in the order of their ids: weights fit no vocabulary with another one."""
        symbols = [str(self.tokenizer.id_to_token(i)) for i in self.kept]
        return hashlib.sha256("\n".join(symbols).encode()).hexdigest()[:16]

    def save(self, path: Path) -> None:
        """Write as JSON."""
        content = {"kept": self.kept, "tokenizer": json.loads(self.tokenizer.to_str())}
        path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Read what `save` wrote."""
        with naming(path, _PREPARE_ANEW):
            content = json.loads(path.read_text(encoding="utf-8"))
            described = json.dumps(content["tokenizer"])
            try:
                tokenizer = Tokenizer.from_str(described)
            except Exception as error:  # all that the tokenizers package raises
                raise ValueError(str(error)) from error
            return cls(tokenizer, content["kept"])


def learn_vocabularies(lines: Sequence[Sequence[str]], symbols: int, *, joint: bool) -> list[Vocabulary]:
    """Byte-pair encodings of some languages.

    Args:
        lines: of tokens, for each language.
        symbols: size of each encoding.
        joint: one encoding for all languages, of which each keeps the symbols that occur in its lines.
    """
    if joint:
        tokenizers = [_learn((line for part in lines for line in part), symbols=symbols)] * len(lines)
    else:
        tokenizers = [_learn(part, symbols=symbols) for part in lines]
    vocabularies = []
    for tokenizer, part in zip(tokenizers, lines, strict=True):
        used: set[int] = set()
        for encoded in tokenizer.encode_batch(list(part)):
            used.update(encoded.ids)
        used.discard(tokenizer.token_to_id("<unk>"))
        vocabularies.append(Vocabulary(tokenizer, sorted(used)))
    return vocabularies


def _learn(lines: Iterable[str], *, symbols: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix=_SUFFIX))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.BPEDecoder(suffix=_SUFFIX)
    trainer = trainers.BpeTrainer(
        vocab_size=symbols, special_tokens=["<unk>"], end_of_word_suffix=_SUFFIX, show_progress=False
    )
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def write_data(
    out: Path,
    text: Text,
    about: Mapping[str, object],
    *,
    symbols: int,
    joint: bool,
    left_out: Mapping[str, int] | None = None,
    tokenized: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Tokenise parallel text, learn its subwords and write a prepared folder, as a whole or not at all.

    Everything but the subwords is the same every time. The tokenizers package breaks ties between pairs of equal
    number at random, so that a few subwords differ: models to be compared learn from one and the same folder, and
    `Vocabulary.fingerprint` tells one from another.

    Args:
        out: the folder.
        text: by split.
        about: what ``dataset.json`` says; at least a ``"name"``.
        symbols: of each byte-pair encoding.
        joint: one encoding for both languages.
        left_out: pairs that are in no split, by reason. Those of train without a token on either side, e.g. of
            control characters, are left out here, and counted as "empty".
        tokenized: the text already consists of Moses tokens; it is only lower-cased.
        overwrite: replace a folder that this function wrote.
        progress: show progress bars.

    Returns:
        ``out``.

    Raises:
        FileExistsError: ``out`` exists, and is not to be overwritten or not such a folder.
        CorpusError: splits without sentences or with unequal numbers of them; valid or test with a sentence that has
            no token.
        ValueError: ``symbols`` below 1.
    """
    if symbols < 1:
        raise ValueError(f"expected --symbols >= 1, got {symbols}")
    out = out.resolve()
    check_free(out, overwrite=overwrite, made=MADE)
    for split in SPLITS:
        german, english = text[split]
        if len(german) != len(english) or not german:
            raise CorpusError(
                f"{split}: expected as many German as English sentences, and some, got {len(german)} and {len(english)}"
            )
    jobs = [(split, language) for split in SPLITS for language in LANGUAGES]
    files: dict[str, list[str]] = {}
    for split, language in track(jobs, "Tokenising", disable=not progress, transient=True):
        lines = [" ".join(line.split()) for line in text[split][LANGUAGES.index(language)]]
        files[f"{split}.tok.{language}"] = (
            [line.lower() for line in lines] if tokenized else moses_tokens(lines, language)
        )
        files[f"{split}.{language}"] = detokenized(lines, language) if tokenized else lines
    empty = _without_empty(files)
    vocabularies = learn_vocabularies([files[f"train.tok.{name}"] for name in LANGUAGES], symbols, joint=joint)
    description = {
        **about,
        "left_out": {**(left_out or {}), "empty": (left_out or {}).get("empty", 0) + empty},
        "pairs": {split: len(files[f"{split}.{LANGUAGES[0]}"]) for split in SPLITS},
        "bpe": {"symbols": symbols, "joint": joint},
        "vocabularies": {name: len(v) for name, v in zip(LANGUAGES, vocabularies, strict=True)},
    }
    with new_folder(out, overwrite=overwrite, made=MADE) as folder:
        for name, content in files.items():
            (folder / name).write_text("".join(f"{line}\n" for line in content), encoding="utf-8")
        for language, vocabulary in zip(LANGUAGES, vocabularies, strict=True):
            vocabulary.save(folder / f"bpe.{language}.json")
        described = json.dumps(description, indent=1, ensure_ascii=False)
        (folder / "dataset.json").write_text(described + "\n", encoding="utf-8")
    return out


def _without_empty(files: dict[str, list[str]]) -> int:
    """Leave out of train the pairs with an empty side; their number.

    Args:
        files: lines by name, which must stay in step.

    Raises:
        CorpusError: train has no others, or valid or test has some.
    """
    for name, lines in files.items():
        bare = next((number for number, line in enumerate(lines, 1) if not line.strip()), None)
        if bare is not None and not name.startswith("train."):
            # BLEU on fewer sentences would be another BLEU.
            raise CorpusError(
                f"{name}: sentence {bare} has no token: expected some in every sentence, correct the text"
            )
    train = [name for name in files if name.startswith("train.")]
    columns = list(zip(*(files[name] for name in train), strict=True))
    kept = [sides for sides in columns if all(line.strip() for line in sides)]
    if not kept:
        raise CorpusError("train: expected some pairs with tokens on both sides, found none")
    files.update({name: list(lines) for name, lines in zip(train, zip(*kept, strict=True), strict=True)})
    return len(columns) - len(kept)


@dataclass(frozen=True)
class Pairs:
    """One split.

    Attributes:
        source, target: German and English subwords of every sentence, with `EOS` at the end.
        tokens: lower-cased Moses tokens of the English sentences.
        text: the English sentences as they were.
    """

    source: list[np.ndarray]
    target: list[np.ndarray]
    tokens: list[str]
    text: list[str]

    def __len__(self) -> int:
        return len(self.source)


@dataclass(frozen=True)
class Data:
    """A prepared data set.

    Attributes:
        name: of the data set.
        source, target: German and English vocabulary.
        splits: by name.
    """

    name: str
    source: Vocabulary
    target: Vocabulary
    splits: Mapping[str, Pairs]

    @property
    def title(self) -> str:
        """The name, and whether it is IWSLT'14: what every table says about its numbers."""
        return self.name if self.name == "IWSLT'14" else f"{self.name}, a stand-in and not IWSLT'14"

    def summary(self) -> str:
        """Name and sizes in one line."""
        sizes = ", ".join(f"{len(pairs):,} in {split}" for split, pairs in self.splits.items())
        return f"{self.title}: pairs: {sizes}; subwords: {len(self.source):,} German, {len(self.target):,} English"

    def fingerprint(self) -> str:
        """Of the sentences of all splits: other data may have the same name, sizes and subwords."""
        digest = hashlib.sha256()
        for pairs in self.splits.values():
            # Each sentence has its own end.
            for side in (pairs.source, pairs.target):
                digest.update(np.concatenate(side).tobytes())
            for lines in (pairs.tokens, pairs.text):
                digest.update("\n".join(lines).encode())
        return digest.hexdigest()[:16]


def load_data(root: Path) -> Data:
    """Read a prepared folder.

    Raises:
        CorpusError: a file that is missing or does not fit the others; the message says what to do.
    """
    names = [f"{split}.{kind}" for split in SPLITS for kind in ("de", "en", "tok.de", "tok.en")]
    missing = [n for n in ("dataset.json", "bpe.de.json", "bpe.en.json", *names) if not (root / n).is_file()]
    if missing:
        raise CorpusError(
            f"{root / missing[0]} is missing: expected a folder that `python -m recipes.translation prepare` wrote"
        )
    with naming(root / "dataset.json", _PREPARE_ANEW):
        about = json.loads((root / "dataset.json").read_text(encoding="utf-8"))
        name, numbers = str(about["name"]), {split: int(about["pairs"][split]) for split in SPLITS}
    vocabularies = [Vocabulary.load(root / f"bpe.{language}.json") for language in LANGUAGES]
    splits = {}
    for split in SPLITS:
        lines = {kind: read_lines(root / f"{split}.{kind}") for kind in ("en", "tok.de", "tok.en")}
        check_no_empty({root / f"{split}.{kind}": part for kind, part in lines.items()})
        sizes = {kind: len(part) for kind, part in lines.items()}
        if set(sizes.values()) != {numbers[split]}:
            raise CorpusError(
                f"{root}: expected {numbers[split]} lines in every file of {split}, got {sizes}: prepare it anew"
            )
        encoded = [v.encode(lines[f"tok.{language}"]) for language, v in zip(LANGUAGES, vocabularies, strict=True)]
        # Train may have longer ones, which are left out; the English of test is only compared.
        for language, side in zip(LANGUAGES, encoded, strict=True):
            if split == "valid" or (split, language) == ("test", "de"):
                _check_lengths(side, root / f"{split}.tok.{language}")
        splits[split] = Pairs(encoded[0], encoded[1], lines["tok.en"], lines["en"])
    return Data(name, vocabularies[0], vocabularies[1], splits)


def _check_lengths(sentences: Sequence[np.ndarray], path: Path) -> None:
    """Raise `CorpusError` where a sentence has more subwords than the models have positions."""
    for number, sentence in enumerate(sentences, 1):
        if len(sentence) > LONGEST:
            raise CorpusError(
                f"{path}, line {number} has {len(sentence)} subwords, and the models take {LONGEST}: cut the sentence, "
                "or leave out the pair, and prepare the data anew"
            )


def read_lines(path: Path) -> list[str]:
    """Lines of a UTF-8 file; only line feeds end one.

    Raises:
        CorpusError: not UTF-8.
    """
    return _lines(path.read_bytes(), str(path))


def read_standard_input() -> list[str]:
    """Lines of standard input, cut as `read_lines` does: else the lines of an output would not be those of its input.

    Raises:
        CorpusError: not UTF-8, or closed.
    """
    if sys.stdin is None:
        raise CorpusError("standard input is closed: give text on it, or a file as --input")
    return _lines(sys.stdin.buffer.read(), "standard input")


def _lines(content: bytes, name: str) -> list[str]:
    content = content.removeprefix(codecs.BOM_UTF8)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise CorpusError(f"{name} is no UTF-8 text (line {line}: {error}): convert it, e.g. with iconv") from error
    return [line.rstrip("\r") for line in text.removesuffix("\n").split("\n")] if text else []


def check_no_empty(files: Mapping[Path, Sequence[str]]) -> None:
    """Raise `CorpusError` where a line of a file holds nothing."""
    for path, lines in files.items():
        empty = next((number for number, line in enumerate(lines, 1) if not line.strip()), None)
        if empty is not None:
            raise CorpusError(f"{path}, line {empty} is empty: expected a sentence on every line")


def batches(lengths: np.ndarray, tokens: int, seed: tuple[int, int] | None = None) -> list[np.ndarray]:
    """Sentences of like length together: indices of every batch.

    Args:
        lengths: of every sentence, the longer side of a pair.
        tokens: of a batch at most: its sentences times its longest one. A longer sentence is a batch by itself.
        seed: of a random order of the batches, and of sentences of equal length; None sorts them by length.

    >>> [batch.tolist() for batch in batches(np.array([3, 9, 4, 2]), 10)]
    [[3, 0], [2], [1]]
    """
    generator = None if seed is None else np.random.default_rng(seed)
    order = np.arange(len(lengths)) if generator is None else generator.permutation(len(lengths))
    order = order[np.argsort(lengths[order], kind="stable")]
    result, first = [], 0
    for end in range(1, len(order) + 1):
        if end == len(order) or lengths[order[end]] * (end + 1 - first) > tokens:
            result.append(order[first:end])
            first = end
    if generator is not None:
        return [result[i] for i in generator.permutation(len(result))]
    return result


def padded(sentences: Sequence[np.ndarray]) -> Tensor:
    """Sentences ``(N, T)`` with `PAD` after their ends."""
    longest = max(len(sentence) for sentence in sentences)
    result = torch.full((len(sentences), longest), PAD)
    for row, sentence in zip(result, sentences, strict=True):
        row[: len(sentence)] = torch.from_numpy(sentence)
    return result


def endless_batches(
    lengths: np.ndarray, tokens: int, seed: int, *, rank: int = 0, world: int = 1, skip: int = 0
) -> Iterator[np.ndarray]:
    """Batches of one of several processes, epoch after epoch, each in another order.

    Args:
        lengths, tokens: as `batches` takes them.
        seed: of the orders.
        rank, world: which of how many processes: of every ``world`` batches in turn, each gets one.
        skip: batches of each process to leave out, which it had before an interruption.
    """
    place, epoch = skip * world + rank, 0
    while True:
        every = batches(lengths, tokens, (seed, epoch))
        while place < len(every):
            yield every[place]
            place += world
        place -= len(every)
        epoch += 1
