"""Which addresses are visited: every list at its top, at its end, and at random places between."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from random import Random
from urllib.parse import quote, urlencode

from scripts.bench_explorer.sample import Sample

CURSOR_STEP = 40
"""Of so many visits of a list one is at its top and one at its end."""

Choose = Callable[[int], str]
"""Returns the address of a visit by its number."""
Query = Mapping[str, str]

_COLUMNS = {"model": "model", "miner": "provider", "client": "client"}
"""Filters of the list of receipts, and where a receipt has the value."""
_STATES = ("", "completed", "failed", "cancelled", "pending", "running")
_RANGES = ("day", "week", "month", "quarter", "year")
_NAMES = ("receipt_id", "provider", "client", "model", "id", "job_id")
"""What people look for."""


def stay(address: str) -> Choose:
    """Return one address for every visit."""
    return lambda _number: address


class Places:
    """The addresses of every figure."""

    def __init__(self, sample: Sample, random: Random) -> None:
        self._sample = sample
        self._random = random

    def list_lists(self) -> dict[str, Choose]:
        """Return every list."""
        sample = self._sample
        lists = {
            "/blocks": self._page("/blocks", sample.height),
            "/explorer/blocks": self._page("/explorer/blocks", sample.height),
            "/explorer/transactions": self._page("/explorer/transactions", sample.leaves),
            "/v1/receipts": self._page("/v1/receipts", sample.leaves),
            "/receipts.json": self._page("/receipts.json", sample.leaves),
        }
        lists |= {
            f"/receipts{name}": self._page("/receipts", sample.leaves, choose)
            for name, choose in self._list_filters()
        }
        lists |= {
            f"/jobs {state}".rstrip(): self._page("/jobs", sample.jobs, partial(_narrow, state))
            for state in _STATES
        }
        for path in ("/pending", "/pending.json", "/miners", "/miners.json"):
            lists[path] = stay(path)
        return lists | self._list_accounts()

    def _list_accounts(self) -> dict[str, Choose]:
        largest = {"client": self._sample.client, "provider": self._sample.provider}
        pages = {
            f"/accounts/{{the largest}} as {side}": self._page(
                f"/accounts/{account}", self._sample.leaves, partial(dict, **{"as": side})
            )
            for side, account in largest.items()
        }
        return pages | {
            "/accounts/{any}": self._take("/accounts/{}", "provider"),
            "/accounts/{any}.json": self._take("/accounts/{}.json", "client"),
            "/v1/accounts/{any}/audits": self._take("/v1/accounts/{}/audits", "provider"),
            "/v1/receipts/{id}/audits": self._take("/v1/receipts/{}/audits", "receipt_id"),
        }

    def list_details(self) -> dict[str, Choose]:
        """Return pages and answers about one thing, and charts."""
        pages = {
            path: stay(path)
            for path in ("/", "/network", "/explorer/stats", "/feeds/receipts.atom")
        }
        pages |= {
            "/receipts/{id}": self._take("/receipts/{}", "receipt_id"),
            "/v1/receipts/{id}": self._take("/v1/receipts/{}", "receipt_id"),
            "/v1/receipts/{id}/proof": self._take("/v1/receipts/{}/proof", "receipt_id"),
            "/txs/{id}": self._take("/txs/{}", "id"),
            "/txs/{id}.json": self._take("/txs/{}.json", "id"),
            "/blocks/{height}": self._take("/blocks/{}", "height"),
            "/blocks/{height}.json": self._take("/blocks/{}.json", "height"),
            "/jobs/{id}": lambda _number: f"/jobs/{self._random.choice(self._sample.job_ids)}",
            "/search?q=": self._search,
        }
        charts = ("throughput", "jobs", "price", "blocktime", "jobs.json", "jobs.csv")
        return pages | {f"/charts/{name}": partial(_draw, name) for name in charts}

    def suggest(self, _number: int) -> str:
        """Return what the beginning of an id, a hash, an account or a name may become."""
        text = self._name(self._random.choice(_NAMES))
        return f"/_f/suggest?q={quote(text[: self._random.randint(2, 12)])}"

    def _search(self, number: int) -> str:
        """Return a search; every fourth finds nothing exactly."""
        text = self._name(self._random.choice((*_NAMES, "height")))
        return f"/search?q={quote(text if number % 4 else text[:-1] + '~')}"

    def _name(self, column: str) -> str:
        value = self._random.choice(self._sample.receipts)[column]
        return value.hex() if isinstance(value, bytes) else str(value)

    def _take(self, form: str, column: str) -> Choose:
        return lambda _number: form.format(self._name(column))

    def _page(self, path: str, last: int, choose: Callable[[], Query] = dict) -> Choose:
        return lambda number: _join(path, {**choose(), **self._place(path, last, number)})

    def _place(self, path: str, last: int, number: int) -> Query:
        cursor = str(self._random.randint(1, last))
        match number % CURSOR_STEP:
            case 0:
                return {}
            case 1:
                return {"before": "20"}
            case step if step % 4 == 0 and path == "/receipts":
                return {"after": cursor}
        return {"before": cursor}

    def _list_filters(self) -> list[tuple[str, Callable[[], Query]]]:
        """Return every set of filters, with and without a period."""
        sets = [
            names
            for size in range(len(_COLUMNS) + 1)
            for names in itertools.combinations(_COLUMNS, size)
        ]
        plain = [("".join(f" {n}" for n in names), partial(self._filter, names)) for names in sets]
        return [
            *plain,
            *((f"{name} from to", partial(self._filter_period, names))
              for (name, _), names in zip(plain, sets, strict=True)),
        ]  # fmt: skip

    def _filter(self, names: Sequence[str]) -> Query:
        """Return values of some receipt, or every other time those with the most receipts."""
        sample = self._sample
        row = self._random.choice(sample.receipts)
        largest = {"model": sample.model, "miner": sample.provider, "client": sample.client}
        some = {name: str(row[column]) for name, column in _COLUMNS.items()}
        chosen = self._random.choice((largest, some))
        return {name: chosen[name] for name in names}

    def _filter_period(self, names: Sequence[str]) -> Query:
        first_ms, last_ms = self._sample.first_ms, self._sample.last_ms
        first, last = sorted(self._random.randint(first_ms, last_ms) for _ in range(2))
        day_ms = 86_400_000
        return {**self._filter(names), "from": _show_day(first), "to": _show_day(last + day_ms)}


def _narrow(state: str) -> Query:
    return {"status": state} if state else {}


def _draw(name: str, number: int) -> str:
    return f"/charts/{name}?range={_RANGES[number % len(_RANGES)]}"


def _show_day(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).date().isoformat()


def _join(path: str, query: Query) -> str:
    return path + (f"?{urlencode(query)}" if query else "")
