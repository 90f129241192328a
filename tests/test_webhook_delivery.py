"""How events reach a receiver: signed, again after a failure, and never not at all."""

import asyncio
import json
import re
import ssl
from pathlib import Path

import msgspec
import pytest

from ledger.encoding import encode
from ledger.jobs import Caller
from ledger.store import events as event_store
from ledger.store.registry import ApiKey, insert_key, revoke_key
from ledger.store.writequeue import DatabaseBusyError
from node.webhooks import dispatcher as dispatcher_module
from node.webhooks import sender as sender_module
from node.webhooks.schedule import RETRY_DELAYS_S
from node.webhooks.sender import Outcome, sign
from tests.market_node import CLIENT, MINER, ORDER
from tests.webhook_node import Names, WebhookNode
from tests.webhook_receiver import free_port, receiver, reply, verify

TLS = Path(__file__).parent / "data/tls"
DAY_MS = 86_400_000


@pytest.fixture
def node(tmp_path, open_store):
    node = WebhookNode(tmp_path, open_store=open_store)
    yield node
    node.close()


@pytest.fixture
def server():
    with receiver() as server:
        yield server


def types(server) -> list[str]:
    return [heard.event["type"] for heard in server.heard]


# --- what is sent -------------------------------------------------------------------------------


def test_the_signature_is_that_of_the_official_library():
    secret = bytes(range(32))
    payload = b'{"data":{"job_id":"job_01KDVDNA0038H3G0ACM2QZPX42"},"type":"job.completed"}'
    message_id = "msg_01KDVDNA0038H3G0ACM2QZPX42_completed"
    expected = "v1,n6AHk5/fnRLSIHE+BmUzgU+iKNbKU/+JDVHiy+Hgt90="
    assert sign(secret, message_id, 1_767_225_600, payload) == expected


def test_the_check_in_the_docs_takes_a_good_message_and_no_other(node, server, monkeypatch):
    text = (Path(__file__).parent.parent / "docs/api.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"^```python\n(import base64.*?)^```", text, re.MULTILINE | re.DOTALL)
    names: dict = {}
    exec(snippet, names)
    now_s = node.now_ms / 1000
    monkeypatch.setitem(names, "time", type("Clock", (), {"time": staticmethod(lambda: now_s)}))
    _, secret = node.hook(server.url)
    _, other = node.hook(f"{server.url}/other")
    node.cancelled()
    node.deliver()
    heard = next(h for h in server.heard if verify(secret, h))
    assert names["verify"](secret, heard.headers, heard.body)
    assert not names["verify"](other, heard.headers, heard.body)
    assert not names["verify"](secret, heard.headers, heard.body + b" ")
    for name, value in (("webhook-id", "msg_x"), ("webhook-timestamp", str(int(now_s) - 400))):
        assert not names["verify"](secret, heard.headers | {name: value}, heard.body)


def test_the_end_of_a_job_and_its_final_receipt_are_told_signed_and_thin(node, server):
    _, secret = node.hook(server.url)
    receipt_id = node.finish(prompt="a secret prompt")
    node.deliver()
    node.seal()
    node.now_ms += 1_000
    node.deliver()
    completed, final = server.heard
    (receipt,) = [node.views.receipt(receipt_id)]
    transaction_id = receipt.transaction.id
    assert completed.event == {
        "type": "job.completed",
        "timestamp": "2026-01-01T00:00:01.500Z",
        "data": {
            "job_id": receipt.payload.job_id,
            "status": "completed",
            "status_reason": "completed",
            "receipt_id": receipt_id,
            "transaction_id": transaction_id,
        },
    }
    assert final.event["type"] == "receipt.final"
    assert final.event["data"] == completed.event["data"] | {"block_height": 1}
    ulid = receipt.payload.job_id.removeprefix("job_")
    assert server.ids == [f"msg_{ulid}_completed", f"msg_{ulid}_final"]
    for heard in server.heard:
        assert verify(secret, heard)
        assert heard.body == encode(json.loads(heard.body))
        assert len(heard.body) < 500
        assert heard.headers["content-type"] == "application/json"
        assert b"secret prompt" not in heard.body
        assert b"Rayleigh" not in heard.body
        assert "cookie" not in heard.headers
    assert int(final.headers["webhook-timestamp"]) == node.now_ms // 1000
    assert node.figures == {"waiting": 0, "delivered": 2, "failed": 0, "given_up": 0}


def test_a_job_that_fails_or_is_cancelled_or_waits_too_long_is_told_with_its_reason(node, server):
    node.hook(server.url)
    node.register()
    cancelled = node.cancelled()
    failed = node.submit()
    node.claim(failed)
    node.do(
        node.coordinator.fail(MINER, failed.job_id, "m1", reason="private words", retryable=False)
    )
    stale = node.submit()
    node.now_ms += 3_700_000
    node.do(node.coordinator.sweep())
    node.deliver()
    assert sorted(
        (h.event["type"], h.event["data"]["job_id"], h.event["data"]["status_reason"])
        for h in server.heard
    ) == sorted(
        [
            ("job.cancelled", cancelled, "cancelled_by_client"),
            ("job.failed", failed.job_id, "miner_error"),
            ("job.failed", stale.job_id, "queue_timeout"),
        ]
    )
    assert all(b"private words" not in heard.body for heard in server.heard)


def test_an_attempt_that_does_not_end_its_job_is_not_told(node, server):
    node.hook(server.url)
    node.register()
    job = node.submit()
    node.claim(job)
    node.do(node.coordinator.release(MINER, job.job_id, "m1"))
    node.deliver()
    assert server.heard == []


def test_a_webhook_hears_what_it_asked_for_and_of_its_own_keys_jobs_only(node, server):
    node.hook(f"{server.url}/all")
    node.hook(f"{server.url}/failed", "job.failed")
    node.hook(f"{server.url}/other", caller=Caller(key="other", client="o", role="client"))
    node.cancelled()
    node.deliver()
    assert types(server) == ["job.cancelled"]


def test_a_job_that_ended_twice_is_told_once(node, server):
    node.hook(server.url)
    job_id = node.cancelled()
    node.do(node.coordinator.cancel(CLIENT, job_id))
    node.deliver()
    assert len(server.heard) == 1


def test_over_tls_the_name_is_verified_and_the_checked_address_connected_to(tmp_path):
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(TLS / "hooks.test.pem")
    trusted = ssl.create_default_context(cafile=TLS / "ca.pem")
    names = Names(hooks_test="127.0.0.1", other_test="127.0.0.1")
    with receiver(served) as server:
        node = WebhookNode(tmp_path, names=names, tls=trusted)
        good, _ = node.hook(server.url.replace("127.0.0.1", "hooks.test"))
        bad, _ = node.hook(server.url.replace("127.0.0.1", "other.test"))
        node.cancelled()
        node.deliver()
        assert len(server.heard) == 1
        assert server.heard[0].headers["host"].startswith("hooks.test:")
        assert node.look(good).last.delivered
        assert node.look(bad).last.error == "tls_failed"
        node.close()


# --- failures -----------------------------------------------------------------------------------


def test_retries_follow_the_schedule_under_one_message_id_and_end(node, server):
    webhook, secret = node.hook(server.url)
    server.answer = reply(500)
    start_ms = node.now_ms
    node.cancelled()
    times = [node.now_ms]
    while (next_ms := node.deliver()) is not None:
        node.now_ms = next_ms
        times.append(next_ms)
    expected_s = [sum(RETRY_DELAYS_S[:n]) for n in range(10)]
    assert [(ms - start_ms) // 1000 for ms in times] == expected_s
    assert expected_s[-1] == 75 * 3600 + 35 * 60 + 5
    assert len(server.heard) == 10
    assert len(set(server.ids)) == 1
    assert len({heard.body for heard in server.heard}) == 1
    stamps = [int(heard.headers["webhook-timestamp"]) for heard in server.heard]
    assert stamps == [ms // 1000 for ms in times]
    assert all(verify(secret, heard) for heard in server.heard)
    seen = node.look(webhook)
    assert (seen.waiting, seen.given_up) == (0, 1)
    assert (seen.last.attempts, seen.last.http_status, seen.last.delivered) == (10, 500, False)
    assert node.figures == {"waiting": 0, "delivered": 0, "failed": 10, "given_up": 1}


def test_chance_lengthens_a_delay_by_a_fifth_at_most_and_never_shortens_it(node, server):
    node.hook(server.url)
    server.answer = reply(500)
    for chance, delay_ms in ((0.0, 5_000), (0.5, 5_500), (0.999, 5_999)):
        node.chance = chance
        node.cancelled()
        assert node.deliver() - node.now_ms == delay_ms
        node.now_ms += DAY_MS
        server.answer = reply(204)
        node.deliver()
        server.answer = reply(500)


def test_a_delivery_that_succeeds_later_is_done_and_the_failures_forgotten(node, server):
    webhook, _ = node.hook(server.url)
    server.answer = reply(503)
    node.cancelled()
    node.now_ms = node.deliver()
    server.answer = reply(200, b"thanks")
    assert node.deliver() is None
    seen = node.look(webhook)
    assert (seen.waiting, seen.last.attempts, seen.last.delivered) == (0, 2, True)
    assert node.figures == {"waiting": 0, "delivered": 1, "failed": 1, "given_up": 0}
    node.now_ms += 6 * DAY_MS
    server.answer = reply(503)
    node.cancelled()
    node.deliver()
    assert node.look(webhook).disabled_reason is None


def test_a_receiver_says_when_it_wants_to_be_asked_again_within_a_day(node, server):
    for text, delay_ms in (
        *(("600", 600_000), ("2", 5_000), ("999999", DAY_MS)),
        *(("-5", 5_000), ("9" * 5000, 5_000), ("Wed, 21 Oct 2026 07:28:00 GMT", 5_000)),
    ):
        webhook, _ = node.hook(server.url)
        server.answer = reply(429, retry_after=text)
        node.cancelled()
        assert node.deliver() - node.now_ms == delay_ms
        node.do(node.coordinator.delete_webhook(CLIENT, webhook.name))


def test_gone_disables_the_webhook_and_gives_up_what_waits(node, server):
    webhook, _ = node.hook(server.url)
    server.answer = reply(410)
    for _ in range(5):
        node.cancelled()
    node.deliver()
    seen = node.look(webhook)
    assert (seen.disabled_reason, seen.waiting, seen.given_up) == ("gone", 0, 5)
    heard = len(server.heard)
    node.cancelled()
    node.now_ms += DAY_MS
    assert node.deliver() is None
    assert len(server.heard) == heard <= 2


def test_failing_for_five_days_disables_the_webhook_and_not_a_moment_sooner(node, server):
    webhook, _ = node.hook(server.url)
    server.answer = reply(500)
    first_ms = node.now_ms
    for at_ms in (0, 5 * DAY_MS - 1, 5 * DAY_MS):
        node.now_ms = first_ms + at_ms
        assert node.look(webhook).disabled_reason is None
        node.ping(webhook)
        node.deliver()
    assert node.look(webhook).disabled_reason == "failing"


def test_the_webhooks_of_a_revoked_key_hear_nothing_more(node, server):
    webhook, _ = node.hook(server.url)
    key = ApiKey(
        prefix=CLIENT.key,
        digest=b"",
        role="client",
        client="c",
        created_at_ms=0,
        revoked_at_ms=None,
    )
    node.store.write(lambda c: insert_key(c, key)).result()
    node.cancelled()
    node.store.write(lambda c: revoke_key(c, CLIENT.key, node.now_ms)).result()
    assert node.deliver() is None
    assert server.heard == []
    assert node.look(webhook).disabled_reason == "key_revoked"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_a_failure_and_not_followed(node, server, status):
    with receiver() as elsewhere:
        webhook, _ = node.hook(server.url)
        server.answer = reply(status, location=elsewhere.url)
        node.cancelled()
        node.deliver()
        assert elsewhere.heard == []
    last = node.look(webhook).last
    assert (len(server.heard), last.http_status, last.delivered) == (1, status, False)


def failing(node, url: str) -> str:
    """The word under which a failure is shown."""
    webhook, _ = node.hook(url)
    node.cancelled()
    node.deliver()
    last = node.look(webhook).last
    assert not last.delivered
    return last.error


def test_a_receiver_that_never_answers_is_given_its_time_and_no_more(node, server, monkeypatch):
    monkeypatch.setattr(sender_module, "TIMEOUT_S", 0.05)
    server.answer = lambda _handler: server.released.wait()
    assert failing(node, server.url) == "timeout"


def test_no_answer_and_none_that_is_http_are_failures(node, server):
    assert failing(node, f"http://127.0.0.1:{free_port()}/") == "connection_refused"
    node.now_ms += 1
    server.answer = lambda handler: handler.wfile.write(b"SSH-2.0-x\r\n\r\n")
    assert failing(node, server.url) == "connection_broken"


def test_a_name_without_an_address_is_a_failure(node):
    assert failing(node, "https://nowhere.test/") == "name_unknown"


def endless_head(handler):
    """Headers without end."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(100_000):
        handler.wfile.write(b"x-%d: %s\r\n" % (number, b"y" * 1000))


def test_a_head_without_end_is_a_failure_and_is_not_kept(node, server):
    server.answer = endless_head
    assert failing(node, server.url) == "connection_broken"


def test_of_an_answer_without_end_little_is_read_and_its_status_counts(node, server):
    written = []

    def endless(handler):
        handler.send_response(200)
        handler.send_header("transfer-encoding", "chunked")
        handler.end_headers()
        while True:
            handler.wfile.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
            written.append(0x10000)

    server.answer = endless
    webhook, _ = node.hook(server.url)
    node.cancelled()
    node.deliver()
    assert node.look(webhook).last.delivered
    assert sum(written) < 16 << 20, "more than the system's own buffers"


def test_an_answer_that_drips_is_left_and_its_status_counts(node, server, monkeypatch):
    monkeypatch.setattr(sender_module, "BODY_TIMEOUT_S", 0.05)

    def drip(handler):
        handler.send_response(202)
        handler.send_header("content-length", "5")
        handler.end_headers()
        handler.wfile.write(b"x")
        server.released.wait()

    server.answer = drip
    webhook, _ = node.hook(server.url)
    node.cancelled()
    node.deliver()
    assert node.look(webhook).last.http_status == 202


def test_what_a_receiver_says_is_neither_kept_nor_logged_nor_sent_to_others(node, server, caplog):
    caplog.set_level(0, logger="node")
    server.answer = reply(500, b"hostile words", set_cookie="hostile=1; Path=/")
    webhook, _ = node.hook(server.url)
    for _ in range(3):
        node.cancelled()
        node.deliver()
        node.now_ms += 5_000
    assert "hostile" not in caplog.text
    assert "hostile" not in repr(node.look(webhook))
    assert all("cookie" not in heard.headers for heard in server.heard)


# --- nothing lost -------------------------------------------------------------------------------


def test_a_crash_between_delivery_and_note_delivers_again_under_the_same_id(
    node, server, monkeypatch
):
    _, secret = node.hook(server.url)
    node.cancelled()
    send = node.sender.send

    async def send_and_die(*arguments):
        assert (await send(*arguments)).is_delivered
        raise asyncio.CancelledError

    monkeypatch.setattr(node.sender, "send", send_and_die)
    with pytest.raises(asyncio.CancelledError):
        node.deliver()
    node.restart()
    node.deliver()
    node.deliver()
    assert len(server.heard) == 2
    assert len(set(server.ids)) == 1
    assert all(verify(secret, heard) for heard in server.heard)


def test_what_waits_is_there_after_a_restart_and_new_ends_are_still_noticed(node, server):
    node.hook(server.url)
    node.cancelled()
    node.restart()
    node.cancelled()
    node.deliver()
    assert len(server.heard) == 2


def test_a_job_whose_end_is_not_stored_is_not_told(node, server, monkeypatch):
    node.hook(server.url)
    node.register()
    job = node.submit()
    node.claim(job)

    def fail(*_args, **_kwargs):
        raise ValueError("the transaction fails after the event was put down")

    monkeypatch.setattr("ledger.store.jobs.insert_transaction", fail)
    with pytest.raises(ValueError, match="fails"):
        node.complete(job)
    node.deliver()
    assert (server.heard, node.read(job).state) == ([], "running")


def test_a_receipt_whose_block_was_stored_before_a_crash_is_told_once_after_it(node, server):
    node.hook(server.url, "receipt.final")
    node.finish()
    write = node.mempool._market.write
    node.mempool._market.write = lambda _work: busy()
    node.seal()
    node.mempool._market.write = write
    node.deliver()
    assert node.chain.tip().height == 1
    assert server.heard == []
    node.restart()
    node.seal()
    node.deliver()
    node.restart()
    node.seal()
    node.deliver()
    assert types(server) == ["receipt.final"]
    assert server.heard[0].event["data"]["block_height"] == 1


def busy():
    raise DatabaseBusyError("full")


def test_a_receipt_that_can_never_be_final_is_not_told(node, server):
    node.hook(server.url, "receipt.final")
    node.finish()
    ids = [row[1] for row in node.mempool._market.reader.execute("SELECT seq, id FROM mempool")]
    node.mempool.remove(ids)
    node.deliver()
    assert (node.pending_receipts, server.heard) == ([], [])


def test_a_disk_that_takes_no_note_makes_the_dispatcher_pause_and_deliver_again(
    node, server, monkeypatch
):
    node.hook(server.url)
    node.cancelled()
    monkeypatch.setattr(node.dispatcher, "_write", lambda _work: busy())
    assert node.deliver() == node.now_ms + 5_000
    assert node.deliver() == node.now_ms + 5_000
    assert len(server.heard) == 1
    monkeypatch.undo()
    node.now_ms += 5_000
    node.deliver()
    assert len(server.heard) == 2
    assert len(set(server.ids)) == 1
    assert node.figures["delivered"] == 1


# --- queues -------------------------------------------------------------------------------------


def test_a_webhook_deleted_while_deliveries_wait_or_are_under_way_hears_nothing_more(node, server):
    webhook, _ = node.hook(server.url)
    for _ in range(10):
        node.cancelled()

    async def delete_under_way():
        await node.dispatcher.start_due()
        tasks = set(node.dispatcher.tasks)
        assert len(tasks) == 2
        await node.coordinator.delete_webhook(CLIENT, webhook.name)
        await asyncio.gather(*tasks)

    node.do(delete_under_way())
    assert node.deliver() is None
    assert len(server.heard) <= 2
    assert node.figures["waiting"] == 0
    assert node.store.reader.execute("SELECT count(*) FROM webhook_deliveries").fetchone()[0] == 0


def test_few_attempts_are_under_way_at_once_and_fewer_to_one_host(tmp_path, server):
    names = Names(**{f"h{i}_test": "127.0.0.1" for i in range(20)})
    node = WebhookNode(tmp_path, names=names)
    for number in range(10):
        node.hook(server.url.replace("127.0.0.1", f"h{number}.test"))
    for _ in range(5):
        node.cancelled()
    at_once, most, hosts = [], [], []
    send = node.sender.send

    async def send_counted(url, *rest):
        at_once.append(url)
        most.append(len(at_once))
        hosts.append(at_once.count(url))
        try:
            return await send(url, *rest)
        finally:
            at_once.remove(url)

    node.sender.send = send_counted
    node.deliver()
    assert len(server.heard) == 50
    assert (max(most), max(hosts)) == (8, 2)
    node.close()


def test_what_is_under_way_is_not_begun_again(node, server):
    node.hook(server.url)
    node.cancelled()

    async def look_twice():
        await node.dispatcher.start_due()
        await node.dispatcher.start_due()
        await asyncio.gather(*node.dispatcher.tasks)

    node.do(look_twice())
    assert len(server.heard) == 1


def test_one_receiver_that_hangs_holds_nobody_else_up(tmp_path, server):
    names = Names(slow_test="127.0.0.1", good_test="127.0.0.1")
    node = WebhookNode(tmp_path, names=names)
    with receiver() as slow:
        slow.answer = lambda _handler: slow.released.wait()
        node.hook(slow.url.replace("127.0.0.1", "slow.test"))
        node.hook(server.url.replace("127.0.0.1", "good.test"))
        for _ in range(20):
            node.cancelled()

        async def deliver_to_good():
            while len(server.heard) < 20:
                await node.dispatcher.start_due()
                running = node.dispatcher.tasks
                await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in node.dispatcher.tasks:
                task.cancel()
            await asyncio.gather(*node.dispatcher.tasks, return_exceptions=True)

        node.do(deliver_to_good())
        assert len(slow.heard) == 2
    node.close()


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_ten_thousand_that_wait_are_held_by_an_outage_and_delivered_after_it(
    node, server, monkeypatch
):
    webhook, _ = node.hook(server.url, "job.cancelled")
    server.answer = reply(503)
    fill(node, 10_000)
    assert node.look(webhook).waiting == 10_000
    end_ms = node.now_ms + 3_600_000
    while (next_ms := node.deliver()) <= end_ms:
        node.now_ms = next_ms
    assert len(server.heard) <= 40, "an hour's outage costs a few attempts, not ten thousand"
    sent = []

    async def send_at_once(_url, _secret, message_id, _payload):
        sent.append(message_id)
        return Outcome(status=204)

    monkeypatch.setattr(node.sender, "send", send_at_once)
    node.ping(webhook)
    node.deliver()
    seen = node.look(webhook)
    assert (seen.waiting, seen.given_up) == (0, 0)
    assert node.figures["delivered"] == 10_001
    assert len(set(sent)) == len(sent) == 10_001


def fill(node, count: int, owner: str = CLIENT.key) -> None:
    """Let so many jobs end, as the store sees it."""
    job = node.submit()

    def end(connection):
        for number in range(count):
            ended = msgspec.structs.replace(job, id=number.to_bytes(16, "big"), owner=owner)
            event_store.note_job_end(
                connection, ended, state="cancelled", reason="r", now_ms=node.now_ms
            )

    node.store.write(end).result()


def test_what_a_webhook_has_too_many_of_is_given_up_from_the_oldest_on(node, server, monkeypatch):
    monkeypatch.setattr(event_store, "MAX_WAITING_PER_WEBHOOK", 3)
    webhook, _ = node.hook(server.url)
    jobs = [node.cancelled() for _ in range(5)]
    assert (node.look(webhook).waiting, node.look(webhook).given_up) == (3, 2)
    node.deliver()
    assert {heard.event["data"]["job_id"] for heard in server.heard} == set(jobs[2:])
    assert node.figures == {"waiting": 0, "delivered": 3, "failed": 0, "given_up": 2}


def test_what_all_have_too_many_of_is_taken_from_the_one_with_most(node, server, monkeypatch):
    monkeypatch.setattr(event_store, "MAX_WAITING", 6)
    other = Caller(key="other", client="o", role="client")
    greedy, _ = node.hook(server.url)
    modest, _ = node.hook(server.url, caller=other)
    fill(node, 5)
    fill(node, 3, owner="other")
    assert (node.look(greedy).waiting, node.look(greedy).given_up) == (3, 2)
    assert (node.look(modest, other).waiting, node.look(modest, other).given_up) == (3, 0)
    assert node.figures["waiting"] == 6


def test_a_test_event_is_tried_once_even_while_the_webhook_is_held_and_never_twice_at_once(
    node, server
):
    webhook, _ = node.hook(server.url, "job.failed")
    server.answer = reply(500)
    first = node.ping(webhook)
    assert node.ping(webhook) == first
    assert node.deliver() is None
    assert types(server) == ["webhook.ping"]
    assert server.heard[0].event["data"] == {"webhook": webhook.name}
    server.answer = reply(204)
    second = node.ping(webhook)
    assert second != first
    node.deliver()
    assert server.ids == [first, second]
    assert node.look(webhook).last.delivered


# --- the loop -----------------------------------------------------------------------------------


def end_in_every_way(node, rung) -> dict[str, bool]:
    """Let jobs end; tells for each way whether it rang."""
    node.register()
    found = {}

    def note(way):
        found[way] = bool(rung)
        rung.clear()

    node.cancelled()
    note("cancelled")
    job = node.submit()
    node.claim(job)
    node.complete(job)
    note("completed")
    job = node.submit()
    node.claim(job)
    node.do(node.coordinator.fail(MINER, job.job_id, "m1", reason="r", retryable=False))
    note("failed")
    node.submit()
    node.now_ms += 3_700_000
    node.do(node.coordinator.sweep())
    note("swept")
    node.seal()
    note("final")
    return found


def test_whatever_is_to_be_told_wakes_the_dispatcher_and_without_webhooks_nothing_does(
    node, server, monkeypatch
):
    rung = []
    monkeypatch.setattr(node.coordinator.events_waiting, "set", lambda: rung.append(1))
    monkeypatch.setattr(node.mempool, "_events_waiting", node.coordinator.note_events)
    assert not any(end_in_every_way(node, rung).values())
    webhook, _ = node.hook(server.url)
    assert all(end_in_every_way(node, rung).values())
    node.ping(webhook)
    assert rung


def test_the_dispatcher_wakes_at_once_when_a_job_ends_and_stops_at_once(node, server, monkeypatch):
    monkeypatch.setattr(dispatcher_module, "MAX_SLEEP_S", 3600)
    node.hook(server.url)
    before = 5
    for _ in range(before):  # more than may be under way at once
        node.cancelled()

    async def run():
        loop = asyncio.get_running_loop()
        running = asyncio.create_task(node.dispatcher.run())
        await asyncio.sleep(0)
        await loop.run_in_executor(None, server.wait_for, lambda: len(server.heard) == before)
        for number in range(before + 1, before + 4):
            job = await node.coordinator.submit(CLIENT, ORDER)
            await node.coordinator.cancel(CLIENT, job.job_id)
            await loop.run_in_executor(
                None, server.wait_for, lambda number=number: len(server.heard) == number
            )
        server.answer = lambda _handler: server.released.wait()
        job = await node.coordinator.submit(CLIENT, ORDER)
        await node.coordinator.cancel(CLIENT, job.job_id)
        await loop.run_in_executor(None, server.wait_for, lambda: len(server.heard) == before + 4)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert not node.dispatcher.tasks

    node.do(run())
    assert node.figures["waiting"] == 1
    server.answer = reply(204)
    node.deliver()
    assert (node.figures["waiting"], len(set(server.ids))) == (0, before + 4)
