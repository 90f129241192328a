"""Names and questions of others in the explorer: they change no markup and hide nothing."""

from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from explorer_ui.jobs import STATES
from tests.crawler import Skeleton
from tests.explorer_addresses import every_address
from tests.fake_views import (
    MINER,
    FakeViews,
    build_app,
)
from tests.hostile import CORPUS, find_hidden

# --- hostile text -------------------------------------------------------------------------------


def chain_of(name: str) -> FakeViews:
    """A chain in which everything that somebody else chooses is `name`."""
    views = FakeViews(network=name, authority_names=[name] * 4)
    views.add_change(name=name, url=name)
    views.add_evidence()
    views.market.add_miner(name, capabilities=(name,), gpu_name=name, gpu_memory=name)
    for number, state in enumerate(STATES):
        views.add_job(number, state, client=name, model=name, miner_id=name, reason=name)
    views.add_receipt(0, provider=MINER.account, miner_id=name, model=name)
    for number in (1, 2):
        views.add_receipt(
            number, miner_id=name, client=name, provider=name, model=name, sampler=name,
            metered_by=name, unit_type=name, model_digest=name,
        )  # fmt: skip
        if number == 1:
            views.seal()
    return views


def list_pages(views: FakeViews) -> list[str]:
    return [*every_address(views), "/_f/home"]


@pytest.fixture(scope="module", name="plain")
def read_plain_markup() -> list[list[tuple]]:
    """The markup of every page where all names are harmless."""
    views = chain_of("plain")
    with TestClient(build_app(views)) as client:
        return [Skeleton(client.get(address).text).tags for address in list_pages(views)]


@pytest.mark.parametrize("name", CORPUS.values(), ids=CORPUS.keys())
def test_hostile_names_change_no_markup_and_hide_nothing(name, plain):
    views = chain_of(name)
    with TestClient(build_app(views)) as client:
        for address, tags in zip(list_pages(views), plain, strict=True):
            response = client.get(address)
            assert response.status_code == 200, address
            page = Skeleton(response.text)
            assert page.tags == tags, address
            assert find_hidden(response.text) == [], address
            assert not [link for link in page.links if link.lower().startswith("javascript")]


@pytest.mark.parametrize("name", CORPUS.values(), ids=CORPUS.keys())
def test_hostile_questions_are_shown_as_they_are(client, name):
    for response in (
        client.get("/search", params={"q": name}),
        client.get("/receipts", params={"model": name, "miner": name, "client": name}),
        client.get("/blocks/x" + quote(name, safe="")),
        client.get("/", headers={"host": 'x"><script>'}),
    ):
        assert response.status_code in {200, 404}
        page = Skeleton(response.text)
        assert ("h1", ()) in page.tags
        assert not {"img"} & {tag for tag, _ in page.tags}
        assert all(names for tag, names in page.tags if tag == "script")
        assert find_hidden("".join(page.words)) == []
