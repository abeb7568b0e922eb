"""Nearest neighbours and the scores from them, against `prdc`, brute force and cases computed by hand."""

import math
from collections.abc import Callable

import pytest
import torch
from prdc import compute_prdc
from torch import Tensor

from cifargan.evaluation import precision_recall
from cifargan.evaluation.precision_recall import authenticity, manifold_scores, nearest


def draw(n: int, d: int, *, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + shift


def line(*positions: float) -> Tensor:
    """Points on a line."""
    return torch.tensor(positions).unsqueeze(1)


@pytest.fixture(params=[2048, 7])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    size: int = request.param
    monkeypatch.setattr(precision_recall, "BLOCK", size)
    return size


class TestNearest:
    @pytest.mark.parametrize("k", [1, 4, 20])
    def test_is_brute_force(self, block: int, k: int) -> None:
        queries, references = draw(33, 5, seed=0), draw(50, 5, seed=1)
        values, indices = torch.cdist(queries.double(), references.double()).sort(dim=1)
        found = nearest(queries, references, k=k)
        assert found.distances.dtype == torch.float64
        torch.testing.assert_close(found.distances, values[:, :k], rtol=1e-12, atol=0)
        assert torch.equal(found.indices, indices[:, :k])

    def test_may_leave_out_the_query_itself(self, block: int) -> None:
        features = draw(50, 5, seed=2)
        with_self, without = nearest(features, features, k=5), nearest(features, features, torch.arange(50), k=4)
        assert torch.equal(with_self.indices[:, 0], torch.arange(50))
        assert torch.equal(with_self.distances[:, 0], torch.zeros(50, dtype=torch.float64))
        assert torch.equal(with_self.indices[:, 1:], without.indices)
        assert torch.equal(with_self.distances[:, 1:], without.distances)
        every = nearest(features, features, torch.arange(50), k=49).indices.sort(dim=1).values
        assert every.tolist() == [[j for j in range(50) if j != i] for i in range(50)]

    def test_copies_are_at_zero_however_far_from_the_origin(self) -> None:
        """|x|^2 + |y|^2 - 2 x.y would leave roundings of 1e8."""
        features = draw(20, 16, seed=4, shift=10_000.0)
        found = nearest(features.flip(0), features, k=2)
        assert torch.equal(found.indices[:, 0], torch.arange(20).flip(0))
        assert torch.equal(found.distances[:, 0], torch.zeros(20, dtype=torch.float64))
        exact = (features.flip(0).double() - features[found.indices[:, 1]].double()).norm(dim=1)
        torch.testing.assert_close(found.distances[:, 1], exact, rtol=1e-14, atol=0)

    def test_order_is_that_of_the_exact_distances(self) -> None:
        """So far from the origin, the distances of the search have errors as large as their differences."""
        references, queries = draw(300, 16, seed=25).double() + 1e7, draw(20, 16, seed=26).double() + 1e7
        found = nearest(queries, references, k=50)
        exact = (queries.unsqueeze(1) - references[found.indices]).norm(dim=2)
        torch.testing.assert_close(found.distances, exact, rtol=1e-14, atol=0)
        assert (found.distances.diff(dim=1) >= 0).all()

    def test_takes_pixels(self) -> None:
        generator = torch.Generator().manual_seed(5)
        pixels = torch.randint(0, 256, (30, 48), dtype=torch.uint8, generator=generator)
        found = nearest(pixels[:3] ^ 1, pixels, k=1)  # every pixel is one level off
        assert found.indices.flatten().tolist() == [0, 1, 2]
        assert found.distances.flatten().tolist() == pytest.approx([math.sqrt(48)] * 3, rel=1e-14)

    def test_holds_no_more_than_a_block(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sizes = []

        def spy(x: Tensor, y: Tensor) -> Tensor:
            sizes.append((len(x), len(y)))
            return torch.cdist(x, y).square()

        monkeypatch.setattr(precision_recall, "_squared_distances", spy)
        monkeypatch.setattr(precision_recall, "BLOCK", 8)
        manifold_scores(draw(20, 3, seed=6), draw(12, 3, seed=7), k=2)
        assert max(sizes) == (8, 8)
        assert sum(a * b for a, b in sizes) == 20 * 20 + 12 * 12 + 20 * 12

    @pytest.mark.parametrize(
        ("queries", "references", "k", "own", "message"),
        [
            (torch.zeros(3, 2), torch.zeros(4, 2), 5, None, "5 nearest neighbours requested, but there are 4"),
            (
                torch.zeros(4, 2),
                torch.zeros(4, 2),
                4,
                torch.arange(4),
                "4 nearest neighbours requested, but there are 3",
            ),
            (torch.zeros(3, 2), torch.zeros(4, 2), 0, None, "0 nearest neighbours"),
            (torch.zeros(3, 2), torch.zeros(4, 5), 1, None, r"not \(3, 2\) and \(4, 5\)"),
            (torch.zeros(3, 2), torch.full((4, 2), math.nan), 1, None, "not finite"),
            (torch.full((3, 2), math.inf), torch.zeros(4, 2), 1, None, "not finite"),
        ],
    )
    def test_refuses(self, queries: Tensor, references: Tensor, k: int, own: Tensor | None, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            nearest(queries, references, own, k=k)


class TestManifoldScores:
    @pytest.mark.parametrize(
        ("n", "m", "d", "k"), [(50, 50, 4, 1), (61, 33, 8, 5), (12, 75, 3, 2), (40, 90, 64, 10), (60, 45, 3, 3)]
    )
    @pytest.mark.parametrize("rounded", [False, True])  # then many distances are equal
    def test_are_exactly_those_of_prdc(self, block: int, n: int, m: int, d: int, k: int, rounded: bool) -> None:
        real, fake = draw(n, d, seed=n), draw(m, d, seed=m + 1, shift=0.3)
        if rounded:
            real, fake = real.round(), fake.round()
        expected = compute_prdc(real.numpy(), fake.numpy(), nearest_k=k)
        assert manifold_scores(real, fake, k=k)._asdict() == expected
        assert expected["coverage"] > 0

    @pytest.mark.parametrize("shift", [0.0, 100.0])
    @pytest.mark.parametrize("k", [1, 5])
    def test_of_the_real_images_are_perfect_and_of_far_images_zero(self, block: int, k: int, shift: float) -> None:
        """An image's ball holds itself and the k - 1 that are nearer than the last: k balls hold an image."""
        real = draw(50, 16, seed=9, shift=shift)
        assert manifold_scores(real, real.flip(0), k=k) == pytest.approx((1, 1, 1, 1), rel=1e-15)
        assert manifold_scores(real, real[:40] + 1000, k=k) == (0, 0, 0, 0)

    def test_of_one_image_repeated(self, block: int) -> None:
        """The radius of each real ball is 1 or 2, and the image lies in two of them. Its own ball is empty."""
        real = line(0, 1, 3, 5, 7)
        scores = manifold_scores(real, line(*[0.25] * 20), k=1)
        assert scores == (1, 0, 2, 2 / 5)

    def test_of_one_mode_of_two(self) -> None:
        """Every sample is real, half of the real images have no sample near."""
        real = torch.cat([draw(40, 2, seed=12), draw(40, 2, seed=13, shift=100.0)])
        scores = manifold_scores(real, real[:40] + 1e-4, k=3)
        assert scores.precision == 1
        assert (scores.recall, scores.coverage) == (0.5, 0.5)

    @pytest.mark.parametrize(
        ("real", "fake", "message"),
        [
            ((5, 2), (9, 2), "5 nearest neighbours requested, but there are 4"),
            ((9, 2), (5, 2), "5 nearest neighbours requested, but there are 4"),
            ((9, 2), (9, 3), r"not \(9, 2\) and \(9, 3\)"),
        ],
    )
    def test_refuses(self, real: tuple[int, int], fake: tuple[int, int], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            manifold_scores(torch.zeros(real), torch.zeros(fake), k=5)


class TestAuthenticity:
    def test_of_a_case_computed_by_hand(self, block: int) -> None:
        real = line(0, 1, 4, 10)  # whose nearest others are 1, 1, 3 and 6 away
        result = authenticity(real, line(0.5, -1.5, 4.75, 13, 20, 1))
        assert result.indices[1:].tolist() == [0, 2, 3, 3, 1]
        assert result.distances.tolist() == [0.5, 1.5, 0.75, 3, 10, 0]
        assert result.ratios.tolist() == pytest.approx([0.5, 1.5, 0.25, 0.5, 10 / 6, 0], rel=1e-15)
        assert result.share == 2 / 6

    def test_of_copies_and_of_far_samples(self, block: int) -> None:
        real = draw(50, 16, seed=16, shift=100.0)
        copied = authenticity(real, real[10:30])
        assert copied.share == 0
        assert copied.indices.tolist() == list(range(10, 30))
        assert torch.equal(copied.ratios, torch.zeros(20, dtype=torch.float64))
        far = authenticity(draw(50, 4, seed=17), draw(20, 4, seed=18, shift=1000.0))
        assert far.share == 1
        assert far.ratios.min() > 10

    def test_of_a_duplicated_real_image(self, block: int) -> None:
        """Its nearest other image is at distance 0: only a third copy is not authentic."""
        result = authenticity(line(0.1, 0.1, 50), line(0.1, 0.2))
        assert result.ratios.tolist() == [0, math.inf]
        assert result.share == 0.5

    def test_refuses_sets_that_are_too_small(self) -> None:
        with pytest.raises(ValueError, match="1 nearest neighbours requested, but there are 0"):
            authenticity(line(1), line(2))
        with pytest.raises(ValueError, match="at least 1 sample"):
            authenticity(line(1, 2), line())


def test_nothing_draws_from_a_global_generator(global_rng: Callable[[], bytes]) -> None:
    real, fake = draw(30, 4, seed=21), draw(30, 4, seed=22)
    before = global_rng()
    nearest(fake, real, k=2)
    manifold_scores(real, fake)
    authenticity(real, fake)
    assert global_rng() == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_scores_are_the_same_on_a_gpu() -> None:
    real, fake = draw(3000, 64, seed=23), draw(2500, 64, seed=24, shift=0.1)
    device = torch.device("cuda")
    assert manifold_scores(real, fake, device=device) == manifold_scores(real, fake)
    ours, expected = authenticity(real, fake, device=device), authenticity(real, fake)
    assert torch.equal(ours.indices, expected.indices)
    torch.testing.assert_close(ours.ratios, expected.ratios, rtol=1e-12, atol=0)
