"""BLEU of a trained run, tokenised as the literature counts it and detokenised, and translation of new text."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress

from recipes.common.files import naming, replace_text
from recipes.common.processes import Processes
from recipes.translation.config import LONGEST, Config
from recipes.translation.counts import count_parameters
from recipes.translation.data import Data, detokenized, moses_tokens
from recipes.translation.model import Translator
from recipes.translation.quantize import quantized
from recipes.translation.search import translate
from recipes.translation.training import left_out, load_averaged, load_history, weight_files


@dataclass(frozen=True)
class Result:
    """What ``result.json`` of a run holds.

    Attributes:
        data: title of the data set, which says whether it is a stand-in.
        updates: that were made; checkpoints: whose weights were averaged.
        parameters: of the model.
        valid_loss: cross-entropy of a subword, in nats, at the last checkpoint.
        valid_bleu, test_bleu: of lower-cased Moses tokens, as the literature on IWSLT'14 counts.
        test_detokenized: of detokenised lower-cased text.
        signatures: of both, in sacrebleu's words.
        beam, length_penalty: of the search.
        left_out: pairs of train longer than the run's max_length; None in results of earlier versions.
    """

    data: str
    updates: int
    checkpoints: int
    parameters: int
    valid_loss: float
    valid_bleu: float
    test_bleu: float
    test_detokenized: float
    signatures: tuple[str, str]
    beam: int
    length_penalty: float
    left_out: int | None = None

    def save(self, path: Path) -> None:
        """Write as JSON."""
        replace_text(path, json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Result:
        """Read what `save` wrote."""
        with naming(path, "remove it to evaluate again"):
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**content, "signatures": tuple(content["signatures"])})


def bleu(hypotheses: Sequence[str], references: Sequence[str], *, tokenized: bool) -> tuple[float, str]:
    """Corpus BLEU and its signature.

    Args:
        hypotheses, references: a sentence each.
        tokenized: they are tokens with spaces between them, and compared as they are; else sacrebleu's own
            tokenisation 13a is applied, and case is ignored.

    Raises:
        ValueError: unequal numbers of sentences.

    >>> bleu(["the cat sat on the mat ."], ["the cat sat on the mat ."], tokenized=True)[0]
    100.0
    """
    from sacrebleu.metrics import BLEU

    if len(hypotheses) != len(references):
        raise ValueError(f"expected a reference for each of {len(hypotheses)} sentences, got {len(references)}")
    # It warns of text that looks tokenised, which is meant here.
    metric = BLEU(tokenize="none", force=True) if tokenized else BLEU(lowercase=True)
    score = metric.corpus_score(list(hypotheses), [list(references)])
    return round(float(score.score), 10), str(metric.get_signature())


def outputs(model: Translator, data: Data, split: str, config: Config, *, progress: bool) -> list[str]:
    """Lower-cased Moses tokens of every sentence of a split, translated."""
    sources = data.splits[split].source
    with Progress(transient=True, disable=not progress) as bars:
        bar = bars.add_task(f"Translating {split}", total=len(sources))
        ids = translate(
            model,
            sources,
            beam=config.beam,
            length_penalty=config.length_penalty,
            advance=lambda sentences: bars.advance(bar, sentences),
        )
    return data.target.decode(ids)


def evaluate(
    config: Config,
    data: Data,
    run_dir: Path,
    *,
    accelerator: str = "auto",
    progress: bool = True,
    int8: bool = False,
) -> Result:
    """Translate valid and test with the averaged weights of a run, and score them.

    Writes ``result.json``, and ``test.hyp`` with a line for each sentence of test; ``int8.json`` and ``int8.hyp`` of
    the quantized model.

    Args:
        config: of the run; beam and length_penalty may differ from those it was trained with.
        data: it was trained on.
        run_dir: its folder.
        accelerator: ``"cpu"``, ``"gpu"`` or ``"auto"``.
        progress: show progress bars.
        int8: quantize the dense linear layers, on the CPU; `Result.parameters` still counts those of the model.

    Raises:
        ValueError: there is no checkpoint, or a GPU is asked for and there is none.
        Unavailable: torch has no int8 kernels here.
    """
    device = Processes(accelerator).device
    model = load_averaged(config, data, run_dir)
    parameters = count_parameters(model)
    model = quantized(model) if int8 else model.to(device)
    history = load_history(run_dir)
    found = {split: outputs(model, data, split, config, progress=progress) for split in ("valid", "test")}
    tokens, signature = bleu(found["test"], data.splits["test"].tokens, tokenized=True)
    text, text_signature = bleu(detokenized(found["test"]), data.splits["test"].text, tokenized=False)
    result = Result(
        data=data.title,
        updates=int(history[-1]["update"]),
        checkpoints=min(config.average, len(weight_files(run_dir))),
        parameters=parameters,
        valid_loss=history[-1]["valid_loss"],
        valid_bleu=bleu(found["valid"], data.splits["valid"].tokens, tokenized=True)[0],
        test_bleu=tokens,
        test_detokenized=text,
        signatures=(signature, text_signature),
        beam=config.beam,
        length_penalty=config.length_penalty,
        left_out=left_out(data.splits["train"], config.max_length),
    )
    replace_text(run_dir / ("int8.hyp" if int8 else "test.hyp"), "".join(f"{line}\n" for line in found["test"]))
    result.save(run_dir / ("int8.json" if int8 else "result.json"))
    return result


def translate_text(
    model: Translator, data: Data, lines: Sequence[str], *, beam: int, length_penalty: float
) -> list[str]:
    """English of German sentences, detokenised and in lower case; a line without tokens stays empty.

    Args:
        model: in evaluation mode.
        data: whose vocabularies it was trained with.
        lines: plain text.
        beam, length_penalty: as `recipes.translation.search.beam_search` takes them.

    Raises:
        ValueError: a sentence longer than the model's positions.
    """
    # Not the line itself: of control characters there are no tokens, and of nothing a model would make something up.
    tokens = moses_tokens(lines, "de")
    places = [i for i, line in enumerate(tokens) if line.strip()]
    sources = data.source.encode([tokens[i] for i in places])
    for i, source in zip(places, sources, strict=True):
        if len(source) > LONGEST:
            raise ValueError(f"line {i + 1} has {len(source)} subwords, and the model takes {LONGEST}: cut it")
    ids = translate(model, sources, beam=beam, length_penalty=length_penalty)
    result = [""] * len(lines)
    for i, text in zip(places, detokenized(data.target.decode(ids)), strict=True):
        result[i] = text
    return result
