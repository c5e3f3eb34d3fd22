"""The search on decoders whose every probability is known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("tokenizers")

from recipes.translation.config import LONGEST, ROWS, Config
from recipes.translation.model import EOS, PAD, UNK, Translator
from recipes.translation.search import beam_search, longest_output, translate

A, B, C = UNK, 3, 4
VOCABULARY = 5


class Table:
    """A decoder whose next word depends on the words before it, as a table says.

    Args:
        rows: by prefix, probabilities of words; the rest is spread over nothing. A prefix that is not there ends.
    """

    def __init__(self, rows: dict[tuple[int, ...], dict[int, float]]) -> None:
        self.rows = rows
        self.decoder = self

    def encode(self, source: Tensor) -> tuple[Tensor, None]:
        return source, None

    def start(self, memory: Tensor, mask: None, length: int) -> History:
        return History([()] * len(memory))

    def step(self, tokens: Tensor, state: History, position: int) -> Tensor:
        if position:
            state.prefixes = [(*p, t) for p, t in zip(state.prefixes, tokens.tolist(), strict=True)]
        logits = torch.full((len(tokens), VOCABULARY), -math.inf)
        logits[:, PAD] = 50.0  # never to be chosen, however likely
        for line, prefix in zip(logits, state.prefixes, strict=True):
            for word, p in self.rows.get(prefix, {EOS: 1.0}).items():
                line[word] = math.log(p)
        return logits


class History:
    def __init__(self, prefixes: list[tuple[int, ...]]) -> None:
        self.prefixes = prefixes

    def select(self, rows: Tensor) -> History:
        return History([self.prefixes[i] for i in rows.tolist()])


def search(rows: dict[tuple[int, ...], dict[int, float]], sentences: int = 1, **options: float) -> list[list[int]]:
    source = torch.full((sentences, 3), B)
    return beam_search(Table(rows), source, **options)  # type: ignore[arg-type]


TRAP = {(): {A: 0.6, B: 0.4}, (A,): {A: 0.5, C: 0.5}, (B,): {C: 0.9, A: 0.1}}
"""The likelier first word leads to the less likely sentences: 0.3 against 0.36."""


def test_greedy_takes_the_likeliest_word_and_a_beam_the_likelier_sentence() -> None:
    assert search(TRAP, beam=1)[0][0] == A
    assert search(TRAP, beam=2)[0] == [B, C, EOS]


def test_sentences_of_a_batch_are_searched_each_by_itself() -> None:
    assert search(TRAP, sentences=3, beam=2) == [[B, C, EOS]] * 3


def test_the_length_penalty_weighs_long_against_short() -> None:
    # "A" of probability 0.5 and "B C C C" of 0.3: the mean word of the longer is likelier.
    rows = {(): {A: 0.5, B: 0.3, C: 0.2}, (B,): {C: 1.0}, (B, C): {C: 1.0}, (B, C, C): {C: 1.0}}
    assert search(rows, beam=3, length_penalty=0.0)[0] == [A, EOS]
    assert search(rows, beam=3, length_penalty=1.0)[0] == [B, C, C, C, EOS]


def test_a_sure_sentence_is_not_lost_to_short_ones_that_end_earlier() -> None:
    rows: dict[tuple[int, ...], dict[int, float]] = {(A,) * n: {A: 0.9, EOS: 0.06, B: 0.04} for n in range(6)}
    for beam in (1, 2, 3, 4):
        assert search(rows, beam=beam)[0] == [A] * 6 + [EOS]


def test_an_output_without_an_end_is_cut() -> None:
    rows = {prefix: {A: 1.0} for n in range(40) for prefix in [(A,) * n]}
    assert search(rows, beam=2) == [[A] * longest_output(3)]


@pytest.mark.parametrize("row", ["transformer", "dynamicconv-k-all+output"])
def test_beam_one_is_greedy_search(row: str) -> None:
    model = random_model(row)
    source = torch.tensor([[5, 6, 7, 8, EOS], [9, 10, EOS, PAD, PAD]])
    with torch.no_grad():
        for sentence, found in zip(source, beam_search(model, source, beam=1), strict=True):
            output = [EOS]
            limit = longest_output(int((sentence != PAD).sum()))
            while len(output) <= limit and (len(output) == 1 or output[-1] != EOS):
                logits = model(sentence[None, sentence != PAD], torch.tensor([output]))[0, -1]
                logits[PAD] = -math.inf
                output.append(int(logits.argmax()))
            assert found == output[1:]


def test_a_wide_beam_finds_the_best_of_all_sentences() -> None:
    # With as many hypotheses as sentences of that length, the search is exhaustive.
    generator = torch.Generator().manual_seed(3)
    words = (A, B, C)
    rows: dict[tuple[int, ...], dict[int, float]] = {}
    for n in range(3):
        for prefix in itertools.product(words, repeat=n):
            p = torch.rand(4, generator=generator).softmax(0).tolist()
            rows[prefix] = dict(zip((*words, EOS), p, strict=True))
    best, score = (), -math.inf
    for n in range(4):
        for sentence in itertools.product(words, repeat=n):
            ended = (*sentence, EOS)
            log_p = sum(math.log(rows.get(ended[:i], {EOS: 1.0})[ended[i]]) for i in range(n + 1))
            if log_p / (n + 1) > score:
                best, score = ended, log_p / (n + 1)
    assert search(rows, beam=40) == [list(best)]


def random_model(row: str) -> Translator:
    torch.manual_seed(1)
    config = Config(**ROWS[row], dim=16, ffn=24, encoder_layers=1, decoder_layers=2)
    return Translator(config, 12, 12).eval()


def test_batches_do_not_change_translations() -> None:
    model = random_model("dynamicconv").double()
    generator = np.random.default_rng(0)
    sources = [np.append(generator.integers(3, 12, generator.integers(1, 9)), EOS) for _ in range(12)]
    counted: list[int] = []
    together = translate(model, sources, beam=3, batch_tokens=40, advance=counted.append)
    assert sum(counted) == 12 and len(counted) > 1
    alone = [beam_search(model, torch.from_numpy(source)[None], beam=3)[0] for source in sources]
    assert together == alone
    assert any(output[-1] != EOS for output in alone), "some are cut, each at the length of its own source"


def test_scores_that_are_no_numbers_are_an_error() -> None:
    model = random_model("transformer")
    with torch.no_grad():
        model.decoder.output.weight.fill_(math.nan)
    with pytest.raises(RuntimeError, match="the model's scores are not finite"):
        beam_search(model, torch.tensor([[5, 6, EOS]]), beam=2)


def test_a_sentence_longer_than_the_positions_is_refused() -> None:
    model = random_model("dynamicconv")
    with pytest.raises(ValueError, match="expected sentences of at most 1024 subwords, got one of 1025"):
        beam_search(model, torch.full((1, LONGEST + 1), B))
