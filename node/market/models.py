"""What clients ask who choose a model by name: which there are."""

from __future__ import annotations

from collections.abc import Sequence

from ledger.jobs import ServedModel, normalize_model
from ledger.store import registry
from ledger.views.reader import ACTIVE_MINER_MS
from node.market.desk import Desk

MAX_MODELS = 1_000


class ModelDesk(Desk):
    """The models of active miners."""

    def models(self, default_model: str) -> Sequence[ServedModel]:
        """Return the models that active miners name, by name.

        Miners that take any model stand for `default_model`. At most MAX_MODELS, those that are
        served longest.
        """
        since_ms, any_model = self._clock_ms() - ACTIVE_MINER_MS, normalize_model(default_model)
        found: dict[str, ServedModel] = {}
        for served, miners, first_ms in registry.list_capabilities(self._store.reader, since_ms):
            for name in (any_model,) if served is None else sorted(served):
                known = found.get(name)
                if not name or (known is None and len(found) >= MAX_MODELS):
                    continue
                found[name] = ServedModel(
                    name=name,
                    miners=miners + (known.miners if known else 0),
                    since_ms=known.since_ms if known else first_ms,
                )
        return [found[name] for name in sorted(found)]

    def serves(self, model: str) -> bool:
        """Tell whether an active miner takes jobs for a model."""
        return self._known.count_eligible(model, self._clock_ms() - ACTIVE_MINER_MS) > 0
