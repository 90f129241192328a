"""The browser's verifier against the two in Python: one verdict, claim by claim, on everything.

The modules run as they are served, in a page with the explorer's policy, and again inside the page
that works offline.
"""

import json

import pytest

from ledger.block import hash_genesis
from ledger.encoding import encode, encode_base64url
from ledger.hashing import hash_tokens
from scripts import verify_receipt as script
from tests.browser import launch_browser
from tests.builders import build_chain, build_members, build_receipt, build_salt
from tests.verify_modules import WAYS, open_modules, vector
from tests.verify_node import last_bundle

MANY_CHANGES = 12


@pytest.fixture(scope="module", name="page", params=WAYS)
def start_page(request, tmp_path_factory):
    with (
        launch_browser() as browser,
        open_modules(browser, request.param, tmp_path_factory.mktemp("verifier")) as page,
    ):
        yield page


def judge_in_python(case):
    """The verdict of the stand-alone script in the form of window.judge."""
    data = bytearray(case["bundle"].encode())
    if "change" in case:
        place, byte = case["change"]
        data[place] = byte
    shown = {}
    if case.get("disclosure") is not None:
        shown = script.parse_disclosure(case["disclosure"].encode())
    try:
        bundle = script.parse_bundle(bytes(data))
    except script.MalformedError:
        return None
    verdict = script.verify(bundle, script.parse_genesis(case["genesis"].encode()), shown)
    for claim in verdict["claims"]:
        del claim["detail"]
    return verdict


def judge_in_browser(page, cases):
    return page.evaluate("(cases) => window.judge(cases)", cases)


def test_every_vector_bundle_gets_the_verdict_of_python(page):
    vectors = vector("bundles")
    cases = [
        {
            "bundle": case["bundle"],
            "genesis": vectors["genesis"][case["genesis"]],
            "disclosure": json.dumps(case["disclosure"]) if "disclosure" in case else None,
        }
        for case in vectors["cases"]
    ]
    verdicts = judge_in_browser(page, cases)
    assert len(verdicts) == len(cases) >= 163
    for case, described, verdict in zip(cases, vectors["cases"], verdicts, strict=True):
        if described["failed"] is None:
            assert verdict is None, described["why"]
            continue
        claims = [[claim["name"], claim["status"]] for claim in verdict["claims"]]
        assert claims == described["claims"], described["why"]
        assert verdict == judge_in_python(case), described["why"]


def chain_of_changes(count):
    """A network whose authorities change `count` times, with one receipt after the last."""
    chain = build_chain(4, blocks=[1])
    for epoch in range(1, count + 1):
        members = build_members(3 + epoch % 3, epoch=epoch)
        chain.change_authorities(members, build_receipt(chain.genesis, 1 + epoch))
    chain.append(build_receipt(chain.genesis, 2 + count))
    return chain


def test_many_changes_of_the_authorities_are_followed_one_by_one(page):
    chain = chain_of_changes(MANY_CHANGES)
    document = json.loads(encode(last_bundle(chain)))
    genesis = encode(chain.genesis).decode()
    assert len(document["epochs"]) == MANY_CHANGES

    def case(epochs):
        return {"bundle": encode(document | {"epochs": epochs}).decode(), "genesis": genesis}

    whole = document["epochs"]
    cases = [case(whole)]
    cases += [case(whole[:place] + whole[place + 1 :]) for place in range(MANY_CHANGES)]
    cases += [
        case([*whole[:place], whole[place + 1], whole[place], *whole[place + 2 :]])
        for place in range(MANY_CHANGES - 1)
    ]
    genuine, *tampered = judge_in_browser(page, cases)
    assert genuine["verified"] is True
    assert genuine["genesis"] == hash_genesis(chain.genesis).hex()
    for verdict in tampered:
        failed = [c["name"] for c in verdict["claims"] if c["status"] == "failed"]
        assert failed == ["quorum", "authority_chain", "coordinator"]
    assert [genuine, *tampered] == [judge_in_python(case) for case in cases]


def test_any_changed_byte_is_judged_as_python_judges_it(page):
    chain = chain_of_changes(2)
    bundle, genesis = encode(last_bundle(chain)).decode(), encode(chain.genesis).decode()
    cases = [
        {"bundle": bundle, "genesis": genesis, "change": [place, byte]}
        for place in range(0, len(bundle), 23)
        for byte in b'1"\xff'
        if bundle.encode()[place] != byte
    ]
    assert len(cases) > 500
    verdicts = judge_in_browser(page, cases)
    assert verdicts == [judge_in_python(case) for case in cases]
    judged = [verdict for verdict in verdicts if verdict]
    assert len(judged) > 20
    assert not [verdict for verdict in judged if verdict["verified"]]


def sealed(**changes):
    """A bundle of a receipt whose payload was signed with these changes, and its genesis."""
    chain = build_chain(1)
    chain.append(build_receipt(chain.genesis, 1, **changes))
    return {"bundle": encode(chain.bundle(0)).decode(), "genesis": encode(chain.genesis).decode()}


def test_token_ids_out_of_range_never_pass_for_those_that_they_wrap_to(page):
    salt = build_salt("result 1")
    case = sealed(tokens_digest=hash_tokens(salt, [0, 2**32 - 1]).hex())
    shown = [[0, 2**32 - 1], [2**32, 2**32 - 1], [0, -1], [2**64, -(2**33) - 1]]
    cases = [
        case
        | {
            "disclosure": json.dumps(
                {"output_token_ids": ids, "result_salt": encode_base64url(salt)}
            )
        }
        for ids in shown
    ]
    verdicts = judge_in_browser(page, cases)
    assert [verdict["verified"] for verdict in verdicts] == [True, False, False, False]
    assert verdicts == [judge_in_python(case) for case in cases]


def test_lengths_count_characters_and_not_their_halves(page):
    case = sealed(model="\U0001f98a" * 128)
    longer = case | {"bundle": case["bundle"].replace("\U0001f98a", "\U0001f98a" * 2, 1)}
    verdicts = judge_in_browser(page, [case, longer])
    assert verdicts == [judge_in_python(case), judge_in_python(longer)]
    assert (verdicts[0]["verified"], verdicts[1]) == (True, None)
