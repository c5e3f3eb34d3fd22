"""Beam search, word by word."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from recipes.translation.config import LONGEST
from recipes.translation.data import batches, padded
from recipes.translation.model import EOS, PAD, Translator


def longest_output(source_length: int) -> int:
    """Subwords of an output at most, its end included, for a source of so many.

    >>> longest_output(20), longest_output(1000)
    (50, 1024)
    """
    return min(2 * source_length + 10, LONGEST)


@torch.no_grad()
def beam_search(model: Translator, source: Tensor, *, beam: int = 4, length_penalty: float = 1.0) -> list[list[int]]:
    """The best output found for every sentence.

    A sentence is finished when ``beam`` hypotheses have ended, each while it was among the best ``beam`` of its step,
    and the best of them is better than every one that goes on is so far. fairseq does not wait for the latter, and
    then takes a bad short output where a model is so sure of the good one that all others end early. Hypotheses that
    reach `longest_output` count as ended there.

    Args:
        model: in evaluation mode.
        source: ``(N, S)``, padded.
        beam: hypotheses followed for each sentence; 1 is greedy search.
        length_penalty: hypotheses are ranked by log-probability / length ** length_penalty, ends counted.

    Returns:
        subwords of every output, with `EOS` where it ended by itself.

    Raises:
        RuntimeError: the model's scores are not numbers.

    Source: the search of fairseq's generate.py, but for its end.
    """
    n, device = len(source), source.device
    # Each sentence has its own: padding is its neighbours' doing.
    limits = torch.tensor([longest_output(int(length)) for length in (source != PAD).sum(1)], device=device)
    limit = int(limits.max())
    memory, mask = model.encode(source)
    state = model.decoder.start(memory, mask, limit).select(torch.arange(n, device=device).repeat_interleave(beam))
    sentences = list(range(n))
    finished: list[list[tuple[float, list[int]]]] = [[] for _ in range(n)]
    # All hypotheses of a sentence are the same at first: only one may be continued.
    scores = torch.full((n, beam), -math.inf, device=device)
    scores[:, 0] = 0.0
    outputs = torch.full((n, beam, limit + 1), EOS, device=device)
    for t in range(limit):
        logits = model.decoder.step(outputs[:, :, t].flatten(), state, t)
        logits[:, PAD] = -math.inf
        every = scores[..., None] + logits.log_softmax(-1).view(len(sentences), beam, -1)
        # As many may end as there are hypotheses, and as many must be left to go on.
        best, place = every.flatten(1).topk(2 * beam)
        parents, words = place // every.shape[-1], place % every.shape[-1]
        ends = words == EOS
        last = limits == t + 1
        for row, column in ((ends | last[:, None])[:, :beam] & best[:, :beam].isfinite()).nonzero().tolist():
            ended = [*outputs[row, parents[row, column], 1 : t + 1].tolist(), int(words[row, column])]
            rank = best[row, column].item() / len(ended) ** length_penalty
            finished[sentences[row]].append((rank, ended))
        leaders = (best.masked_fill(ends, -math.inf).amax(1) / (t + 1) ** length_penalty).tolist()
        if any(math.isnan(leader) for leader in leaders):
            raise RuntimeError("the model's scores are not finite: its training diverged, or its weights are broken")
        cut = last.tolist()
        rows = [
            row
            for row, sentence in enumerate(sentences)
            if not cut[row] and (len(finished[sentence]) < beam or leaders[row] > max(finished[sentence])[0])
        ]
        if not rows:
            break
        kept = torch.tensor(rows, device=device)
        limits = limits[kept]
        scores, chosen = best[kept].masked_fill(ends[kept], -math.inf).topk(beam)
        parents = parents[kept].gather(1, chosen)
        outputs = outputs[kept[:, None], parents]
        outputs[:, :, t + 1] = words[kept].gather(1, chosen)
        state = state.select((kept[:, None] * beam + parents).flatten())
        sentences = [sentences[row] for row in rows]
    return [max(hypotheses)[1] for hypotheses in finished]


def translate(
    model: Translator,
    sources: Sequence[np.ndarray],
    *,
    beam: int = 4,
    length_penalty: float = 1.0,
    batch_tokens: int = 1000,
    advance: Callable[[int], None] = lambda sentences: None,
) -> list[list[int]]:
    """Outputs of many sentences, in their order.

    Args:
        model: put into evaluation mode.
        sources: subwords of every sentence.
        beam, length_penalty: as `beam_search` takes them.
        batch_tokens: subwords of a batch of sources at most.
        advance: called after every batch with the number of its sentences.
    """
    model.eval()
    device = next(model.parameters()).device
    outputs: list[list[int]] = [[] for _ in sources]
    for batch in batches(np.array([len(source) for source in sources]), batch_tokens):
        source = padded([sources[i] for i in batch]).to(device)
        for i, output in zip(batch, beam_search(model, source, beam=beam, length_penalty=length_penalty), strict=True):
            outputs[i] = output
        advance(len(batch))
    return outputs
