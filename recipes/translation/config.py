"""What a training run is made of: one flat dataclass, the rows of the comparison, presets, and its file."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.common.files import naming, replace_text
from recipes.common.options import check_choices, check_not_negative, check_positive, check_seed, choice

MIXERS = ("attention", "dynamicconv")
FFN = ("linear1", "linear2", "fc1", "fc2")
ATTENTION = ("linear1", "linear2", "q", "k", "v", "out")
K_SETS: dict[str, tuple[str, ...]] = {
    "none": (),
    "ffn": FFN,
    "attention": ATTENTION,
    "all": tuple(dict.fromkeys((*FFN, *ATTENTION))),
    "all+output": tuple(dict.fromkeys((*FFN, *ATTENTION, "output"))),
}
"""Names of the linear layers with a K-matrix. The paper does not say which it replaced; both "ffn" and "attention"
give its 30 million parameters."""

KERNELS = (3, 7, 15, 31)
"""Widths of the convolutions of the first layers; all further layers have the last."""

LONGEST = 1024
"""Subwords of a sentence at most: the positions of the models."""

_LARGEST_PENALTY = 100
"""Powers of `LONGEST` with it are still numbers."""


@dataclass(frozen=True)
class Config:
    """One training run; written to ``config.json`` in its folder.

    The defaults are the published ones for IWSLT'14: fairseq's transformer_iwslt_de_en and lightconv_iwslt_de_en.

    Attributes:
        mixer: of the positions: self-attention (Transformer) or a dynamic convolution (DynamicConv).
        decoder_k: which linear layers of the decoder are K-matrices, a name in `K_SETS`.
        encoder_k: which of the encoder are; the output projection is none of its layers.
        dim: channels.
        ffn: hidden units of the feed-forward part.
        heads: of attentions and convolutions.
        encoder_layers: without it the published 7 for DynamicConv and 6 for the Transformer.
        decoder_layers: as published for both.
        dropout: of embeddings and of what every sub-layer adds.
        attention_dropout: of attention weights.
        weight_dropout: of the kernels of the convolutions.
        seed: of the initial weights, the order of batches and dropout.
        updates: optimizer steps.
        batch_tokens: of a batch, padding included: its longest sentence times its sentences, on the longer side.
        accumulate: batches an update; with several processes, of each.
        max_length: of a sentence in train in subwords, with its end; longer pairs are left out and counted.
        lr: peak of the learning rate.
        warmup: updates until that peak, in a line from 1e-7; then the rate falls with 1/sqrt(update).
        k_lr_multiplier: learning rate of K-matrices as a multiple of lr.
        weight_decay: added to the gradient, as fairseq's Adam does; not of K-matrices.
        label_smoothing: mass spread over the vocabulary.
        clip: largest norm of the gradient; 0 is no limit.
        save_every: updates between checkpoints, which are also when the loss on valid is taken.
        average: last checkpoints whose mean is evaluated.
        beam: hypotheses that the search follows for each sentence.
        length_penalty: hypotheses are ranked by log-probability / length ** length_penalty.
    """

    mixer: str = choice("dynamicconv", MIXERS)
    decoder_k: str = choice("none", K_SETS)
    encoder_k: str = choice("none", (name for name in K_SETS if name != "all+output"))
    dim: int = 512
    ffn: int = 1024
    heads: int = 4
    encoder_layers: int | None = None
    decoder_layers: int = 6
    dropout: float = 0.3
    attention_dropout: float = 0.1
    weight_dropout: float = 0.1
    seed: int = 0
    updates: int = 50_000
    batch_tokens: int = 4000
    accumulate: int = 1
    max_length: int = 250
    lr: float = 5e-4
    warmup: int = 4000
    k_lr_multiplier: float = 1.0
    weight_decay: float = 1e-4
    label_smoothing: float = 0.1
    clip: float = 0.0
    save_every: int = 1000
    average: int = 10
    beam: int = 4
    length_penalty: float = 1.0

    def __post_init__(self) -> None:
        check_choices(self)
        check_seed(self.seed)
        if self.encoder_layers is None:
            object.__setattr__(self, "encoder_layers", 7 if self.mixer == "dynamicconv" else 6)
        positive = (
            "dim", "ffn", "heads", "encoder_layers", "decoder_layers", "updates", "batch_tokens", "accumulate",
            "max_length", "warmup", "save_every", "average", "beam",
        )  # fmt: skip
        for name in positive:
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} >= 1, got {getattr(self, name)}")
        if self.dim % self.heads:
            raise ValueError(f"expected dim to be a multiple of heads, got {self.dim} and {self.heads}")
        if self.max_length > self.batch_tokens:
            raise ValueError(
                f"expected max_length <= batch_tokens, so that every pair fits a batch, got {self.max_length} and "
                f"{self.batch_tokens}"
            )
        if self.max_length > LONGEST:
            raise ValueError(f"expected max_length <= {LONGEST}, the model's positions, got {self.max_length}")
        for name in ("dropout", "attention_dropout", "weight_dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"expected {name} in [0, 1), got {getattr(self, name)}")
        check_positive(self, "lr", "k_lr_multiplier")
        # A negative limit of the gradient's norm would turn the gradient round.
        check_not_negative(self, "clip", "weight_decay")
        if not abs(self.length_penalty) <= _LARGEST_PENALTY:
            raise ValueError(
                f"expected length_penalty in [-{_LARGEST_PENALTY}, {_LARGEST_PENALTY}], got {self.length_penalty}"
            )

    def save(self, path: Path) -> None:
        """Write as JSON."""
        replace_text(path, json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Config:
        """Read what `save` wrote; unknown names are an error."""
        with naming(path, f"give another folder, or remove the folder {path.parent}"):
            return cls(**json.loads(path.read_text(encoding="utf-8")))


ROWS: dict[str, dict[str, Any]] = {
    "transformer": {"mixer": "attention"},
    "dynamicconv": {"mixer": "dynamicconv"},
    "dynamicconv-k-ffn": {"mixer": "dynamicconv", "decoder_k": "ffn"},
    "dynamicconv-k-attention": {"mixer": "dynamicconv", "decoder_k": "attention"},
    "dynamicconv-k-all": {"mixer": "dynamicconv", "decoder_k": "all"},
    "dynamicconv-k-all+output": {"mixer": "dynamicconv", "decoder_k": "all+output"},
}
"""Rows of the comparison by name. The paper's table has the first two and one of the two that follow."""

TITLES = {
    "transformer": "Transformer",
    "dynamicconv": "DynamicConv",
    "dynamicconv-k-ffn": "DynamicConv, K in the decoder (ffn)",
    "dynamicconv-k-attention": "DynamicConv, K in the decoder (attention)",
    "dynamicconv-k-all": "DynamicConv, K in the decoder (all)",
    "dynamicconv-k-all+output": "DynamicConv, K in the decoder (all and output)",
}

PRESETS: dict[str, dict[str, Any]] = {
    "iwslt": {},
    "small": {
        "dim": 256,
        "ffn": 512,
        "encoder_layers": 3,
        "decoder_layers": 3,
        "dropout": 0.1,
        "updates": 2400,
        "batch_tokens": 1500,
        "max_length": 40,
        "lr": 1.5e-3,
        "warmup": 400,
        "clip": 1.0,
        "save_every": 150,
        "average": 5,
    },
}


def default_preset(corpus: str) -> str:
    """IWSLT'14 gets the published sizes, a stand-in the small ones.

    >>> default_preset("IWSLT'14"), default_preset("debian-de-en")
    ('iwslt', 'small')
    """
    return "iwslt" if corpus == "IWSLT'14" else "small"
