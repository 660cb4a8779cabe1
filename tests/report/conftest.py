"""Fixtures of the report's tests: a finished run with its maps, a copy to edit, and its report."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.helpers.report_case import Case, Page, make_case


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A finished run with its evaluation and maps."""
    return make_case(tmp_path_factory.mktemp("report"))


@pytest.fixture
def editable(case: Case, tmp_path: Path) -> Case:
    """A copy of the case that a test may change."""
    run = tmp_path / "case"
    shutil.copytree(case.run, run)
    return Case(run, case.table.copy(), run / "test")


@pytest.fixture(scope="session")
def page(case: Case) -> Page:
    """Return the report of the case."""
    return case.report()
