"""What tells one corpus from another, kept in the folder of every run that was trained on it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from recipes.common.files import replace_text
from recipes.timit.corpus import SPLITS, Corpus
from recipes.timit.data import phone_inventory

FILE = "data.json"


def identity(corpus: Corpus) -> dict[str, str]:
    """What a run depends on, in words that a message can show; two digests a split: of labels, and of audio."""
    about = {
        "name": corpus.name,
        "labels": corpus.labels,
        "audio": f"{corpus.sample_rate} Hz, bandwidth {corpus.bandwidth:g} Hz",
        "phones": " ".join(phone_inventory(corpus)),
    }
    for split in SPLITS:
        digest, audio = hashlib.sha256(), hashlib.sha256()
        for utterance in corpus.split(split):
            segments = [(s.begin, s.end, s.phone) for s in utterance.segments]
            digest.update(json.dumps([utterance.key, utterance.n_samples, segments]).encode())
            audio.update(utterance.digest.encode())
        about[split] = f"{len(corpus.split(split))} utterances, digest {digest.hexdigest()[:16]}"
        about[f"{split} audio"] = f"digest {audio.hexdigest()[:16]}"
    return about


def write_identity(corpus: Corpus, run_dir: Path) -> None:
    """Say in a new run's folder what it is trained on."""
    replace_text(run_dir / FILE, json.dumps(identity(corpus), indent=1) + "\n")


def check_identity(corpus: Corpus, run_dir: Path) -> None:
    """Check that a run was trained on this corpus.

    What data.json lacks, as those of earlier versions lack the audio, is not compared. Of a run by a still earlier
    version, which has no data.json, result.json alone tells: the corpus's name and labels.

    Raises:
        ValueError: it was trained on another one; the message says what differs.
    """
    path, mine = run_dir / FILE, identity(corpus)
    if not path.exists():
        path = run_dir / "result.json"
        if not path.exists():
            return
    try:
        values = json.loads(path.read_text())
        theirs = values if path.name == FILE else {"name": values["corpus"], "labels": values["labels"]}
        differences = [f"{key} {value!r}, not {mine[key]!r}" for key, value in theirs.items() if value != mine[key]]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read ({error!r}): train the run again in another folder") from error
    if differences:
        raise ValueError(
            f"{run_dir} was trained on another corpus ({'; '.join(differences)}): give that one by --data, or another "
            "folder"
        )
