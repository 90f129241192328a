"""Signed notes: the bytes of other implementations, and everything that is none."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.errors import InvalidNoteError
from ledger.keys import KeyPair, encode_account
from ledger.note import (
    MAX_KEY_NAME_CHARS,
    MAX_NOTE_BYTES,
    MAX_NOTE_SIGNATURES,
    MAX_TIMESTAMP_S,
    KeyKind,
    Note,
    NoteKey,
    NoteSignature,
    cosign_note,
    encode_note,
    is_key_name,
    parse_note,
    sign_note,
    verify_note,
)
from tests.builders import build_key

LOG, WITNESS = build_key("authority 0"), build_key("witness")
LOG_KEY = NoteKey(name="log.example/1", kind=KeyKind.LOG, account=LOG.account)
WITNESS_KEY = NoteKey(name="witness.example", kind=KeyKind.WITNESS, account=WITNESS.account)
TEXT = "first line\n\nlast line\n"
TIME_S = 1_767_225_600


def build_note(*lines: NoteSignature, text: str = TEXT) -> bytes:
    return encode_note(Note(text=text, signatures=lines))


LOG_LINE = sign_note(TEXT, LOG, name=LOG_KEY.name)
WITNESS_LINE = cosign_note(TEXT, WITNESS, name=WITNESS_KEY.name, time_s=TIME_S)
SIGNED = build_note(LOG_LINE, WITNESS_LINE)


def verified(data: bytes, *keys: NoteKey) -> list[NoteKey]:
    return [signature.key for signature in verify_note(parse_note(data), keys)]


# --- other implementations ----------------------------------------------------------------------

# golang.org/x/mod/sumdb/note, the example of its documentation.
GO_SEED = base64.b64decode("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")[1:]
GO_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_TEXT = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
)
GO_LINE = (
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotp"
    "RZb6KE6RyyBwJnAM=\n"
)
# A checkpoint of a public test log with the line of a public witness, and one of a kind (RFC 6962)
# that we do not know.
PUBLIC_NOTE = """arche2025h1.staging.ct.transparency.dev
1432088532
U7WM79jrzyhGZ5/GUBTpM7NzwdyfFx61t3RovgcC4Ro=

— arche2025h1.staging.ct.transparency.dev zTM8sQAAAZ5W0WdjBAMARjBEAiBjW5IQf9pvsYLfQFX6hoGREPMHbdQ3urbllzalApkptQIgIpwtEroeW2BXaHAI4kJXFbon5Ch9MNL5zRNZ55lvGt0=
— arche2025h1.staging.ct.transparency.dev ui8GwCF1+kWqZrxGdhj4aX3gcw7XUlXQQabg/27lefwhUkzbC3NygNI75MdhL1bfTW9g8Ei59RA23oHP7Ry1k3ZFWwQ=
— remora.n621.de 2net5wAAAABqEiEgPlfF3V06o0Y+fHM+J5J9s27wgxxcOVSpZ/2g/KSiXCg9DEZI+aVCIobWX9sXTynk5XeU/zZ0WBxtqB0DrAWfBw==
""".encode()  # noqa: E501 - lines of a note do not break
PUBLIC_KEYS = (
    "arche2025h1.staging.ct.transparency.dev+ba2f06c0+AU0vHmlGCS/PdN8b2OaGmKprLI8HKM+dJ472xgFYh15f",
    "remora.n621.de+da77ade7+BOvN63jn/bLvkieywe8R6UYAtVtNbZpXh34x7onlmtw2",
)
# C2SP signed-note names this key and line.
SPECIFIED_KEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
SPECIFIED_NOTE = (
    "This is an example message.\n\n"
    "— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuw"
    "HjG1Yu72IneyaQM=\n"
)


def read_key(text: str) -> NoteKey:
    """The key of a `name+id+key` text, which must spell the same when it is written again."""
    name, _, data = text.split("+", 2)
    decoded = base64.b64decode(data)
    account = encode_account(decoded[1:])
    key = NoteKey(name=name, kind=KeyKind(decoded[0]), account=account)
    assert str(key) == text
    return key


def test_the_note_of_the_go_library_is_made_byte_for_byte():
    key = KeyPair.from_seed(GO_SEED)
    line = sign_note(GO_TEXT, key, name="PeterNeumann")
    assert build_note(line, text=GO_TEXT) == f"{GO_TEXT}\n{GO_LINE}".encode()
    assert verified(f"{GO_TEXT}\n{GO_LINE}".encode(), read_key(GO_KEY)) == [read_key(GO_KEY)]


def test_the_note_of_the_specification_verifies():
    key = read_key(SPECIFIED_KEY)
    assert verified(SPECIFIED_NOTE.encode(), key) == [key]


def test_a_public_checkpoint_with_a_witness_verifies_and_unknown_kinds_are_ignored():
    log, witness = map(read_key, PUBLIC_KEYS)
    signatures = verify_note(parse_note(PUBLIC_NOTE), [witness, log])
    assert [(s.key, s.time_s) for s in signatures] == [(log, None), (witness, 0x6A122120)]
    assert encode_note(parse_note(PUBLIC_NOTE)) == PUBLIC_NOTE
    forged = PUBLIC_NOTE.replace(b"1432088532", b"1432088533")
    for key in (log, witness):
        with pytest.raises(InvalidNoteError, match="does not verify"):
            verify_note(parse_note(forged), [key])


# --- form ---------------------------------------------------------------------------------------


def test_a_note_comes_back_as_it_was_written():
    note = parse_note(SIGNED)
    assert note == Note(text=TEXT, signatures=(LOG_LINE, WITNESS_LINE))
    assert verified(SIGNED, WITNESS_KEY, LOG_KEY) == [LOG_KEY, WITNESS_KEY]


@given(
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc"])),
    st.lists(st.tuples(st.integers(0, 9), st.binary(min_size=1, max_size=99)), min_size=1),
)
def test_every_text_survives_a_round_trip(text, lines):
    note = Note(
        text=f"{text}\n",
        signatures=tuple(
            NoteSignature(name=f"k{number}", key_id=b"\xff\xfe\xfd\xfc", data=data)
            for number, data in lines[:MAX_NOTE_SIGNATURES]
        ),
    )
    assert parse_note(encode_note(note)) == note


@pytest.mark.parametrize("length", range(len(SIGNED)))
def test_a_note_that_was_cut_off_is_refused_or_lacks_its_last_signer(length):
    if length == len(build_note(LOG_LINE)):
        assert verified(SIGNED[:length], LOG_KEY, WITNESS_KEY) == [LOG_KEY]
        return
    with pytest.raises(InvalidNoteError):
        parse_note(SIGNED[:length])


@pytest.mark.parametrize("place", range(len(SIGNED)))
def test_a_note_with_a_changed_byte_has_not_both_signers(place):
    for change in (0x01, 0x20, 0x80):
        data = bytearray(SIGNED)
        data[place] ^= change
        try:
            found = verified(bytes(data), LOG_KEY, WITNESS_KEY)
        except InvalidNoteError:
            continue
        assert len(found) < 2


NO_NOTES = {
    "empty": b"",
    "text alone": TEXT.encode(),
    "no signatures": TEXT.encode() + b"\n",
    "no empty line": SIGNED.replace(b"\n\n", b"\n"),
    "no line feed at its end": SIGNED[:-1],
    "a line too many at its end": SIGNED + b"\n",
    "a control character in the text": b"\x01" + SIGNED,
    "a carriage return": SIGNED.replace(b"\n", b"\r\n"),
    "a tab": SIGNED.replace(b"first ", b"first\t"),
    "not UTF-8": b"\xff" + SIGNED,
    "a line that is no signature": SIGNED + b"Unexpected line.\n",
    "a hyphen for the dash": SIGNED.replace("— w".encode(), b"- w"),
    "a name with a space": SIGNED.replace(b"witness.example", b"witness example"),
    "a name with a plus": SIGNED.replace(b"witness.example", b"witness+example"),
    "a name with an en space": SIGNED.replace(b"witness.", "witness\u2002".encode()),
    "no name": SIGNED.replace(b"witness.example", b""),
    "a long name": SIGNED.replace(b"witness.example", b"w" * (MAX_KEY_NAME_CHARS + 1)),
    "no signature behind a name": SIGNED + "— name\n".encode(),
    "an empty signature": SIGNED + "— name \n".encode(),
    "a key id alone": SIGNED + "— name AAAAAA==\n".encode(),
    "base64 without padding": SIGNED + "— name AAAAAAA\n".encode(),
    "base64 of a second spelling": SIGNED + "— name AAAAAAB=\n".encode(),
    "base64 for addresses": SIGNED + "— name AAAAAA-_\n".encode(),
    "a space behind a signature": SIGNED + "— name AAAAAAA= \n".encode(),
    "two spaces": SIGNED + "—  name AAAAAAA=\n".encode(),
    "too many signatures": build_note(*[LOG_LINE] * (MAX_NOTE_SIGNATURES + 1)),
    "too long": b"a" * MAX_NOTE_BYTES + SIGNED,
}


@pytest.mark.parametrize("data", NO_NOTES.values(), ids=NO_NOTES.keys())
def test_what_is_no_note_is_refused(data):
    with pytest.raises(InvalidNoteError):
        parse_note(data)


def test_sixteen_and_more_signatures_are_accepted():
    data = build_note(*[LOG_LINE] * MAX_NOTE_SIGNATURES)
    assert verified(data, LOG_KEY) == [LOG_KEY]


@pytest.mark.parametrize(
    "name", ["", " ", "a b", "a+b", "a\u00a0b", "a\u2028b", "a\u0085b", "a\nb", "a" * 256]
)
def test_what_is_no_key_name(name):
    assert not is_key_name(name)


# --- signatures ---------------------------------------------------------------------------------


def test_a_note_that_no_known_key_signed_is_refused():
    stranger = NoteKey(name=LOG_KEY.name, kind=KeyKind.LOG, account=WITNESS.account)
    namesake = NoteKey(name="other.example", kind=KeyKind.LOG, account=LOG.account)
    for keys in ([], [stranger], [namesake]):
        with pytest.raises(InvalidNoteError, match="nobody signed it"):
            verify_note(parse_note(SIGNED), keys)


def test_one_line_of_a_known_key_that_does_not_verify_spoils_the_note():
    wrong = NoteSignature(name=LOG_LINE.name, key_id=LOG_LINE.key_id, data=bytes(64))
    data = build_note(WITNESS_LINE, LOG_LINE, wrong)
    assert verified(data, WITNESS_KEY) == [WITNESS_KEY]
    with pytest.raises(InvalidNoteError, match="does not verify"):
        verified(data, WITNESS_KEY, LOG_KEY)


@pytest.mark.parametrize("size", [1, 8, 63, 65, 71, 73])
def test_a_signature_of_another_length_is_refused(size):
    for key, line in ((LOG_KEY, LOG_LINE), (WITNESS_KEY, WITNESS_LINE)):
        data = (line.data * 2)[:size]
        changed = NoteSignature(name=line.name, key_id=line.key_id, data=data)
        with pytest.raises(InvalidNoteError, match="has not 64 bytes"):
            verified(build_note(changed), key)


def test_a_witness_key_does_not_sign_as_a_log_nor_a_log_key_as_a_witness():
    """One key, one name: the kinds have different ids, and their messages differ."""
    log = NoteKey(name="one", kind=KeyKind.LOG, account=LOG.account)
    witness = NoteKey(name="one", kind=KeyKind.WITNESS, account=LOG.account)
    assert log.id != witness.id
    plain, timed = sign_note(TEXT, LOG, name="one"), cosign_note(TEXT, LOG, name="one", time_s=1)
    forged = NoteSignature(name="one", key_id=witness.id, data=timed.data[:8] + plain.data)
    with pytest.raises(InvalidNoteError, match="does not verify"):
        verified(build_note(forged), witness)
    forged = NoteSignature(name="one", key_id=log.id, data=timed.data[8:])
    with pytest.raises(InvalidNoteError, match="does not verify"):
        verified(build_note(forged), log)


def test_a_cosignature_binds_its_time():
    for place in range(8):
        data = bytearray(WITNESS_LINE.data)
        data[place] ^= 1
        line = NoteSignature(name=WITNESS_KEY.name, key_id=WITNESS_KEY.id, data=bytes(data))
        with pytest.raises(InvalidNoteError):
            verified(build_note(line), WITNESS_KEY)
    late = cosign_note(TEXT, WITNESS, name=WITNESS_KEY.name, time_s=MAX_TIMESTAMP_S)
    assert verified(build_note(late), WITNESS_KEY) == [WITNESS_KEY]
    never = cosign_note(TEXT, WITNESS, name=WITNESS_KEY.name, time_s=MAX_TIMESTAMP_S + 1)
    with pytest.raises(InvalidNoteError, match="does not exist"):
        verified(build_note(never), WITNESS_KEY)
