"""Parameters of the models of the paper's table, beside the paper's figures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from recipes.translation.config import ROWS, TITLES, Config
from recipes.translation.model import Translator

VOCABULARIES = (8848, 6632)
"""German and English subwords of IWSLT'14 as fairseq prepares it: a joint BPE of 10,000 merges, of which each
language keeps what occurs in it."""


@dataclass(frozen=True)
class Published:
    """A row of the paper's table on IWSLT'14 De-En.

    Attributes:
        parameters: in millions, with the digits of the paper.
        bleu: lower-cased and tokenised.
        sentences, tokens: translated a second by one thread, batch 1, beam 1.
    """

    parameters: str
    bleu: float
    sentences: float
    tokens: float


PAPER = {
    "transformer": Published("43", 34.4, 3.0, 66.4),
    "dynamicconv": Published("39", 35.2, 3.6, 80.2),
    "dynamicconv-k-ffn": Published("30", 34.2, 4.9, 103.4),
    "dynamicconv-k-attention": Published("30", 34.2, 4.9, 103.4),
}
"""Dao et al., ICLR 2020, table 3. Its row with K-matrices does not name their places: it is beside both sets that
have its 30 million parameters."""


def count_parameters(model: nn.Module) -> int:
    """Numbers that are learned."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_row(row: str, vocabularies: tuple[int, int] = VOCABULARIES) -> int:
    """Parameters of a row at the published sizes.

    >>> count_row("transformer"), count_row("dynamicconv")
    (42864640, 38685184)
    """
    with torch.device("meta"):
        model = Translator(Config(**ROWS[row]), *vocabularies)
    return count_parameters(model)


def markdown(vocabularies: tuple[int, int] = VOCABULARIES) -> str:
    """A table of counts beside the paper's."""
    lines = ["| model | parameters | paper | paper: BLEU |", "|---|---|---|---|"]
    for row in ROWS:
        paper = PAPER.get(row)
        cells = (
            TITLES[row],
            f"{count_row(row, vocabularies):,}",
            f"{paper.parameters} M" if paper else "-",
            f"{paper.bleu}" if paper else "-",
        )
        lines.append(f"| {' | '.join(cells)} |")
    notes = (
        f"Vocabularies of {vocabularies[0]:,} German and {vocabularies[1]:,} English subwords, embeddings untied. "
        "Paper: Dao et al., ICLR 2020. No model was trained for this table."
    )
    return "\n".join([*lines, "", notes])
