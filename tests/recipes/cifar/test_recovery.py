"""Recovery without labels: on smooth made-up images the seriations and the K-permutation find the order."""

import dataclasses
import json

import pytest
import torch

from recipes.cifar import recovery as module
from recipes.cifar.__main__ import main
from recipes.cifar.config import METHODS
from recipes.cifar.data import PIXELS, SIDE, load_data, permutation, permuted
from recipes.cifar.recoveries import Outcome, markdown, recover_all
from recipes.cifar.recovery import Recovery, differences, recover, score, variation

from .conftest import smooth


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return smooth(600, seed=5)


def test_differences_are_those_of_the_definition() -> None:
    x = torch.randn(3, 3, SIDE, SIDE)
    d = differences(x)
    a, b = 70, 999
    expected = (x.flatten(2)[..., a] - x.flatten(2)[..., b]).square().mean()
    assert d[a, b] == pytest.approx(float(expected), rel=1e-5)
    assert d.equal(d.T) and (d.diagonal() == 0).all()


def test_variation_is_that_of_the_restored_image(images) -> None:
    p = permutation("random", 1)
    mixed = permuted(images, p)
    total = torch.cat([images.diff(dim=2).square().flatten(), images.diff(dim=3).square().flatten()]).mean()
    assert variation(p.argsort(), differences(mixed)) == pytest.approx(float(total), rel=1e-4)


def test_score_counts_symmetries_as_right_and_nothing_else() -> None:
    p = permutation("random", 2)
    grid = p.argsort().view(SIDE, SIDE)
    for turned in (grid, grid.flip(0), grid.T.flip(1), grid.rot90(1)):
        assert score(turned.flatten(), p).exact and score(turned.flatten(), p).neighbours == 1
    swapped = p.argsort()
    swapped[[40, 900]] = swapped[[900, 40]]
    found = score(swapped, p)
    assert not found.exact and found.placed == 1 - 2 / PIXELS and found.neighbours == 1 - 8 / 1984
    assert score(torch.randperm(PIXELS), p).neighbours < 0.05


@pytest.mark.parametrize("method", ["spectral", "spectral+faq", "oracle"])
def test_bit_reversal_is_recovered_exactly(images, method) -> None:
    p = permutation("bitreversal")
    found = recover(permuted(images, p), method, structure="lines", truth=p, progress=False)
    assert score(found.order, p).exact


def test_random_permutation_is_recovered_by_spectrum_and_search(images, monkeypatch) -> None:
    monkeypatch.setattr(module, "_GRAPHS", (4,))
    p = permutation("random", 4)
    found = recover(permuted(images, p), "spectral+faq", structure="pixels", progress=False)
    assert score(found.order, p).neighbours > 0.9


def test_spectral_recovery_does_not_depend_on_the_permutation(images, monkeypatch) -> None:
    monkeypatch.setattr(module, "_GRAPHS", (4,))
    orders = []
    for kind in ("random", "none"):
        p = permutation(kind, 6)
        orders.append(p[recover(permuted(images, p), "spectral", structure="pixels", progress=False).order])
    assert score(orders[0], torch.arange(PIXELS)).neighbours == pytest.approx(
        score(orders[1], torch.arange(PIXELS)).neighbours, abs=0.02
    )


def test_k_permutation_recovers_bit_reversal(images) -> None:
    p = permutation("bitreversal")
    looks: list[float] = []
    found = recover(
        permuted(images, p), "k", structure="lines", progress=False, watch=lambda done, order: looks.append(done)
    )
    # Not every seed finds every line on these pictures; an order by chance keeps a twentieth.
    assert score(found.order, p).neighbours > 0.8
    assert looks == sorted(looks) and looks[0] == 0 and looks[-1] == 1


@pytest.mark.parametrize(("method", "schedule"), [("k", "_K_LINES"), ("gumbel-sinkhorn", "_SINKHORN_LINES")])
def test_learned_methods_repeat_themselves(images, method, schedule, monkeypatch) -> None:
    monkeypatch.setattr(module, schedule, dataclasses.replace(getattr(module, schedule), starts=2, steps=40))
    before = torch.get_rng_state()
    first, again, other = (
        recover(images, method, structure="lines", seed=seed, progress=False).order for seed in (1, 1, 2)
    )
    assert first.equal(again) and not first.equal(other)
    assert torch.get_rng_state().equal(before), "the global generator is left as it was"


@pytest.mark.parametrize(("method", "schedule"), [("k", "_K_LINES"), ("gumbel-sinkhorn", "_SINKHORN_LINES")])
def test_learned_methods_lower_the_variation(images, method, schedule, monkeypatch) -> None:
    monkeypatch.setattr(module, schedule, dataclasses.replace(getattr(module, schedule), starts=4, steps=200))
    p = permutation("bitreversal")
    mixed = permuted(images, p)
    found = recover(mixed, method, structure="lines", progress=False)
    assert found.order.sort().values.equal(torch.arange(PIXELS))
    assert found.variation < 0.7 * variation(torch.arange(PIXELS), differences(mixed))


def test_the_learned_gradient_is_that_of_the_quadratic_form() -> None:
    from kaleido_audio.nn import KPermutation

    n = 8
    d = torch.rand(n, n)
    d = d + d.T
    weights = torch.rand(n, n)
    weights = weights + weights.T
    layer = KPermutation(n, dtype=torch.float32)
    found = []
    for loss in (
        lambda: module._Drawn(layer, d)(weights),
        lambda: ((drawn := layer.sample(torch.eye(n), dim=0)) @ d @ drawn.T * weights).sum(),
    ):
        torch.manual_seed(0)
        found.append(torch.autograd.grad(loss(), layer.theta)[0])
    torch.testing.assert_close(*found)


def test_errors(images) -> None:
    with pytest.raises(ValueError, match="expected a method in"):
        recover(images, "guess", structure="lines")
    with pytest.raises(ValueError, match="expected a structure in"):
        recover(images, "k", structure="squares")
    with pytest.raises(ValueError, match=r"expected images \(N, 3, 32, 32\), got \(600, 3, 32\)"):
        recover(images[..., 0], "k", structure="lines")
    with pytest.raises(ValueError, match="the oracle needs the permutation"):
        recover(images, "oracle", structure="lines")


def test_a_recovery_is_written_and_read(tmp_path) -> None:
    found = Recovery(torch.randperm(PIXELS), 0.5, 2.0)
    found.save(tmp_path / "recovery.json")
    back = Recovery.load(tmp_path / "recovery.json")
    assert back.order.equal(found.order) and (back.variation, back.seconds) == (0.5, 2.0)


def test_command_keeps_outcomes_and_tells_data_apart(root, tmp_path, capsys) -> None:
    command = (
        f"recover --data {root} --out {tmp_path / 'out'} --cases bitreversal-lines --methods spectral oracle".split()
    )
    assert main([*command, "--seeds", "0", "1", "--quiet"]) == 0
    table = capsys.readouterr().out
    assert "| bitreversal, rows and columns | oracle | 2 of 2 | 100.0 | 100.0 | 1.00 |" in table
    assert "180 images of made-up (a stand-in, not CIFAR-10). Seeds: 0, 1" in table
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.json")}
    assert len(times) == 4
    assert main([*command, "--seeds", "0", "1", "0", "--methods", "oracle", "oracle", "--quiet"]) == 0
    assert "| oracle | 2 of 2 |" in capsys.readouterr().out
    assert times == {path: path.stat().st_mtime_ns for path in times}
    assert main([*command, "--images", "100", "--quiet"]) == 2
    assert "not 100 of made-up" in capsys.readouterr().err
    assert main([*command, "--seeds", "-1", "--quiet"]) == 2
    assert "expected 0 <= --seeds < 2**63, got -1" in capsys.readouterr().err
    broken = next(iter(times))
    broken.write_text("{}")
    assert main([*command, "--seeds", "0", "1", "--quiet"]) == 2
    assert f"{broken} cannot be read" in capsys.readouterr().err


def test_an_outcome_of_other_images_is_refused(root, tmp_path) -> None:
    data, options = load_data(root), {"cases": ["bitreversal-lines"], "methods": ["oracle"], "seeds": [0]}
    table = recover_all(data, tmp_path, progress=False, **options)
    other = dataclasses.replace(data, train=dataclasses.replace(data.train, images=data.train.images.flip(0)))
    with pytest.raises(ValueError, match=r"seed0\.json is of other images than given, of the same name and number"):
        recover_all(other, tmp_path, progress=False, **options)
    # As earlier versions wrote it.
    (path,) = tmp_path.glob("*.json")
    content = json.loads(path.read_text())
    del content["content"]
    path.write_text(json.dumps(content))
    assert recover_all(data, tmp_path, progress=False, **options) == table


def test_table_counts_exact_recoveries() -> None:
    base = Outcome("random-pixels", "k", 0, "x", 10, 0.5, 0.25, False, 2.0, 1.0, 3.0)
    table = markdown([base, dataclasses.replace(base, seed=1, neighbours=1.0, placed=1.0, exact=True, variation=1.0)])
    assert "| random, nothing | k | 1 of 2 | 75.0 (50.0-100.0) | 62.5 (25.0-100.0) | 1.50 (1.00-2.00) | 3.0 |" in table
    assert set(METHODS) >= {"k", "gumbel-sinkhorn", "spectral", "oracle"}
