"""What every test shares: fixtures, and how hard hypothesis looks.

`dev` looks a little at everything. `ci`, chosen where CI is set, looks at the same examples each
time, so that a change never fails for what another one did. `deep` looks long:
`HYPOTHESIS_PROFILE=deep make test`. No profile has a deadline: a busy machine is not a bug.
"""

import os

import pytest
from hypothesis import HealthCheck, settings

from tests.api_fixtures import node
from tests.engines import engine, open_store
from tests.explorer_fixtures import browser, client, views
from tests.figures import list_figures
from tests.generated_ledger import generated
from tests.miner_fixtures import embedded_engine, embedded_model, tiny_directory, tiny_model

__all__ = [
    "browser",
    "client",
    "embedded_engine",
    "embedded_model",
    "engine",
    "generated",
    "node",
    "open_store",
    "tiny_directory",
    "tiny_model",
    "views",
]

SLOW_MACHINE = [HealthCheck.too_slow]

settings.register_profile("dev", deadline=None, suppress_health_check=SLOW_MACHINE)
settings.register_profile(
    "ci", deadline=None, suppress_health_check=SLOW_MACHINE, derandomize=True, database=None
)
settings.register_profile(
    "deep", deadline=None, suppress_health_check=SLOW_MACHINE, max_examples=5000
)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev")
)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in list_figures(terminalreporter.getreports("passed")):
        terminalreporter.write_line(line)
