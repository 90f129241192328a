"""A witness: co-signs what it verified itself, never goes back, and keeps what convicts a log."""

import contextlib
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ledger import merkle
from ledger.block import parse_certificate, parse_header, verify_certificate
from ledger.checkpoint import (
    Checkpoint,
    build_origin,
    log_keys,
    sign_checkpoint,
    verify_checkpoint,
    witness_key,
)
from ledger.encoding import encode
from ledger.errors import CheckpointRefusedError, ConflictError, InvalidNoteError, StoreError
from ledger.keys import KeyPair
from ledger.store import witness as module
from ledger.store.chain import ChainStore
from ledger.store.witness import Cosigned, Evidence, WitnessStore
from node.datadir import DataDirectory, load_key
from node.restclient import RequestFailedError
from node.witness import FirstToAnswer, Witness, WitnessThread, open_identity
from tests.builders import Chain, build_chain, build_key, build_members, build_receipt

AUTHORITIES = 4
SIZES = (2, 1, 3)
CHAIN = build_chain(AUTHORITIES, blocks=SIZES)
ENDS = [block.header.tree_size for block in CHAIN.blocks]
ORIGIN = build_origin(CHAIN.genesis)
KEY = build_key("witness")
NOW_MS = 1_767_225_660_000
ROOT = Path(__file__).parent.parent


def build_fork() -> Chain:
    """Another history of the same authorities: the same sizes, other receipts after block 1."""
    fork = build_chain(AUTHORITIES, blocks=SIZES[:1])
    for number, size in enumerate(SIZES[1:]):
        numbers = range(100 + 10 * number, 100 + 10 * number + size)
        fork.append(*(build_receipt(fork.genesis, n) for n in numbers))
    return fork


FORK = build_fork()


def publish(at: int, chain: Chain = CHAIN, *, member: int = 0, **changes) -> bytes:
    """The checkpoint that an authority signs at a size, whatever it should have signed."""
    root = merkle.compute_root(at, chain.read)
    fields = {"origin": ORIGIN, "size": at, "root": root} | changes
    return sign_checkpoint(Checkpoint(**fields), CHAIN.members[member])


class StaticLog:
    """A log that says what a test lets it say."""

    def __init__(self) -> None:
        self.says: bytes | Exception = b""

    def checkpoint(self) -> bytes:
        if isinstance(self.says, Exception):
            raise self.says
        return self.says


def fill(path: Path, chain: Chain = CHAIN, blocks: int | None = None) -> ChainStore:
    store = ChainStore(path, chain.genesis)
    for block, certificate in list(zip(chain.blocks, chain.certificates, strict=True))[:blocks]:
        store.append(block, certificate).result()
    return store


class Setting:
    """A witness with everything around it, in one directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.now_ms = NOW_MS
        self.log = StaticLog()
        WitnessStore.create(root / "witness.db", instance="one", account=KEY.account)
        self.chain = fill(root / "ledger.db")
        self.store = self.open_store()
        self.witness = self.restart()

    def open_store(self) -> WitnessStore:
        return WitnessStore.open(self.root / "witness.db", instance="one", account=KEY.account)

    def restart(self) -> Witness:
        """Whatever was in memory is gone."""
        self.witness = Witness(
            chain=self.chain,
            store=self.store,
            key=KEY,
            log=self.log,
            clock_ms=lambda: self.now_ms,
        )
        return self.witness

    def observe(self, says: bytes | Exception) -> bytes:
        self.log.says = says
        return self.witness.observe()

    def replace_chain(self, chain: Chain, blocks: int | None = None) -> None:
        self.chain.close()
        for path in self.root.glob("ledger.db*"):
            path.unlink()
        self.chain = fill(self.root / "ledger.db", chain, blocks)
        self.restart()

    def close(self) -> None:
        self.chain.close()
        self.store.close()


@pytest.fixture
def setting(tmp_path):
    setting = Setting(tmp_path)
    yield setting
    setting.close()


def read(note: bytes):
    keys = [*log_keys(ORIGIN, CHAIN.genesis.authority_set), witness_key(KEY.account)]
    return verify_checkpoint(note, origin=ORIGIN, keys=keys)


def said(note: bytes) -> tuple[int, int | None]:
    """Size and time of a co-signed note, whose root must be the chain's."""
    signed = read(note)
    assert signed.checkpoint.root == merkle.compute_root(signed.checkpoint.size, CHAIN.read)
    log, own = signed.signatures
    assert log.time_s is None
    assert own.key == witness_key(KEY.account)
    return signed.checkpoint.size, own.time_s


# --- what is co-signed --------------------------------------------------------------------------


def test_a_witness_co_signs_every_head_of_its_chain_in_their_order(setting):
    assert setting.witness.newest() is None
    for size in (0, *ENDS):
        note = setting.observe(publish(size))
        assert said(note) == (size, NOW_MS // 1000)
        assert setting.witness.newest() == note


@pytest.mark.parametrize("member", range(AUTHORITIES))
def test_every_authority_may_publish(setting, member):
    assert said(setting.observe(publish(ENDS[1], member=member)))[0] == ENDS[1]


def test_the_same_head_again_is_co_signed_at_the_later_time(setting):
    setting.observe(publish(ENDS[1]))
    setting.now_ms += 60_000
    assert said(setting.observe(publish(ENDS[1]))) == (ENDS[1], NOW_MS // 1000 + 60)


def test_the_time_never_goes_back_even_if_the_clock_does(setting):
    setting.observe(publish(ENDS[1]))
    setting.now_ms -= 3_600_000
    assert said(setting.observe(publish(ENDS[2]))) == (ENDS[2], NOW_MS // 1000)


def test_lines_of_strangers_do_not_reach_the_co_signed_note(setting):
    data = publish(ENDS[0])
    stranger = sign_checkpoint(read(data).checkpoint, build_key("stranger")).split(b"\n\n")[1]
    note = setting.observe(data + stranger)
    assert stranger not in note
    assert note.startswith(data)


def test_a_new_life_serves_and_remembers_the_last_note(setting):
    note = setting.observe(publish(ENDS[1]))
    setting.store.close()
    setting.store = setting.open_store()
    assert setting.restart().newest() == note
    with pytest.raises(CheckpointRefusedError, match="co-signed already"):
        setting.observe(publish(ENDS[0]))


def test_at_a_change_of_authorities_both_sets_may_publish_and_later_the_new_one(setting):
    chain = build_chain(AUTHORITIES, blocks=[1])
    old, new = chain.members, build_members(AUTHORITIES, epoch=1)
    sizes = [
        chain.change_authorities(new, build_receipt(chain.genesis, 100)).header.tree_size,
        chain.append(build_receipt(chain.genesis, 101)).header.tree_size,
    ]
    setting.replace_chain(chain)

    def observe(size: int, signer: KeyPair) -> bytes:
        root = merkle.compute_root(size, chain.read)
        return setting.observe(
            sign_checkpoint(Checkpoint(origin=ORIGIN, size=size, root=root), signer)
        )

    for signer in (old[1], new[1], old[0]):
        note = observe(sizes[0], signer)
        assert setting.witness.newest() == note
    with pytest.raises(InvalidNoteError, match="nobody signed it"):
        observe(sizes[1], old[1])
    observe(sizes[1], new[1])


# --- what is refused ----------------------------------------------------------------------------


def refuse(setting, says, error, match: str, *, evidence: int = 0) -> str:
    """Nothing is signed, nothing remembered changes; returns the reason."""
    before = setting.witness.newest()
    with pytest.raises(error, match=match) as caught:
        setting.observe(says)
    assert setting.witness.newest() == before
    assert len(setting.store.evidence()) == evidence
    return str(caught.value)


def test_an_older_head_is_refused_but_convicts_nobody(setting):
    setting.observe(publish(ENDS[1]))
    refuse(setting, publish(ENDS[0]), CheckpointRefusedError, f"{ENDS[1]} were co-signed already")
    refuse(setting, publish(0), CheckpointRefusedError, "co-signed already")


def test_a_head_beyond_the_verified_chain_waits(setting):
    setting.replace_chain(CHAIN, 2)
    refuse(setting, publish(ENDS[2]), CheckpointRefusedError, f"has verified {ENDS[1]} so far")


@pytest.mark.parametrize(
    ("says", "match"),
    [
        (b"", "note: expected an empty line"),
        (b"\xff", "UTF-8"),
        (b"a\n\n\xe2\x80\x94 a AAAAAAA=\n", "three lines"),
        (publish(ENDS[0], origin="aitbc/other/0123456789abcdef"), "another log"),
        (publish(ENDS[0]).replace(b"\n2\n", b"\n3\n"), "does not verify"),
        (
            sign_checkpoint(Checkpoint(origin=ORIGIN, size=2, root=bytes(32)), KEY),
            "nobody signed it",
        ),
    ],
    ids=["empty", "no text", "no checkpoint", "other log", "changed", "not by an authority"],
)
def test_what_no_authority_signed_is_refused_and_not_kept(setting, says, match):
    refuse(setting, says, InvalidNoteError, match)


def test_a_log_that_does_not_answer_changes_nothing(setting):
    setting.observe(publish(ENDS[0]))
    refuse(setting, RequestFailedError("no answer"), RequestFailedError, "no answer")


def test_another_root_at_a_verified_size_is_kept_with_all_that_convicts_the_signer(setting):
    first = setting.observe(publish(ENDS[0]))
    bad = publish(ENDS[1], FORK)
    reason = refuse(setting, bad, ConflictError, "contradicts the verified chain", evidence=1)
    assert "witness.db" in reason
    (evidence,) = setting.store.evidence()
    assert (evidence.published, evidence.cosigned) == (bad, first)
    assert evidence.seen_at_ms == NOW_MS
    header, certificate = CHAIN.blocks[1].header, CHAIN.certificates[1]
    assert evidence.block == encode({"certificate": certificate, "header": header})
    # A stranger needs nothing else to judge: one authority signed it, a quorum the other root.
    convicted = verify_checkpoint(
        evidence.published, origin=ORIGIN, keys=log_keys(ORIGIN, CHAIN.genesis.authority_set)
    )
    verify_certificate(
        parse_certificate(encode(certificate)),
        header=parse_header(encode(header)),
        authority_set=CHAIN.genesis.authority_set,
    )
    assert convicted.checkpoint.size == header.tree_size
    assert convicted.checkpoint.root.hex() != header.tree_root


def test_the_same_contradiction_is_kept_once_and_the_true_chain_still_co_signed(setting):
    for _ in range(3):
        refuse(setting, publish(ENDS[1], FORK), ConflictError, "contradicts", evidence=1)
    assert said(setting.observe(publish(ENDS[1])))[0] == ENDS[1]
    refuse(setting, publish(ENDS[0], root=bytes(32)), ConflictError, "tree root", evidence=2)
    refuse(setting, publish(0, root=bytes(32)), ConflictError, "tree root", evidence=3)


def test_a_head_at_which_no_block_ends_is_a_contradiction(setting):
    (inside,) = set(range(ENDS[1], ENDS[2])) - {ENDS[1], ENDS[1] + 2}
    refuse(setting, publish(inside), ConflictError, "no final block ends", evidence=1)


def test_a_witness_whose_own_ledger_was_exchanged_does_not_follow_it(setting):
    """The new ledger is certified too, so only the memory of the witness tells them apart."""
    note = setting.observe(publish(ENDS[1]))
    setting.replace_chain(FORK)
    for size in (ENDS[1], ENDS[2]):
        with pytest.raises(ConflictError):
            setting.observe(publish(size, FORK))
    kept = setting.store.evidence()
    assert [evidence.cosigned for evidence in kept] == [note, note]
    assert setting.witness.newest() == note


def test_a_witness_that_synchronises_anew_waits_until_it_is_where_it_was(setting):
    setting.observe(publish(ENDS[2]))
    setting.replace_chain(CHAIN, 1)
    refuse(setting, publish(ENDS[0]), CheckpointRefusedError, "co-signed already")
    refuse(setting, publish(ENDS[2]), CheckpointRefusedError, "has verified")
    setting.replace_chain(CHAIN)
    assert said(setting.observe(publish(ENDS[2])))[0] == ENDS[2]


# --- durable before it leaves -------------------------------------------------------------------


def test_what_cannot_be_stored_is_not_said(setting):
    note = setting.observe(publish(ENDS[0]))
    setting.store.close()
    with pytest.raises(StoreError, match="nothing was stored"):
        setting.observe(publish(ENDS[1]))
    assert setting.witness.newest() == note


def test_two_processes_on_one_file_cannot_take_each_other_back(setting):
    """Both remember nothing; the file refuses the one that is late."""
    other = setting.open_store()
    try:
        late = Witness(
            chain=setting.chain, store=other, key=KEY, log=setting.log, clock_ms=lambda: NOW_MS
        )
        setting.observe(publish(ENDS[2]))
        setting.log.says = publish(ENDS[1])
        with pytest.raises(StoreError, match="never goes back"):
            late.observe()
        assert late.newest() is None
    finally:
        other.close()


KILLED = """
import os, signal, sys
from pathlib import Path
from ledger.store.witness import WitnessStore
from tests.test_witness import Setting, publish, CHAIN, ENDS

setting = Setting(Path(sys.argv[1]))
record, moment = WitnessStore.record, sys.argv[2]

def killed(store, cosigned):
    if moment == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    record(store, cosigned)
    os.kill(os.getpid(), signal.SIGKILL)

setting.observe(publish(ENDS[0]))
WitnessStore.record = killed
print(setting.observe(publish(ENDS[2])), flush=True)
"""


@pytest.mark.parametrize(("moment", "remembered"), [("before", ENDS[0]), ("after", ENDS[2])])
def test_a_witness_killed_between_writing_and_answering_never_signs_a_rollback(
    tmp_path, moment, remembered
):
    child = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), moment],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert child.stdout == "", "the signature left, and nobody can tell what was written"
    path = tmp_path / "witness.db"
    with (
        contextlib.closing(WitnessStore.open(path, instance="one", account=KEY.account)) as store,
        contextlib.closing(fill_again(tmp_path)) as chain,
    ):
        log = StaticLog()
        witness = Witness(chain=chain, store=store, key=KEY, log=log, clock_ms=lambda: NOW_MS)
        assert said(witness.newest())[0] == remembered
        for size in (size for size in (0, *ENDS) if size < remembered):
            log.says = publish(size)
            with pytest.raises(CheckpointRefusedError, match="co-signed already"):
                witness.observe()
        log.says = publish(remembered, root=bytes(32))
        with pytest.raises(ConflictError):
            witness.observe()
        log.says = publish(ENDS[2])
        assert said(witness.observe())[0] == ENDS[2]


def fill_again(root: Path) -> ChainStore:
    return ChainStore(root / "ledger.db", CHAIN.genesis)


# --- the file -----------------------------------------------------------------------------------


def cosigned(size: int, *, time_s: int = 5, root: bytes = bytes(32)) -> Cosigned:
    checkpoint = Checkpoint(origin=ORIGIN, size=size, root=root)
    return Cosigned(checkpoint=checkpoint, time_s=time_s, note=sign_checkpoint(checkpoint, KEY))


def test_each_log_has_a_memory_of_its_own(setting):
    other = Checkpoint(origin="other", size=1, root=bytes(32))
    setting.store.record(cosigned(7))
    setting.store.record(Cosigned(checkpoint=other, time_s=1, note=sign_checkpoint(other, KEY)))
    assert setting.store.newest(ORIGIN) == cosigned(7)
    assert setting.store.newest("other").checkpoint == other
    assert setting.store.newest("a third") is None


@pytest.mark.parametrize(
    ("then", "match"),
    [
        (cosigned(6, time_s=9), "never goes back"),
        (cosigned(8, time_s=4), "never goes back"),
        (cosigned(7, root=b"\x01" * 32), "one root"),
    ],
)
def test_the_schema_itself_refuses_to_go_back(setting, then, match):
    setting.store.record(cosigned(7))
    with pytest.raises(StoreError, match=match):
        setting.store.record(then)
    assert setting.store.newest(ORIGIN) == cosigned(7)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM cosigned",
        "UPDATE cosigned SET origin = 'x'",
        "UPDATE cosigned SET size = size - 1",
        "DELETE FROM evidence",
        "UPDATE evidence SET reason = ''",
    ],
)
def test_nothing_of_the_memory_can_be_taken_away(setting, statement):
    setting.store.record(cosigned(7))
    setting.store.keep(
        Evidence(seen_at_ms=1, reason="r", published=b"p", cosigned=None, block=None)
    )
    with (
        contextlib.closing(sqlite3.connect(setting.store.path)) as connection,
        pytest.raises(sqlite3.IntegrityError),
    ):
        connection.execute(statement)


def test_a_hostile_log_does_not_fill_the_disk(setting, monkeypatch):
    monkeypatch.setattr(module, "MAX_EVIDENCE", 3)
    for number in range(5):
        bad = publish(ENDS[1], root=bytes([number]) * 32)
        with pytest.raises(ConflictError):
            setting.observe(bad)
    assert len(setting.store.evidence()) == 3


def test_a_missing_foreign_or_second_file_is_refused(tmp_path):
    path = tmp_path / "witness.db"
    with pytest.raises(StoreError, match="refuses to sign"):
        WitnessStore.open(path, instance="one", account=KEY.account)
    WitnessStore.create(path, instance="one", account=KEY.account)
    with pytest.raises(StoreError, match="exists already"):
        WitnessStore.create(path, instance="two", account=KEY.account)
    for instance, account in (("two", KEY.account), ("one", build_key("other").account)):
        with pytest.raises(StoreError, match="was not made with the key"):
            WitnessStore.open(path, instance=instance, account=account)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_cannot_be_made_or_read_is_refused(tmp_path):
    with pytest.raises(StoreError, match="cannot be created"):
        WitnessStore.create(tmp_path / "missing/witness.db", instance="one", account=KEY.account)
    (tmp_path / "witness.db").write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError, match="cannot be opened"):
        WitnessStore.open(tmp_path / "witness.db", instance="one", account=KEY.account)


def test_a_damaged_row_is_noticed(setting):
    setting.store.record(cosigned(7))
    with contextlib.closing(sqlite3.connect(setting.store.path)) as connection:
        connection.execute("UPDATE cosigned SET size = 8")
        connection.commit()
        with pytest.raises(StoreError, match="note differ"):
            setting.store.newest(ORIGIN)
        connection.execute("UPDATE cosigned SET note = x'00'")
        connection.commit()
        with pytest.raises(StoreError, match="damaged"):
            setting.store.newest(ORIGIN)


# --- key and memory are made together -----------------------------------------------------------


def test_the_first_start_makes_key_and_memory_and_later_ones_keep_them(tmp_path):
    data = DataDirectory(tmp_path)
    key, store = open_identity(data)
    store.record(cosigned(7))
    store.close()
    assert data.witness_key.stat().st_mode & 0o777 == 0o600
    again, store = open_identity(data)
    with contextlib.closing(store):
        assert again.account == key.account == load_key(data.witness_key)[0].account
        assert store.newest(ORIGIN) == cosigned(7)


def test_a_first_start_that_was_cut_off_is_begun_anew(tmp_path):
    data = DataDirectory(tmp_path)
    key, store = open_identity(data)
    store.close()
    data.witness_key.rename(data.witness_key.with_suffix(".new"))
    again, store = open_identity(data)
    with contextlib.closing(store):
        assert again.account != key.account


def test_a_key_without_its_memory_or_a_memory_without_its_key_is_refused(tmp_path):
    data = DataDirectory(tmp_path)
    _, store = open_identity(data)
    store.record(cosigned(7))
    store.close()
    saved = data.witness_key.read_bytes()
    data.witness_key.unlink()
    with pytest.raises(StoreError, match="key is gone"):
        open_identity(data)
    data.witness_key.write_bytes(saved)
    for path in tmp_path.glob("witness.db*"):
        path.unlink()
    with pytest.raises(StoreError, match="refuses to sign"):
        open_identity(data)


# --- rounds -------------------------------------------------------------------------------------


def test_a_head_that_was_ahead_is_co_signed_when_the_chain_has_got_there(setting):
    """Else a log that grows all the time would never be co-signed."""
    setting.replace_chain(CHAIN, 1)
    refuse(setting, publish(ENDS[1]), CheckpointRefusedError, "has verified")
    block, certificate = CHAIN.blocks[1], CHAIN.certificates[1]
    setting.chain.append(block, certificate).result()
    assert said(setting.observe(publish(ENDS[2])))[0] == ENDS[1]
    setting.chain.append(CHAIN.blocks[2], CHAIN.certificates[2]).result()
    assert said(setting.observe(publish(ENDS[2])))[0] == ENDS[2]


def test_a_lie_about_a_size_does_not_stop_a_witness_for_ever(setting):
    setting.replace_chain(CHAIN, 1)
    refuse(setting, publish(ENDS[1], size=2**52), CheckpointRefusedError, "has verified")
    refuse(setting, publish(ENDS[1]), CheckpointRefusedError, "has verified")
    refuse(setting, publish(ENDS[1], size=2**52), CheckpointRefusedError, "has verified")
    setting.chain.append(CHAIN.blocks[1], CHAIN.certificates[1]).result()
    assert said(setting.observe(publish(ENDS[1], size=2**52)))[0] == ENDS[1]
    assert said(setting.observe(publish(ENDS[1])))[0] == ENDS[1]


def test_the_first_node_that_answers_is_asked():
    first, second = StaticLog(), StaticLog()
    logs = FirstToAnswer([first, second])
    first.says, second.says = b"one", b"two"
    assert logs.checkpoint() == b"one"
    first.says = RequestFailedError("no answer")
    assert logs.checkpoint() == b"two"
    second.says = RequestFailedError("no answer here either")
    with pytest.raises(RequestFailedError, match="here either"):
        logs.checkpoint()


def run(setting, says: list[bytes | Exception], *, interval_s: float = 0) -> list[str]:
    """Let a witness run until the log has said all of it; returns what was reported."""
    sentences, ended = [], threading.Event()

    class ScriptedLog:
        def checkpoint(self) -> bytes:
            if len(says) == 1:
                ended.set()
            step = says.pop(0) if len(says) > 1 else says[0]
            if isinstance(step, Exception):
                raise step
            return step

    setting.log = ScriptedLog()
    thread = WitnessThread(
        setting.restart(), report=sentences.append, failed=pytest.fail, interval_s=interval_s
    )
    thread.start()
    assert ended.wait(30)
    thread.stop()
    return sentences


def test_rounds_go_on_through_refusals_and_say_each_change_once(setting):
    sentences = run(
        setting,
        [
            RequestFailedError("no answer"),
            RequestFailedError("no answer"),
            publish(ENDS[0]),
            publish(ENDS[1]),
            publish(ENDS[1], FORK),
            publish(ENDS[2]),
        ],
    )
    assert [sentence.split(":")[0].split(" of ")[0] for sentence in sentences] == [
        "not co-signed",
        f"co-signed {ENDS[0]} leaves",
        "not co-signed",
        f"co-signed {ENDS[2]} leaves",
    ]


def test_a_witness_that_cannot_store_stops_and_says_why(setting):
    setting.log.says = publish(ENDS[0])
    setting.store.close()
    failures, failed = [], threading.Event()

    def note(error: BaseException) -> None:
        failures.append(error)
        failed.set()

    thread = WitnessThread(setting.witness, report=print, failed=note)
    thread.start()
    assert failed.wait(30)
    thread.stop()
    assert isinstance(failures[0], StoreError)


def test_a_thread_that_waits_is_woken_by_a_kick_and_ends_at_once(setting):
    setting.log.says = publish(ENDS[0])
    asked = threading.Semaphore(0)

    class CountingLog:
        def checkpoint(self) -> bytes:
            asked.release()
            return setting.log.says

    witness = Witness(
        chain=setting.chain, store=setting.store, key=KEY, log=CountingLog(), clock_ms=lambda: 1
    )
    thread = WitnessThread(witness, report=print, failed=pytest.fail, interval_s=3600)
    thread.stop()  # harmless before the start
    thread = WitnessThread(witness, report=print, failed=pytest.fail, interval_s=3600)
    thread.start()
    assert asked.acquire(timeout=30)
    setting.log.says = publish(ENDS[1])
    thread.kick()
    assert asked.acquire(timeout=30)
    assert not thread._wake.is_set(), "one kick is one round"
    thread.stop()
    assert "witness" not in [found.name for found in threading.enumerate()]
    assert said(witness.newest())[0] == ENDS[1]
