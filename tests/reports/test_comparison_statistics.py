"""Means, their two errors, and when a difference is called one."""

import math

import pytest
import torch

from vae.reports.comparison.statistics import (
    Measured,
    difference,
    standard_error,
    two_sided_p,
)


@pytest.mark.parametrize(
    ("t", "dof", "p"),  # critical values of Student's t from any table
    [(63.657, 1, 0.01), (9.925, 2, 0.01), (4.604, 4, 0.01), (2.756, 29, 0.01), (2.042, 30, 0.05)],
)
def test_students_t_agrees_with_its_table(t: float, dof: float, p: float) -> None:
    assert two_sided_p(t, dof) == pytest.approx(p, rel=2e-3)
    assert two_sided_p(-t, dof) == two_sided_p(t, dof)


def test_without_a_spread_the_law_is_normal() -> None:
    assert two_sided_p(1.96, math.inf) == pytest.approx(0.05, rel=1e-3)
    assert two_sided_p(0.0, 3) == pytest.approx(1.0)
    assert math.isnan(two_sided_p(math.nan, 3))


def test_one_training_is_judged_by_the_estimates_alone() -> None:
    found = difference(Measured.from_values([10.0], 0.3), Measured.from_values([12.0], 0.4))
    assert (found.mean, found.se, found.of_trainings) == (2.0, 0.5, False)
    assert found.p == pytest.approx(math.erfc(4 / math.sqrt(2)))
    paired = difference(
        Measured.from_values([10.0], 0.3), Measured.from_values([12.0], 0.4), paired_se=0.1
    )
    assert paired.se == 0.1


def test_two_trainings_of_each_count_their_spread_by_welch() -> None:
    a, b = Measured.from_values([1.0, 2.0, 3.0], 0.0), Measured.from_values([4.0, 8.0], 0.0)
    found = difference(a, b)
    assert found.se == pytest.approx(math.sqrt(1 / 3 + 8 / 2))
    dof = (1 / 3 + 4) ** 2 / ((1 / 3) ** 2 / 2 + 4**2 / 1)
    assert found.p == pytest.approx(two_sided_p(4 / found.se, dof))
    assert found.of_trainings
    assert not found.significant
    mixed = difference(
        Measured.from_values([1.0], 0.1), b
    )  # one training of one of them says nothing
    assert not mixed.of_trainings


def test_the_two_errors_of_a_difference_are_told_apart() -> None:
    a, b = Measured.from_values([1.0, 3.0], 0.6), Measured.from_values([4.0, 8.0], 0.8)
    found = difference(a, b, paired_se=0.5)
    assert found.estimate_se == 0.5
    assert found.trainings_se == pytest.approx(math.sqrt(2 / 2 + 8 / 2))
    assert found.se == pytest.approx(math.hypot(0.5, found.trainings_se or 0))
    alone = difference(Measured.from_values([1.0], 0.6), b)
    assert (alone.estimate_se, alone.trainings_se) == (pytest.approx(1.0), None)


def test_an_unknown_error_decides_nothing() -> None:
    found = difference(Measured.from_values([1.0], None), Measured.from_values([100.0], 0.1))
    assert found.se is None
    assert not found.significant


def test_false_alarms_are_as_rare_as_the_level_says() -> None:
    generator = torch.Generator().manual_seed(0)
    alarms = 0
    for _ in range(2000):
        a, b = torch.randn(2, 3, generator=generator, dtype=torch.float64).tolist()
        alarms += difference(Measured.from_values(a, 0.0), Measured.from_values(b, 0.0)).significant
    assert alarms / 2000 < 0.012


def test_standard_error() -> None:
    assert standard_error(torch.tensor([1.0, 3.0])) == pytest.approx(1.0)


def test_a_difference_within_rounding_is_none_though_no_spread_was_seen():
    a, b = (Measured(value, 0.0, 0.0, 3) for value in (280.0, 280.0 + 1e-7))
    assert not difference(a, b).significant
    assert difference(a, Measured(281.0, 0.0, 0.0, 3)).significant
