"""Prepare IWSLT'14 De-En, or a stand-in from Debian packages."""

from __future__ import annotations

import gettext
import hashlib
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

from rich.progress import track

from recipes.common.files import check_free
from recipes.timit.corpus import CorpusError
from recipes.timit.prepare.debian import unpack
from recipes.translation.data import LANGUAGES, MADE, SPLITS, check_no_empty, read_lines, write_data

PACKAGES = ("libreoffice-help-de", "libreoffice-help-en-us", "trans-de-en", "libreoffice-l10n-de")
"""Unpacked from the archive; the package descriptions come with the package lists."""

HELD_OUT = 2000
"""Pairs in valid and in test of the stand-in."""

_WORDS = (3, 60)
_RATIO = 2.0


class Pair(NamedTuple):
    """A sentence in both languages and the document that it comes from."""

    document: str
    german: str
    english: str


# --- IWSLT'14 ---


def prepare_iwslt(
    out: Path,
    source: Path,
    *,
    symbols: int = 10_000,
    joint: bool = True,
    tokenized: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Prepare IWSLT'14 De-En from plain text.

    Args:
        out: folder to write.
        source: folder with ``train``, ``valid`` and ``test``, each as ``.de`` and ``.en`` with a sentence a line.
        symbols, joint: as `recipes.translation.data.write_data` takes them.
        tokenized: the files hold Moses tokens already, like those in ``iwslt14.tokenized.de-en/tmp`` that fairseq's
            prepare-iwslt14.sh leaves.
        overwrite: replace a folder that this recipe made.
        progress: show progress bars.

    Raises:
        CorpusError: files that are missing or have unequal numbers of lines; empty lines in valid or test. Pairs of
            train with an empty side are left out and counted in ``dataset.json``.
    """
    check_free(out, overwrite=overwrite, made=MADE, needed=[source])
    text = {}
    for split in SPLITS:
        paths = [source / f"{split}.{language}" for language in LANGUAGES]
        for path in paths:
            if not path.is_file():
                raise CorpusError(
                    f"{path} is missing: expected train, valid and test as .de and .en, a sentence a line. Get "
                    "IWSLT'14 De-En (the WIT3 texts of 2014-01) and cut it as fairseq's prepare-iwslt14.sh does"
                )
        german, english = (read_lines(path) for path in paths)
        if len(german) != len(english):
            raise CorpusError(f"{paths[0]} has {len(german)} lines and {paths[1]} {len(english)}: expected as many")
        if split != "train":
            # BLEU on fewer sentences would be another BLEU.
            check_no_empty(dict(zip(paths, (german, english), strict=True)))
        text[split] = (german, english)
    about = {
        "name": "IWSLT'14",
        "source": f"plain text{', tokenised already' if tokenized else ''}",
    }
    return write_data(
        out, text, about, symbols=symbols, joint=joint, tokenized=tokenized, overwrite=overwrite, progress=progress
    )


# --- the stand-in ---


def prepare_debian(
    out: Path,
    *,
    symbols: int = 6000,
    joint: bool = True,
    package: Path | None = None,
    descriptions: Path | None = None,
    work: Path | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Build the stand-in: descriptions of Debian packages, LibreOffice's help and interface, a dictionary's examples.

    Duplicates and what is no sentence are left out. Valid and test are whole documents, chosen by a hash of their
    names; and no sentence of either language that is in one split is also in another, however it is written.

    Args:
        out: folder to write.
        symbols, joint: as `recipes.translation.data.write_data` takes them.
        package: where the packages are, as `recipes.timit.prepare.debian.unpack` takes it.
        descriptions: folder with files ``*Translation-de`` and ``*Translation-en``; None downloads them.
        work: folder of the downloads; ``OUT-work`` by default.
        overwrite: replace a folder that this recipe made.
        progress: show progress bars.

    Raises:
        CorpusError: something is not there and cannot be downloaded, or holds too little.
    """
    out = out.resolve()
    work = work or out.with_name(out.name + "-work")
    check_free(out, overwrite=overwrite, made=MADE, needed=[package, descriptions, work])
    tree = unpack(PACKAGES, work=work, package=package)
    lists = descriptions or download_descriptions(work)
    sources = {
        "descriptions": lambda: description_pairs(lists),
        "help": lambda: help_pairs(tree),
        "dictionary": lambda: dictionary_pairs(tree),
        "interface": lambda: interface_pairs(tree),
    }
    pairs: list[Pair] = []
    kept: dict[str, int] = {}
    left_out: Counter[str] = Counter()
    seen: set[tuple[str, str]] = set()
    for name, read in track(sources.items(), "Reading", disable=not progress, transient=True):
        before = len(pairs)
        for pair in read():
            problem = problem_of(pair)
            key = (normal(pair.german), normal(pair.english))
            if problem is None and key in seen:
                problem = "duplicates"
            if problem is not None:
                left_out[problem] += 1
                continue
            seen.add(key)
            pairs.append(pair)
        kept[name] = len(pairs) - before
        if not kept[name]:
            raise CorpusError(
                f"no sentences in {name}: expected the packages {', '.join(PACKAGES)}, and both languages"
            )
    splits = split_by_document(pairs, HELD_OUT)
    text = {name: ([p.german for p in part], [p.english for p in part]) for name, part in splits.items()}
    about = {
        "name": "debian-de-en",
        "source": f"Debian: package descriptions; {', '.join(PACKAGES)}",
        "kept": kept,
    }
    return write_data(
        out, text, about, symbols=symbols, joint=joint, left_out=dict(left_out.most_common()), overwrite=overwrite,
        progress=progress,
    )  # fmt: skip


def download_descriptions(work: Path) -> Path:
    """Fetch the package descriptions in both languages with apt-get, into lists of our own, without root.

    Raises:
        CorpusError: there is no apt-get, or nothing came.
    """
    lists = work / "lists"
    if any(lists.glob("*Translation-de")) and any(lists.glob("*Translation-en")):
        return lists
    by_hand = (
        "On a Debian machine set Acquire::Languages to de,en, run `apt-get update`, and give a folder with the files "
        "*Translation-de and *Translation-en (unpacked) of /var/lib/apt/lists"
    )
    if shutil.which("apt-get") is None:
        raise CorpusError(f"the package descriptions are needed, and there is no apt-get here. {by_hand}")
    for folder in (lists / "partial", work / "cache" / "archives" / "partial"):
        folder.mkdir(parents=True, exist_ok=True)
    options = (
        f"Dir::State::Lists={lists.resolve()}",
        f"Dir::Cache={(work / 'cache').resolve()}",
        "Acquire::Languages=de,en",
        "Acquire::GzipIndexes=false",
        "APT::Sandbox::User=",
    )
    command = ["apt-get", *(part for option in options for part in ("-o", option)), "update"]
    result = subprocess.run(command, capture_output=True, text=True)
    if not any(lists.glob("*Translation-de")) or not any(lists.glob("*Translation-en")):
        said = " ".join((result.stderr or result.stdout).split())[-300:]
        raise CorpusError(f"`apt-get update` brought no package descriptions; is there a network? {by_hand}. {said}")
    return lists


def description_pairs(lists: Path) -> Iterator[Pair]:
    """Sentences of package descriptions. A document is what packages are called up to the first hyphen or digit.

    Args:
        lists: folder with files ``*Translation-de`` and ``*Translation-en``.
    """
    english = {key: text for _, key, text in _descriptions(lists, "en")}
    seen: set[str] = set()
    for package, key, german in _descriptions(lists, "de"):
        if key in english and key not in seen:
            seen.add(key)
            family = re.match(r"(?:lib)?([^-\d.]*)", package)
            document = f"description {family[1] if family else package}"
            yield from aligned(document, _paragraphs(german), _paragraphs(english[key]))


def _descriptions(lists: Path, language: str) -> Iterator[tuple[str, str, list[str]]]:
    """Package, checksum of the English description, and lines."""
    for path in sorted(lists.glob(f"*Translation-{language}")):
        for entry in path.read_text(encoding="utf-8", errors="replace").split("\n\n"):
            head, found, description = entry.partition(f"\nDescription-{language}: ")
            fields = dict(line.split(": ", 1) for line in head.splitlines() if ": " in line)
            if found and "Package" in fields and "Description-md5" in fields:
                yield fields["Package"], fields["Description-md5"], description.splitlines()


def _paragraphs(lines: list[str]) -> list[str]:
    """The first line by itself; then paragraphs, divided by dots, and items of lists."""
    paragraphs, open_ = [lines[0] if lines else ""], False
    for line in lines[1:]:
        text = line.strip()
        item = re.match(r"[*+o-] +", text)
        if text == "." or not text:
            open_ = False
        elif item or not open_:
            paragraphs.append(text[item.end() :] if item else text)
            open_ = True
        else:
            paragraphs[-1] += f" {text}"
    return paragraphs


def aligned(document: str, german: list[str], english: list[str]) -> Iterator[Pair]:
    """Pairs of paragraphs, where there are as many; of their sentences, where there are as many of those."""
    if len(german) != len(english):
        return
    for paragraphs in zip(german, english, strict=True):
        sentences = [sentences_of(text) for text in paragraphs]
        if len(sentences[0]) == len(sentences[1]):
            yield from (Pair(document, g, e) for g, e in zip(*sentences, strict=True))
        else:
            yield Pair(document, *paragraphs)


def sentences_of(text: str) -> list[str]:
    """Cut after stops before a capital.

    >>> sentences_of("It is fast. Very fast! See e.g. here.")
    ['It is fast.', 'Very fast!', 'See e.g. here.']
    """
    return re.split(r"(?<=[a-zäöüß)»\"][.!?]) +(?=[A-ZÄÖÜ»„\"(])", " ".join(text.split()))


def help_pairs(tree: Path) -> Iterator[Pair]:
    """Paragraphs of LibreOffice's help, joined on page and identifier."""
    root = tree / "usr/share/libreoffice/help"
    for page in sorted((root / "de").rglob("*.html")):
        name = page.relative_to(root / "de")
        other = root / "en-US" / name
        if other.is_file():
            german, english = _HelpPage.read(page), _HelpPage.read(other)
            for key, text in german.items():
                if key in english:
                    yield from aligned(f"help {name}", [text], [english[key]])


class _HelpPage(HTMLParser):
    """Paragraphs and headings with an identifier."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}
        self._key: str | None = None

    @classmethod
    def read(cls, path: Path) -> dict[str, str]:
        page = cls()
        page.feed(path.read_text(encoding="utf-8", errors="replace"))
        return {key: text for key, text in page.found.items() if text.strip()}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("p", "h1", "h2", "h3", "h4"):
            key = dict(attrs).get("id")
            self._key = key if key and re.match(r"(par|hd)_id", key) and key not in self.found else None
            if self._key:
                self.found[self._key] = ""

    def handle_endtag(self, tag: str) -> None:
        if tag in ("p", "h1", "h2", "h3", "h4"):
            self._key = None

    def handle_data(self, data: str) -> None:
        if self._key:
            self.found[self._key] += data


def dictionary_pairs(tree: Path) -> Iterator[Pair]:
    """Example sentences of the Ding dictionary: pieces of an entry that end like a sentence in both languages."""
    path = tree / "usr/share/trans/de-en"
    if not path.is_file():
        return
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines()):
        german, _, english = line.partition("::")
        pieces = [side.split("|") for side in (german, english)]
        if line.startswith("#") or len(pieces[0]) != len(pieces[1]):
            continue
        for pair in zip(*pieces, strict=True):
            first = [_without_notes(text.split(";")[0]) for text in pair]
            if all(re.fullmatch(r"[^a-z/]*[A-ZÄÖÜ].*[.!?]", text) and "/" not in text for text in first):
                yield Pair(f"dictionary {number}", *first)


def _without_notes(text: str) -> str:
    return " ".join(re.sub(r"\{[^}]*\}|\[[^]]*\]|\([^)]*\)|<[^>]*>", " ", text).split())


def interface_pairs(tree: Path) -> Iterator[Pair]:
    """Texts of LibreOffice's menus and messages; each context of a catalogue is a document."""
    for path in sorted((tree / "usr/lib/libreoffice/program/resource/de/LC_MESSAGES").glob("*.mo")):
        with path.open("rb") as file:
            # The list of a catalogue's texts is in no public method.
            catalogue: dict[object, str] = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
        for key, german in catalogue.items():
            if isinstance(key, str) and key and not re.search(r"[%$<{]", key + german):
                context, _, english = key.rpartition("\x04")
                pair = (re.sub(r"[~_]|\\n|\(~?[A-Z]\)", "", text) for text in (german, english))
                yield Pair(f"interface {path.stem} {context}", *(" ".join(text.split()) for text in pair))


# --- cleaning and splitting ---


def problem_of(pair: Pair) -> str | None:
    """Why a pair is left out, or None.

    >>> problem_of(Pair("", "Das ist ein kurzer Satz.", "This is a short sentence."))
    >>> problem_of(Pair("", "This is not in German.", "This is not in German."))
    'untranslated'
    """
    english, german = pair.english.split(), pair.german.split()
    if not _WORDS[0] <= len(english) <= _WORDS[1] or not 2 <= len(german) <= _WORDS[1]:
        return "too short or too long"
    sizes = sorted((len(pair.german), len(pair.english)))
    if sizes[1] > _RATIO * sizes[0] + 10:
        return "of unequal length"
    letters = sum(c.isalpha() or c == " " for text in pair[1:] for c in text)
    if letters < 0.75 * sum(sizes) or re.search(r"https?:|www\.|\\|[_=<>{}]|\ufffd", pair.german + pair.english):
        return "not text"
    if normal(pair.german) == normal(pair.english) or {"the", "of", "and"} & set(pair.german.lower().split()):
        return "untranslated"
    return None


def normal(sentence: str) -> str:
    """What of a sentence tells it from others: its letters and digits, in lower case.

    >>> normal("Hello, World 2!")
    'helloworld2'
    """
    return "".join(c for c in sentence.lower() if c.isalnum())


def split_by_document(pairs: Iterable[Pair], held_out: int) -> dict[str, list[Pair]]:
    """Whole documents into test and valid, by a hash of their names, until each has enough pairs; the rest is train.

    A sentence of either language that is also in an earlier one of test, valid and train is left out of the later.

    Args:
        pairs: without duplicates.
        held_out: pairs in valid and in test.

    Raises:
        CorpusError: fewer pairs than three times that.
    """
    documents: dict[str, list[Pair]] = {}
    for pair in pairs:
        documents.setdefault(pair.document, []).append(pair)
    total = sum(map(len, documents.values()))
    if total < 3 * held_out:
        raise CorpusError(f"expected at least {3 * held_out} pairs for train, valid and test, found {total}")
    order = sorted(documents, key=lambda name: hashlib.sha256(name.encode()).digest())
    splits: dict[str, list[Pair]] = {"test": [], "valid": [], "train": []}
    held: set[str] = set()
    names = iter(order)
    for split in splits:
        mine: list[Pair] = []
        for name in names:
            mine += [p for p in documents[name] if not held & {f"de {normal(p.german)}", f"en {normal(p.english)}"}]
            if split != "train" and len(mine) >= held_out:
                break
        # Cut within a document: its rest is in no split.
        splits[split] = mine if split == "train" else mine[:held_out]
        held |= {f"{language} {normal(text)}" for p in mine for language, text in (("de", p.german), ("en", p.english))}
    return {split: splits[split] for split in SPLITS}
