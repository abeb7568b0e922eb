"""A letter for each protocol, so that no two scores look comparable that are not."""

from collections import Counter
from collections.abc import Iterable
from string import ascii_lowercase

from cifargan.report.scores import Score

Group = tuple[str, str]


class Footnotes:
    """The protocols of some scores, the most frequent one first.

    Args:
        scores: whatever is shown together.
    """

    def __init__(self, scores: Iterable[Score]) -> None:
        # most_common is stable: among equals, the order in which they were met.
        counted = Counter(score.group for score in scores).most_common()
        self.letters: dict[Group, str] = {group: _letter(i) for i, (group, _) in enumerate(counted)}

    def of(self, score: Score) -> str:
        """The letter of a score's protocol."""
        return self.letters[score.group]

    def order(self, score: Score | None) -> tuple[float, float]:
        """Sorts by protocol and then by value; no score comes last."""
        if score is None:
            return float("inf"), 0.0
        return list(self.letters).index(score.group), score.value

    def lines(self) -> list[tuple[str, str]]:
        """Letter and text of every protocol."""
        return [(letter, f"{metric}: {protocol}") for (metric, protocol), letter in self.letters.items()]


def _letter(i: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    rest, last = divmod(i, len(ascii_lowercase))
    return (_letter(rest - 1) if rest else "") + ascii_lowercase[last]
