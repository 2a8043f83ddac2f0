"""What a reward model said in a pilot, said again of chains; on fixed seeds.

Bounds are four standard deviations wide, or more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from motes.lab.chains import ChainWorld
from motes.lab.measure.readings import Better, ReadAnswer, Readings, answers_read, infer_mistakes
from motes.lab.measure.reliability import auroc
from pilots import measured, pilot_of


@dataclass(frozen=True)
class AtOnceOrNever:
    """Notices seven mistakes of ten, at once; the others it takes for right, for good."""

    def next(self, before: float | None, was_right: bool, is_right: bool, share: float, normal: float) -> float:
        if was_right and not is_right:
            return -3.0 if normal < 0.524 else 1.0
        return 1.0 if before is None else before


def jumps(answers: Sequence[ReadAnswer]) -> list[float]:
    """By how much logits change at first mistakes, but for first steps."""
    return [a.logits[a.mistake] - a.logits[a.mistake - 1] for a in answers if a.mistake]


class TestReadings:
    def test_a_mistake_is_noticed_as_often_as_in_the_pilot_and_no_later(self):
        world = ChainWorld(6, 0.2, 1.0, systematic=0.0, num_problems=60, reader=AtOnceOrNever())
        told = Readings(pilot_of(world))
        again = pilot_of(replace(world, seed=1, reader=told))
        assert {round(jump, 1) for jump in jumps(again)} <= {-4.0, 0.0}
        assert np.mean([jump < -1 for jump in jumps(again)]) == pytest.approx(0.7, abs=0.09)
        for answer in again:
            if answer.mistake is not None:
                assert len(set(answer.logits[answer.mistake :])) == 1

    def test_scores_are_told_apart_as_well_as_in_the_pilot(self):
        """At each step, and between steps."""
        world = ChainWorld(8, 0.2, 1.6, systematic=0.0, memory=0.5, num_problems=150)
        before = pilot_of(world)
        after = pilot_of(replace(world, seed=1, reader=Readings(before)))
        for place in (0, 3, 7):
            areas = []
            for answers in (before, after):
                right = [answer.mistake is None or place < answer.mistake for answer in answers]
                areas.append(auroc([answer.logits[place] for answer in answers], right))
            assert areas[0] == pytest.approx(areas[1], abs=0.05), place
        assert np.mean(jumps(after)) == pytest.approx(np.mean(jumps(before)), abs=0.3)
        assert np.std(jumps(after)) == pytest.approx(np.std(jumps(before)), rel=0.15)

    def test_answers_may_be_longer_than_the_pilots_and_go_wrong_where_those_never_did(self):
        told = Readings([ReadAnswer("a", (1.0, 2.0), None, True), ReadAnswer("a", (1.0, -1.0), 1, False)])
        assert told.next(None, True, False, 0.1, 0.0) == -1.0, "no first step was wrong: as later ones"
        assert told.next(-1.0, False, False, 0.7, 0.0) == -1.0
        assert Readings([ReadAnswer("a", (2.0,), None, True)]).next(None, True, False, 1.0, 0.0) == 2.0

    def test_a_better_one_tells_as_many_apart_as_it_should(self):
        world = ChainWorld(5, 0.3, 1.0, systematic=0.0, num_problems=150)
        told = Readings(pilot_of(world))
        better = told.with_auroc(0.95)
        assert isinstance(better, Better)
        found = pilot_of(replace(world, seed=1, reader=better))
        areas = []
        for place in range(5):
            right = [answer.mistake is None or place < answer.mistake for answer in found]
            areas.append(auroc([answer.logits[place] for answer in found], right))
        assert np.mean(areas) == pytest.approx(0.95, abs=0.02)
        assert told.with_auroc(0.6) is told, "it is better than that"


class TestFirstMistakes:
    def test_records_say_where_answers_go_wrong(self, tmp_path):
        world = ChainWorld(4, 0.3, 2.0, luck=0.3, num_problems=30)
        records = measured(tmp_path, world, budgets=(4,))
        found = answers_read(records)
        assert len(found) == 120
        wrong = [answer for answer in found if not answer.right]
        assert all(answer.mistake is not None for answer in wrong)
        assert any(answer.is_lucky for answer in found)
        assert all(answer.mistake is None for answer in found if answer.right and not answer.is_lucky)
        assert not answers_read([replace(record, prefixes=None) for record in records])

    @pytest.mark.parametrize(("separation", "share"), [(3.0, 0.9), (1.5, 0.5)])
    def test_scores_tell_where_nobody_checked(self, separation: float, share: float):
        """Blindly, an answer's first mistake is found one time in six."""
        answers = pilot_of(ChainWorld(8, 0.2, separation, systematic=0.0, memory=0.8, num_problems=100))
        blind = [replace(answer, mistake=None) for answer in answers]
        found = infer_mistakes(blind)
        pairs = [(a.mistake, b.mistake) for a, b in zip(answers, found, strict=True) if a.mistake is not None]
        assert all(b is not None for _, b in pairs), "a wrong answer has a mistake"
        assert np.mean([a == b for a, b in pairs]) > share
        assert np.mean([a - b for a, b in pairs]) == pytest.approx(0.0, abs=0.35), "neither early nor late"
        assert np.mean([answer.is_lucky for answer in found if answer.right]) < 0.15, "none is right by luck"
        assert found == infer_mistakes(blind), "drawn with a seed"

    def test_luck_is_told_from_success_where_nobody_checked(self):
        """Six answers of ten that are right are so in spite of a mistake."""
        answers = pilot_of(ChainWorld(8, 0.2, 2.5, systematic=0.0, luck=0.35, num_problems=100))
        assert np.mean([answer.is_lucky for answer in answers if answer.right]) > 0.5
        found = infer_mistakes([replace(answer, mistake=None) for answer in answers])
        for of in (lambda answer: answer.mistake is None, lambda answer: answer.is_lucky):
            assert np.mean(list(map(of, found))) == pytest.approx(np.mean(list(map(of, answers))), abs=0.04)

    def test_where_all_are_wrong_or_all_are_right(self):
        wrong = [ReadAnswer("a", (0.0, 1.0), None, False)] * 3
        right = [ReadAnswer("a", (0.0, 1.0), None, True)] * 3
        assert infer_mistakes(right) == right
        assert {answer.mistake for answer in infer_mistakes(wrong)} == {0}
