"""What a test counted, shown at the end of the run, whichever process ran the test."""

from collections.abc import Iterable, Iterator

import pytest

FIGURES = "figures"
"""The property of a test that holds a text for people."""


def list_figures(reports: Iterable[pytest.TestReport]) -> Iterator[str]:
    """Return the texts of tests that have one."""
    for report in reports:
        for name, value in report.user_properties:
            if name == FIGURES:
                yield f"{report.nodeid}\n{value}"
