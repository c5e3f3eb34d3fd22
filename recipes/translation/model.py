"""Transformer and DynamicConv, with a decoder that also goes word by word.

Source: Vaswani et al., "Attention is all you need", 2017, and Wu et al., "Pay less attention with lightweight and
dynamic convolutions", ICLR 2019, in the sizes of fairseq's transformer_iwslt_de_en and lightconv_iwslt_de_en.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kaleido_audio.nn import replace_linear
from recipes.translation.config import K_SETS, KERNELS, LONGEST, Config
from recipes.translation.kstack import StackedKLinear

PAD, EOS, UNK = 0, 1, 2
"""Ids of padding, of the end of a sentence (which also starts the output), and of unknown subwords."""


@dataclass
class State:
    """What the decoder keeps between two words.

    Attributes:
        memory: keys and values of the source ``(N, heads, S, dim / heads)``, a pair for each layer.
        mask: true where the source may be looked at ``(N, 1, 1, S)``; None where it has no padding.
        history: what the mixer of each layer has seen: ``(N, heads, K - 1 + length, dim / heads)`` inputs of a
            convolution, after K - 1 zeros; or keys and values ``(2, N, heads, length, dim / heads)`` of an attention.
    """

    memory: list[tuple[Tensor, Tensor]]
    mask: Tensor | None
    history: list[Tensor]

    def select(self, rows: Tensor) -> State:
        """The state of chosen hypotheses ``(M,)``, in any order."""
        mask = None if self.mask is None else self.mask[rows]
        memory = [(keys[rows], values[rows]) for keys, values in self.memory]
        return State(memory, mask, [h[:, rows] if h.ndim == 5 else h[rows] for h in self.history])


class Positions(nn.Module):
    """Embeddings times sqrt(dim) plus sines and cosines of the position.

    Args:
        vocabulary: number of subwords.
        dim: channels.
        dropout: of the sum.
        length: longest sentence.

    Shape:
        ``forward(tokens, start)``: ``(N, T)`` to ``(N, T, dim)``; ``start`` is the position of the first.
    """

    table: Tensor

    def __init__(self, vocabulary: int, dim: int, dropout: float, length: int = LONGEST) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, dim, padding_idx=PAD)
        nn.init.normal_(self.tokens.weight, std=dim**-0.5)
        with torch.no_grad():
            self.tokens.weight[PAD] = 0
        self.dropout = nn.Dropout(dropout)
        rates = torch.exp(torch.arange(dim // 2) * (-math.log(10000) / max(1, dim // 2 - 1)))
        angles = torch.arange(length)[:, None] * rates
        table = F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, dim % 2))
        self.register_buffer("table", table, persistent=False)

    def forward(self, tokens: Tensor, start: int = 0) -> Tensor:
        """Embed tokens.

        Raises:
            ValueError: a longer sentence than there are positions.
        """
        end = start + tokens.shape[1]
        if end > len(self.table):
            raise ValueError(f"expected sentences of at most {len(self.table)} subwords, got one of {end}")
        x = self.tokens(tokens) * self.table.shape[1] ** 0.5
        return self.dropout(x + self.table[start:end])


class Attention(nn.Module):
    """Attention with several heads.

    Args:
        dim, heads: channels and heads.
        dropout: of the attention weights.
    """

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.q, self.k, self.v, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def project(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values ``(N, heads, S, dim / heads)`` of ``(N, S, dim)``."""
        return self._split(self.k(memory)), self._split(self.v(memory))

    def forward(
        self, x: Tensor, memory: tuple[Tensor, Tensor], mask: Tensor | None = None, *, causal: bool = False
    ) -> Tensor:
        """Let ``(N, T, dim)`` look at keys and values, where ``mask`` ``(N, 1, 1, S)`` is true."""
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(
            self._split(self.q(x)), *memory, attn_mask=mask, dropout_p=dropout, is_causal=causal
        )
        return self.out(y.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class SelfAttention(Attention):
    """Attention of a sentence to itself; the decoder's sees no later word."""

    def mix(self, x: Tensor, mask: Tensor | None, *, causal: bool) -> Tensor:
        """``(N, T, dim)`` to the same; without a mask for causal ones, whose padding comes last and is not seen."""
        return self(x, self.project(x), None if causal else mask, causal=causal)

    def start(self, rows: int, length: int, like: Tensor) -> Tensor:
        """Room for keys and values of so many hypotheses and words."""
        return like.new_zeros(2, rows, self.heads, length, like.shape[-1] // self.heads)

    def step(self, x: Tensor, history: Tensor, position: int) -> Tensor:
        """One word ``(N, 1, dim)``; its keys and values are written into the history."""
        keys, values = self.project(x)
        history[0, :, :, position] = keys[:, :, 0]
        history[1, :, :, position] = values[:, :, 0]
        return self(x, (history[0, :, :, : position + 1], history[1, :, :, : position + 1]))


class DynamicConvolution(nn.Module):
    """A depthwise convolution whose kernel, one a head, is computed anew from each position.

    Args:
        dim, heads: channels and heads.
        kernel: width of the convolution; odd for an encoder.
        dropout: of the kernels.
    """

    def __init__(self, dim: int, heads: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.kernel = kernel
        self.linear1 = nn.Linear(dim, dim)
        self.weight_linear = nn.Linear(dim, heads * kernel, bias=False)
        self.linear2 = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def mix(self, x: Tensor, mask: Tensor | None, *, causal: bool) -> Tensor:
        """``(N, T, dim)`` to the same; causal, or centred on the position."""
        x = self.linear1(x)
        if mask is not None:
            x = x * mask[:, 0, 0, :, None]
        weights = self._weights(x).movedim(2, 1)
        y = apply_kernels(x.unflatten(-1, (self.heads, -1)).movedim(2, 1), weights, causal=causal)
        return self.linear2(y.movedim(1, 2).flatten(2))

    def start(self, rows: int, length: int, like: Tensor) -> Tensor:
        """Room for the inputs of so many hypotheses and words, after zeros."""
        return like.new_zeros(rows, self.heads, self.kernel - 1 + length, like.shape[-1] // self.heads)

    def step(self, x: Tensor, history: Tensor, position: int) -> Tensor:
        """One word ``(N, 1, dim)``; its input to the convolution is written into the history."""
        x = self.linear1(x)
        history[:, :, position + self.kernel - 1] = x[:, 0].unflatten(-1, (self.heads, -1))
        window = history[:, :, position : position + self.kernel]
        y = torch.matmul(self._weights(x).movedim(2, 1), window)
        return self.linear2(y.flatten(1)[:, None])

    def _weights(self, x: Tensor) -> Tensor:
        """Kernels ``(N, T, heads, K)`` that sum to one."""
        kernels = self.weight_linear(x).unflatten(-1, (self.heads, self.kernel))
        return self.dropout(kernels.softmax(-1))


def apply_kernels(x: Tensor, weights: Tensor, *, causal: bool) -> Tensor:
    """Convolve with another kernel at every position, as products with banded matrices.

    Sentences are not much longer than the kernels, and a dense product of a band is then faster than gathering K
    neighbours of every position.

    Args:
        x: ``(N, heads, T, channels)``.
        weights: ``(N, heads, T, K)``, that of the earliest neighbour first.
        causal: whether the window ends at the position; else it is centred on it.

    Shape:
        result as x.

    >>> x = torch.arange(4.0).view(1, 1, 4, 1)
    >>> apply_kernels(x, torch.tensor([1.0, 10.0]).expand(1, 1, 4, 2), causal=True).flatten()
    tensor([ 0., 10., 21., 32.])
    """
    length, kernel = weights.shape[-2:]
    before = kernel - 1 if causal else kernel // 2
    # Rows one longer than those of the band, cut anew at its length: every row begins one further to the right.
    band = F.pad(weights, (0, length)).flatten(-2)[..., :-length].unflatten(-1, (length, length + kernel - 1))
    return band @ F.pad(x, (0, 0, before, kernel - 1 - before))


class EncoderLayer(nn.Module):
    """Mixing of positions, then two feed-forward layers, each with dropout, added to its input and normalised.

    Args:
        config: sizes.
        index: of the layer, from 0, which says the width of its convolution.
    """

    def __init__(self, config: Config, index: int) -> None:
        super().__init__()
        dim = config.dim
        self.mixer: SelfAttention | DynamicConvolution
        if config.mixer == "attention":
            self.mixer = SelfAttention(dim, config.heads, config.attention_dropout)
        else:
            kernel = KERNELS[min(index, len(KERNELS) - 1)]
            self.mixer = DynamicConvolution(dim, config.heads, kernel, config.weight_dropout)
        self.mixer_norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, config.ffn)
        self.fc2 = nn.Linear(config.ffn, dim)
        self.ffn_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """``(N, S, dim)`` to the same, where ``mask`` ``(N, 1, 1, S)`` is true."""
        x = self.mixer_norm(x + self.dropout(self.mixer.mix(x, mask, causal=False)))
        return self.feed_forward(x)

    def feed_forward(self, x: Tensor) -> Tensor:
        """The second part."""
        return self.ffn_norm(x + self.dropout(self.fc2(F.relu(self.fc1(x)))))


class DecoderLayer(EncoderLayer):
    """The same with attention to the source between the two parts, and without sight of later words."""

    def __init__(self, config: Config, index: int) -> None:
        super().__init__(config, index)
        self.cross = Attention(config.dim, config.heads, config.attention_dropout)
        self.cross_norm = nn.LayerNorm(config.dim)

    def forward(self, x: Tensor, mask: Tensor | None, memory: Tensor | None = None) -> Tensor:
        """``(N, T, dim)`` to the same; ``memory`` is the encoded source ``(N, S, dim)``, ``mask`` its own."""
        assert memory is not None
        x = self.mixer_norm(x + self.dropout(self.mixer.mix(x, None, causal=True)))
        x = self.cross_norm(x + self.dropout(self.cross(x, self.cross.project(memory), mask)))
        return self.feed_forward(x)

    def step(self, x: Tensor, memory: tuple[Tensor, Tensor], mask: Tensor | None, history: Tensor, t: int) -> Tensor:
        """One word ``(N, 1, dim)`` at position t; ``memory`` is keys and values."""
        x = self.mixer_norm(x + self.mixer.step(x, history, t))
        x = self.cross_norm(x + self.cross(x, memory, mask))
        return self.feed_forward(x)


class Encoder(nn.Module):
    """From subwords ``(N, S)`` to ``(N, S, dim)``."""

    def __init__(self, config: Config, vocabulary: int) -> None:
        super().__init__()
        assert config.encoder_layers is not None
        self.positions = Positions(vocabulary, config.dim, config.dropout)
        self.layers = nn.ModuleList(EncoderLayer(config, i) for i in range(config.encoder_layers))

    def forward(self, source: Tensor, mask: Tensor | None) -> Tensor:
        """Encode; ``mask`` ``(N, 1, 1, S)`` is false on padding."""
        x = self.positions(source)
        for layer in self.layers:
            x = layer(x, mask)
        return x


class Decoder(nn.Module):
    """From the subwords before each position, and the encoded source, to logits of the next."""

    def __init__(self, config: Config, vocabulary: int) -> None:
        super().__init__()
        self.positions = Positions(vocabulary, config.dim, config.dropout)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.decoder_layers))
        self.output = nn.Linear(config.dim, vocabulary, bias=False)

    def forward(self, target: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        """Hidden vectors ``(N, T, dim)`` of whole sentences ``(N, T)`` which begin with `EOS`."""
        x = self.positions(target)
        for layer in self.layers:
            x = layer(x, mask, memory)
        return x

    def start(self, memory: Tensor, mask: Tensor | None, length: int) -> State:
        """The state before the first word, for outputs of at most so many words."""
        layers = cast(list[DecoderLayer], self.layers)
        keys = [layer.cross.project(memory) for layer in layers]
        return State(keys, mask, [layer.mixer.start(len(memory), length, memory) for layer in layers])

    def step(self, tokens: Tensor, state: State, position: int) -> Tensor:
        """Logits ``(N, vocabulary)`` of the word after ``tokens`` ``(N,)``, which stand at ``position``.

        The state is changed in place. Positions come in order, from 0.
        """
        x = self.positions(tokens[:, None], position)
        layers = cast(list[DecoderLayer], self.layers)
        for layer, memory, history in zip(layers, state.memory, state.history, strict=True):
            x = layer.step(x, memory, state.mask, history, position)
        return self.output(x[:, 0])


class Translator(nn.Module):
    """Encoder and decoder.

    Args:
        config: sizes, and which linear layers are K-matrices.
        source_vocabulary, target_vocabulary: subwords of each language.

    Shape:
        ``forward(source, target)``: ``(N, S)`` and ``(N, T)`` to logits ``(N, T, target_vocabulary)``; sentences are
        padded at their end with `PAD`.

    >>> model = Translator(Config(), 8848, 6632)
    >>> sum(p.numel() for p in model.parameters())
    38685184
    """

    def __init__(self, config: Config, source_vocabulary: int, target_vocabulary: int) -> None:
        super().__init__()
        self.encoder = Encoder(config, source_vocabulary)
        self.decoder = Decoder(config, target_vocabulary)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.decoder.output.weight, std=config.dim**-0.5)
        use_k(self.encoder, config.encoder_k)
        use_k(self.decoder, config.decoder_k)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Logits of every next subword."""
        memory, mask = self.encode(source)
        return self.decoder.output(self.decoder(target, memory, mask))

    def encode(self, source: Tensor) -> tuple[Tensor, Tensor | None]:
        """The encoded source and its mask; None where there is no padding."""
        present = source != PAD
        mask = None if bool(present.all()) else present[:, None, None, :]
        return self.encoder(source, mask), mask


def use_k(module: nn.Module, k_set: str) -> None:
    """Swap the linear layers of a set for K-matrices, in place; "none" changes nothing."""
    names = K_SETS[k_set]
    if names:
        replace_linear(module, lambda name, _: name.split(".")[-1] in names, layer=StackedKLinear, init=None)
