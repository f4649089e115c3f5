"""The mutants fit the code and the page; `make mutants` tries all of them."""

from __future__ import annotations

import ast

import pytest

from . import MUTANTS
from .run import SECURITY, Mutant, Suite, named_for, rows

CAUGHT = next(one for one in MUTANTS if one.defence == "signatures are compared by ==")
HARMLESS = CAUGHT._replace(right='"""Bytes: as long', wrong='"""In bytes: as long')
BROKEN = CAUGHT._replace(wrong="if (:")


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.defence)
def test_every_mutant_fits_todays_code(mutant: Mutant) -> None:
    assert mutant.is_possible, f"{mutant.path} does not hold once what is to be replaced"
    assert mutant.wrong != mutant.right
    if mutant.path.endswith(".py"):
        ast.parse(mutant.source)
    assert named_for(mutant.row)


def test_every_demand_that_is_not_left_to_the_app_has_a_mutant() -> None:
    without = [
        demand
        for demand, tests in rows().items()
        if tests and not any(demand.startswith(mutant.row) for mutant in MUTANTS)
    ]
    assert without == []


def test_no_defence_is_put_out_twice() -> None:
    assert len({mutant.defence for mutant in MUTANTS}) == len(MUTANTS)


def test_the_page_says_how_many_there_are() -> None:
    assert f" {len(MUTANTS)} ways" in " ".join(SECURITY.read_text().split())


def test_a_mutant_is_caught_or_survives_and_one_that_cannot_run_is_neither() -> None:
    suite = Suite([CAUGHT])
    for mutant in (CAUGHT, HARMLESS, BROKEN):
        assert all(name in " ".join(suite.of(mutant)) for name in named_for(mutant.row))
    assert suite.fails_without_any() is None
    assert (suite.try_on(CAUGHT).caught_by or "").startswith("test_signatures_are_compared_in_constant_time")
    assert suite.try_on(HARMLESS).caught_by is None
    with pytest.raises(RuntimeError, match="SyntaxError"):
        suite.try_on(BROKEN)
