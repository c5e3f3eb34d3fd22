"""Recovering a permutation of pixels from permuted images alone, without labels.

In photographs neighbouring pixels are alike: of all orders of the pixels, the true one has the least total variation.
All that a method sees is the matrix D of mean squared differences between pixels (or rows, or columns), and what it
lowers is the sum of D over neighbours. Orders that differ by a symmetry of the square have the same sum, and count as
the same here: classifiers do not mind which one they get, as long as it is the same for all images.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from kaleido_audio.nn import KPermutation
from recipes.cifar.config import METHODS
from recipes.cifar.data import PIXELS, SIDE
from recipes.common.files import naming, replace_text

STRUCTURES = ("lines", "pixels")
"""What is assumed of the permutation: that it permutes rows and columns as wholes, or nothing."""

Watch = Callable[[float, Tensor], None]
"""Called with how far a learned method is, from 0 to 1, and the best order so far."""


@dataclass(frozen=True)
class Recovery:
    """What a method found.

    Attributes:
        order: ``(1024,)``; pixel i of the restored image is pixel order[i] of the permuted one.
        variation: mean of D over the neighbours of the restored image, which the method had to lower.
        seconds: that it took.
    """

    order: Tensor
    variation: float
    seconds: float

    def save(self, path: Path) -> None:
        """Write as JSON."""
        content = {"order": self.order.tolist(), "variation": self.variation, "seconds": self.seconds}
        replace_text(path, json.dumps(content) + "\n")

    @classmethod
    def load(cls, path: Path) -> Recovery:
        """Read what `save` wrote."""
        with naming(path, "remove it, and the run's checkpoints if there are any, to recover again"):
            content = json.loads(path.read_text(encoding="utf-8"))
            order = torch.tensor(content["order"])
            if not order.sort().values.equal(torch.arange(PIXELS)):
                raise ValueError(f"expected an order of {PIXELS} pixels")
            return cls(order, content["variation"], content["seconds"])


@dataclass(frozen=True)
class Score:
    """How good a recovered order is, given the permutation.

    Attributes:
        neighbours: share of the 1984 pairs of neighbours in the restored image that are neighbours in the original.
        placed: share of the pixels in their place, up to the best of the eight symmetries of the square.
    """

    neighbours: float
    placed: float

    @property
    def exact(self) -> bool:
        """Whether all of the image is restored, up to a symmetry."""
        return self.placed == 1.0


def score(order: Tensor, p: Tensor) -> Score:
    """Compare a recovered order with the permutation, both ``(1024,)``.

    >>> p = torch.randperm(1024)
    >>> score(p.argsort(), p)
    Score(neighbours=1.0, placed=1.0)
    """
    found = p[order].view(SIDE, SIDE)
    a, b = (torch.cat(parts) for parts in zip(*_neighbour_pairs(found), strict=True))
    distance = (a // SIDE - b // SIDE).abs() + (a % SIDE - b % SIDE).abs()
    truth = torch.arange(PIXELS).view(SIDE, SIDE)
    turns = ((), (0,), (1,), (0, 1))
    views = [turned.flip(turn) for turned in (found, found.T) for turn in turns]
    placed = max(float((view == truth).double().mean()) for view in views)
    return Score(float((distance == 1).double().mean()), placed)


def _neighbour_pairs(grid: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Entries of ``(32, 32)`` above and below each other, and side by side."""
    return [(grid[1:].flatten(), grid[:-1].flatten()), (grid[:, 1:].flatten(), grid[:, :-1].flatten())]


def differences(images: Tensor) -> Tensor:
    """Mean squared difference between pixels, over images and channels: float64 ``(1024, 1024)``.

    Args:
        images: ``(N, 3, 32, 32)``, floats of about unit variance.
    """
    x = images.reshape(-1, PIXELS)
    products = torch.zeros(PIXELS, PIXELS, dtype=torch.float64)
    for part in x.split(4096):
        part = part.double().cpu()
        products += part.T @ part
    squares = products.diagonal()
    return ((squares[:, None] + squares - 2 * products) / len(x)).clamp_min(0).fill_diagonal_(0)


def variation(order: Tensor, d: Tensor) -> float:
    """Mean of d ``(1024, 1024)`` over the neighbours of the image restored with an order ``(1024,)``."""
    pairs = _neighbour_pairs(order.view(SIDE, SIDE))
    return float(torch.cat([d[a, b] for a, b in pairs]).mean())


def recover(
    images: Tensor,
    method: str,
    *,
    structure: str,
    seed: int = 0,
    truth: Tensor | None = None,
    progress: bool = True,
    watch: Watch | None = None,
) -> Recovery:
    """Find the order that undoes a permutation.

    Args:
        images: permuted, ``(N, 3, 32, 32)``, floats of about unit variance; labels are not needed.
        method: "k": `KPermutation`, learned from samples, best of many starts. "gumbel-sinkhorn": a dense doubly
            stochastic matrix, likewise. "spectral": seriation by eigenvectors, nothing is learned. "spectral+faq":
            that, refined by a local search of the quadratic assignment problem. "oracle": the inverse of ``truth``.
        structure: "lines" if rows and columns are known to be permuted as wholes, else "pixels".
        seed: of what is random in the method.
        truth: the permutation ``(1024,)``, for "oracle" alone.
        progress: show a bar.
        watch: see `Watch`; for "k" and "gumbel-sinkhorn".

    Raises:
        ValueError: an unknown method or structure, images of another shape, or an oracle without the truth.
    """
    if method not in METHODS:
        raise ValueError(f"expected a method in {METHODS}, got {method!r}")
    if structure not in STRUCTURES:
        raise ValueError(f"expected a structure in {STRUCTURES}, got {structure!r}")
    if images.dim() != 4 or images.shape[1:] != (3, SIDE, SIDE) or not len(images):
        raise ValueError(f"expected images (N, 3, {SIDE}, {SIDE}), got {tuple(images.shape)}")
    began = time.monotonic()
    d = differences(images)
    if method == "oracle":
        if truth is None:
            raise ValueError("the oracle needs the permutation: give truth")
        return Recovery(truth.argsort(), variation(truth.argsort(), d), time.monotonic() - began)
    generator = torch.Generator().manual_seed(seed)
    with Progress(disable=not progress, transient=True) as bars:

        def one(distances: Tensor, side: int, description: str, seen: Watch | None) -> Tensor:
            task = bars.add_task(description, total=1.0)

            def advance(done: float, order: Tensor) -> None:
                bars.update(task, completed=done)
                if seen is not None:
                    seen(done, order)

            return _solve(method, distances, side, generator, advance)

        if structure == "pixels":
            order = one(d, 2, "Pixels", watch)
        else:
            grid = d.view(SIDE, SIDE, SIDE, SIDE)
            rows, columns = torch.einsum("acbc->ab", grid) / SIDE, torch.einsum("rarb->ab", grid) / SIDE
            start = torch.arange(SIDE)
            first = None if watch is None else lambda done, r: watch(done / 2, _both(r, start))
            found = one(rows, 1, "Rows", first)
            second = None if watch is None else lambda done, c: watch(0.5 + done / 2, _both(found, c))
            order = _both(found, one(columns, 1, "Columns", second))
    return Recovery(order, variation(order, d), time.monotonic() - began)


def _both(rows: Tensor, columns: Tensor) -> Tensor:
    """The order of the pixels ``(1024,)`` from those of rows and columns, ``(32,)`` each."""
    return (rows[:, None] * SIDE + columns).flatten()


def _solve(method: str, d: Tensor, dims: int, generator: torch.Generator, advance: Watch) -> Tensor:
    """An order ``(n,)`` of items with differences d ``(n, n)``, along a line of n or in a square of side sqrt(n)."""
    d = d / d.mean()
    places = _places(len(d), dims)
    if method == "k":
        return _by_k(d, places, generator, advance)
    if method == "gumbel-sinkhorn":
        return _by_sinkhorn(d, places, generator, advance)
    orders = [_by_spectrum(d, places, nearest) for nearest in (_GRAPHS if dims == 2 else (len(d) - 1,))]
    if method == "spectral+faq":
        orders = [_refined(d, places, order) for order in orders]
    return _best(orders, d, _adjacency(places))


def _places(n: int, dims: int) -> Tensor:
    """Coordinates ``(n, dims)`` of the places to fill, whole numbers."""
    side = n if dims == 1 else math.isqrt(n)
    return torch.cartesian_prod(*[torch.arange(side)] * dims).view(n, dims).double()


def _adjacency(places: Tensor) -> Tensor:
    """1 between neighbours, ``(n, n)``."""
    return (torch.cdist(places, places, p=1).round() == 1).double()


def _cost(order: Tensor, d: Tensor, adjacency: Tensor) -> float:
    return float((d[order][:, order] * adjacency).sum() / adjacency.sum())


class _Weights:
    """Weights of pairs of places: those far apart count at first, neighbours alone in the end.

    Total variation alone has many local minima: right pieces in wrong places. Weights of
    ``exp(-(distance - 1) / reach)``, with a reach that falls from half of the side to 0.3, avoid most of them.
    """

    def __init__(self, places: Tensor) -> None:
        self.distance = torch.cdist(places, places, p=1).float()
        self.widest = float(places.max() + 1) / 2

    def at(self, done: float) -> Tensor:
        """``(n, n)``, summing to n, when ``done`` of the search, from 0 to 1, is over."""
        reach = self.widest * (0.3 / self.widest) ** done
        weights = torch.exp((1 - self.distance) / reach).fill_diagonal_(0)
        return weights * (len(weights) / weights.sum())


@dataclass(frozen=True)
class _Schedule:
    starts: int
    samples: int
    steps: int


_K_LINES = _Schedule(starts=32, samples=4, steps=1000)
_K_PIXELS = _Schedule(starts=1, samples=2, steps=1000)
_SINKHORN_LINES = _Schedule(starts=32, samples=1, steps=500)
_SINKHORN_PIXELS = _Schedule(starts=1, samples=1, steps=80)
_LOOKS = 20


def _best(orders: list[Tensor], d: Tensor, adjacency: Tensor) -> Tensor:
    """The order of least total variation: nothing else is known of which is best."""
    return min(orders, key=lambda order: _cost(order, d, adjacency))


class _Drawn(nn.Module):
    """What the weighted total variation of one drawn permutation has for a gradient.

    The variation is a quadratic form in the permutation matrix P, the sum of W * (P D P^T). Its gradient at a P of
    zeros and ones is 2 W P D, where P D takes rows of D. Unlike the variation of relaxed images, it does not reward
    mixing pixels for being smooth.
    """

    def __init__(self, layer: KPermutation, d: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.d = d
        self.eye = torch.eye(len(d))

    def forward(self, weights: Tensor) -> Tensor:
        drawn = self.layer.sample(self.eye, dim=0)
        gradient = weights @ self.d[drawn.detach().argmax(1)]
        return 2 * (drawn * gradient).sum()


def _by_k(d: Tensor, places: Tensor, generator: torch.Generator, advance: Watch) -> Tensor:
    """`KPermutation` (width 1, cos^2) by Adam on sampled permutations, several starts at once."""
    n, adjacency, weights = len(d), _adjacency(places), _Weights(places)
    schedule = _K_LINES if places.shape[1] == 1 else _K_PIXELS
    with torch.random.fork_rng(devices=[]):
        layer = KPermutation(n, relaxation="cos2", dtype=torch.float32)
    drawn = _Drawn(layer, d.float())
    shape = (schedule.starts, *layer.theta.shape)
    theta = math.pi / 4 + 0.1 * torch.randn(shape, generator=generator)
    optimizer = torch.optim.Adam([theta.requires_grad_()], lr=0.1)
    gradients = vmap(
        grad(lambda t, w: functional_call(drawn, {"layer.theta": t}, (w,))), in_dims=(0, None), randomness="different"
    )

    def orders() -> list[Tensor]:
        found = []
        for t in theta.detach():
            with torch.no_grad():
                layer.theta.copy_(t)
            found.append(layer.permutation())
        return found

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        for step in range(schedule.steps):
            done = step / schedule.steps
            if step % (schedule.steps // _LOOKS) == 0:
                advance(done, _best(orders(), d, adjacency))
            samples = theta.detach().repeat_interleave(schedule.samples, 0)
            found = gradients(samples, weights.at(done))
            theta.grad = found.unflatten(0, (schedule.starts, schedule.samples)).mean(1)
            optimizer.step()
    result = _best(orders(), d, adjacency)
    advance(1.0, result)
    return result


def _sinkhorn(logits: Tensor, rounds: int = 20) -> Tensor:
    """Doubly stochastic matrices ``(..., n, n)``, by dividing rows and columns by their sums in turn."""
    for _ in range(rounds):
        logits = logits - logits.logsumexp(-1, keepdim=True)
        logits = logits - logits.logsumexp(-2, keepdim=True)
    return logits.exp()


def _assigned(scores: Tensor) -> Tensor:
    """The permutation ``(n,)`` that takes the largest sum of scores ``(n places, n items)``."""
    from scipy.optimize import linear_sum_assignment

    return torch.from_numpy(linear_sum_assignment(scores.numpy(), maximize=True)[1])


def _by_sinkhorn(d: Tensor, places: Tensor, generator: torch.Generator, advance: Watch) -> Tensor:
    """A dense matrix of scores, Gumbel noise and Sinkhorn's iterations, temperature from 1 to 0.1.

    Source: Mena et al., "Learning latent permutations with Gumbel-Sinkhorn networks", ICLR 2018.
    """
    n, adjacency, weights = len(d), _adjacency(places), _Weights(places)
    schedule = _SINKHORN_LINES if places.shape[1] == 1 else _SINKHORN_PIXELS
    distances = d.float()
    scores = 0.1 * torch.randn(schedule.starts, n, n, generator=generator)
    optimizer = torch.optim.Adam([scores.requires_grad_()], lr=0.1)
    for step in range(schedule.steps):
        done = step / schedule.steps
        if step % max(1, schedule.steps // _LOOKS) == 0:
            advance(done, _best([_assigned(start) for start in scores.detach()], d, adjacency))
        uniform = torch.rand(scores.shape, generator=generator).clamp_min(1e-20)
        mixing = _sinkhorn((scores - (-uniform.log()).clamp_min(1e-20).log()) / 0.1**done)
        # At a draw of independent rows this is the expected variation, which a mixture does not lower by blurring.
        loss = (mixing @ distances @ mixing.transpose(-1, -2) * weights.at(done)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    result = _best([_assigned(start) for start in scores.detach()], d, adjacency)
    advance(1.0, result)
    return result


_GRAPHS = (4, 6, 8, 10)
"""Nearest neighbours of a pixel in the graphs whose eigenvectors are taken; no one of them is the best for all data."""


def _by_spectrum(d: Tensor, places: Tensor, nearest: int) -> Tensor:
    """Eigenvectors of the graph of nearest neighbours, fitted to the places.

    The eigenvectors next to the constant one are the cosines of half a turn along the line, or along either side of the
    square, mixed by a rotation, as their eigenvalues are equal. All rotations are tried, and the order of least total
    variation is taken.

    Source: Atkins et al., "A spectral algorithm for seriation and the consecutive ones problem", SIAM J. Comput. 1998.
    """
    n, dims = places.shape
    off = d.clone().fill_diagonal_(math.inf)
    distances, items = off.topk(nearest, largest=False)
    scale = distances[:, : 3 - dims].mean()
    similarity = torch.zeros_like(d).scatter_(1, items, torch.exp(-distances / scale))
    similarity = torch.maximum(similarity, similarity.T)
    degree = similarity.sum(1).sqrt()
    laplacian = torch.eye(n, dtype=d.dtype) - similarity / (degree[:, None] * degree)
    vectors = torch.linalg.eigh(laplacian).eigenvectors
    axes = vectors[:, 1 : 1 + dims] / vectors[:, :1]
    axes = axes / axes.std(0)
    if dims == 1:
        return axes[:, 0].argsort()
    adjacency = _adjacency(places)
    centred = places / places.max() * 2 - 1
    orders = []
    for angle in np.arange(0, math.pi / 2, math.pi / 36):
        cos, sin = math.cos(angle), math.sin(angle)
        turned = axes @ torch.tensor([[cos, -sin], [sin, cos]], dtype=axes.dtype)
        reach = turned.quantile(torch.tensor([0.01, 0.99], dtype=axes.dtype), dim=0).abs().max(0).values
        spread = torch.asin((turned / reach).clamp(-1, 1)) * (2 / math.pi)
        orders.append(_assigned(-torch.cdist(centred, spread).square()))
    return _best(orders, d, adjacency)


def _refined(d: Tensor, places: Tensor, order: Tensor) -> Tensor:
    """The order after Frank-Wolfe steps on the quadratic assignment problem, if that lowers the total variation.

    Source: Vogelstein et al., "Fast approximate quadratic programming for graph matching", PLoS ONE 2015, by scipy.
    """
    from scipy.optimize import quadratic_assignment

    adjacency = _adjacency(places)
    start = torch.eye(len(d), dtype=d.dtype)[order].numpy()
    options: dict[str, Any] = {"P0": start, "maxiter": 100}
    found = quadratic_assignment(adjacency.numpy(), d.numpy(), method="faq", options=options)
    return _best([order, torch.from_numpy(found.col_ind).long()], d, adjacency)
