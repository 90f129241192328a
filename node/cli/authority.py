"""`aitbc authority`: change who seals blocks. One proposes, a quorum signs, anybody submits.

A draft is the envelope itself with the signatures it has so far, canonical JSON in a file that is
passed around or signed in copies; nothing in it is secret. Whoever signs is shown what changes.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from explorer_ui.format import visible
from ledger.authorities import Authority
from ledger.block import Genesis, Tip
from ledger.changes import has_say, list_change_signers, validate_change
from ledger.errors import LedgerError, StoreError
from ledger.keys import KeyPair
from ledger.rules import verify_transaction
from ledger.transaction import (
    MAX_ENVELOPE_BYTES,
    AuthoritySetPayload,
    Role,
    Signature,
    Transaction,
    build_transaction,
    parse_transaction,
    sign_payload,
)
from node.cli.options import data_option, file_type, read_connection, url_option
from node.cli.setchange import (
    ChangeRefusedError,
    Edits,
    apply_edits,
    build_payload,
    describe_change,
    describe_signatures,
    list_warnings,
)
from node.cli.standing import fetch_tip, read_local_tip
from node.datadir import DataDirectory, load_key
from node.files import read_bounded, write_public
from node.restclient import NOT_FOUND, POLL_S, RequestFailedError, RestClient

DEFAULT_EXPIRES_IN = 1_000
MAX_EXPIRES_IN = 1_000_000_000
_ROLES: tuple[Role, ...] = ("authority", "coordinator")

draft_argument = click.argument("draft", type=file_type)


@click.group()
def authority() -> None:
    """Change who seals blocks: propose, sign, submit, show."""


@authority.command()
@data_option
@url_option
@click.option("--add", multiple=True, metavar="NAME=ACCOUNT[=URL]", help="A new authority.")
@click.option("--remove", multiple=True, metavar="WHO", help="An account, or an authority's name.")
@click.option("--rename", multiple=True, metavar="WHO=NAME", help="Give an authority another name.")
@click.option("--url-of", multiple=True, metavar="WHO=URL", help="Where peers reach it from then.")
@click.option("--add-coordinator", multiple=True, metavar="ACCOUNT", help="May issue receipts too.")
@click.option("--remove-coordinator", multiple=True, metavar="ACCOUNT", help="No longer may.")
@click.option(
    "--expires-in",
    type=click.IntRange(1, MAX_EXPIRES_IN),
    default=DEFAULT_EXPIRES_IN,
    show_default=True,
    metavar="HEIGHTS",
    help="How many blocks from now the signatures stay good.",
)
@click.option(
    "--out",
    type=file_type,
    default=Path("change.json"),
    show_default=True,
    help="Where the draft is written; it must not exist.",
)
def propose(
    *,
    data: Path,
    url: str | None,
    add: tuple[str, ...],
    remove: tuple[str, ...],
    rename: tuple[str, ...],
    url_of: tuple[str, ...],
    add_coordinator: tuple[str, ...],
    remove_coordinator: tuple[str, ...],
    expires_in: int,
    out: Path,
) -> None:
    """Draft a change of the current set, for its members to sign."""
    tip = _read_tip(data, url)
    edits = Edits(
        added=[_parse_member(text) for text in add],
        removed=remove,
        renamed=[_parse_pair(text, "--rename") for text in rename],
        moved=[_parse_pair(text, "--url-of") for text in url_of],
        coordinators_added=add_coordinator,
        coordinators_removed=remove_coordinator,
    )
    payload = build_payload(apply_edits(tip.authority_set, edits), tip, valid_for=expires_in)
    draft = build_transaction(payload, [])
    _explain(draft, payload, tip)
    if out.exists():
        raise StoreError(f"{out}: exists already; give another --out")
    _write_draft(out, draft)
    click.echo(f"Draft in {out}. Next: ./aitbc authority sign {out}")


@authority.command()
@draft_argument
@data_option
@url_option
@click.option(
    "--keyfile",
    type=file_type,
    help="The key that signs; by default the authority's key of --data.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
def sign(*, draft: Path, data: Path, url: str | None, keyfile: Path | None, yes: bool) -> None:
    """Show what a draft changes, and add a signature to it."""
    tip = _read_tip(data, url)
    transaction, payload = _read_draft(draft)
    validate_change(payload, tip)
    key, _ = load_key(keyfile or DataDirectory(data).authority_key)
    roles = _find_roles(key, payload, tip)
    _explain(transaction, payload, tip)
    if not yes:
        click.confirm(f"Sign this as {' and '.join(roles)} with {key.account}?", abort=True)
    signed = _merge([transaction], [sign_payload(payload, key, role) for role in roles])
    _write_draft(draft, signed)
    _show_signatures(signed, payload, tip)


@authority.command()
@click.argument("drafts", nargs=-1, required=True, type=file_type)
@data_option
@url_option
@click.option("--wait", is_flag=True, help="Wait until the change is final.")
@click.option(
    "--timeout", type=float, default=300.0, show_default=True, help="Seconds to wait at most."
)
def submit(
    *, drafts: tuple[Path, ...], data: Path, url: str | None, wait: bool, timeout: float
) -> None:
    """Hand a signed draft to a node. Copies that were signed apart are put together."""
    read = [_read_draft(path) for path in drafts]
    transaction, payload = _merge([t for t, _ in read]), read[0][1]
    with RestClient(url or read_connection(data).url) as client:
        tip = fetch_tip(client, genesis=_find_genesis(data))
        known = _find_known(client, transaction)
        if known is None:
            _check_complete(transaction, payload, tip)
            known = client.submit_transaction(transaction.envelope)
        click.echo(f"{known['transaction_id']}  {known['status']}")
        if wait:
            known = _wait_until_final(client, transaction, timeout_s=timeout)
    if known["status"] == "final":
        height = known["block_height"]
        click.echo(
            f"Final in block {height}; the new set certifies the blocks from {height + 1} on."
        )


@authority.command()
@click.argument("draft", type=file_type, required=False)
@data_option
@url_option
def show(*, draft: Path | None, data: Path, url: str | None) -> None:
    """Show the current set, or what a draft changes and who has signed it."""
    tip = _read_tip(data, url)
    if draft is not None:
        transaction, payload = _read_draft(draft)
        _explain(transaction, payload, tip)
        validate_change(payload, tip)
        return
    current = tip.authority_set
    click.echo(
        f"Epoch {current.epoch} at height {tip.height}: {current.quorum} of "
        f"{len(current.members)} make a block final."
    )
    for index, member in enumerate(current.members):
        click.echo(visible(f"  {index}  {member.name}  {member.account}  {member.url}".rstrip()))
    for account in current.coordinators:
        click.echo(f"  coordinator  {account}")


def _read_tip(data: Path, url: str | None) -> Tip:
    if url is None:
        return read_local_tip(DataDirectory(data))
    with RestClient(url) as client:
        return fetch_tip(client, genesis=_find_genesis(data))


def _find_genesis(data: Path) -> Genesis | None:
    """The network that the operator's own directory belongs to, if one was named.

    A directory that only happens to lie at the default place says nothing about a node's network.
    """
    if click.get_current_context().get_parameter_source("data") is ParameterSource.DEFAULT:
        return None
    directory = DataDirectory(data)
    return directory.load_genesis() if directory.genesis.exists() else None


def _parse_member(text: str) -> Authority:
    name, _, rest = text.partition("=")
    account, _, url = rest.partition("=")
    if not name or not account:
        raise click.BadParameter(f"expected NAME=ACCOUNT[=URL], got {text}", param_hint="--add")
    return Authority(account=account, name=name, url=url)


def _parse_pair(text: str, hint: str) -> tuple[str, str]:
    who, separator, value = text.partition("=")
    if not who or not separator:
        raise click.BadParameter(f"expected WHO=…, got {text}", param_hint=hint)
    return who, value


def _read_draft(path: Path) -> tuple[Transaction, AuthoritySetPayload]:
    data = read_bounded(path, MAX_ENVELOPE_BYTES + 1)
    try:
        transaction = parse_transaction(data.removesuffix(b"\n"))
    except LedgerError as error:
        raise StoreError(f"{path}: is not a draft: {error}") from error
    if not isinstance(transaction.payload, AuthoritySetPayload):
        raise StoreError(f"{path}: expected a change of the authority set, got {transaction.type}")
    return transaction, transaction.payload


def _write_draft(path: Path, draft: Transaction) -> None:
    write_public(path, draft.envelope + b"\n")


def _find_roles(key: KeyPair, payload: AuthoritySetPayload, tip: Tip) -> list[Role]:
    signers = list_change_signers(payload, tip.authority_set)
    roles = [role for role in _ROLES if has_say(role, key.account, signers)]
    if not roles:
        raise ChangeRefusedError(
            f"{key.account} has no say in this change: it is neither an authority today nor does "
            "it enter, and one signature too many would spoil it"
        )
    return roles


def _merge(copies: list[Transaction], more: list[Signature] | None = None) -> Transaction:
    """Put the signatures of copies of one draft together; who signs again replaces its own."""
    first = copies[0]
    if any(copy.id != first.id for copy in copies):
        raise ChangeRefusedError("the files are drafts of different changes; submit one at a time")
    signatures = {
        (signature.role, signature.key_id): signature
        for group in (*(copy.signatures for copy in copies), more or ())
        for signature in group
    }
    return build_transaction(first.payload, signatures.values())


def _check_complete(transaction: Transaction, payload: AuthoritySetPayload, tip: Tip) -> None:
    try:
        verify_transaction(transaction, tip)
    except LedgerError:
        _show_signatures(transaction, payload, tip)
        raise


def _explain(transaction: Transaction, payload: AuthoritySetPayload, tip: Tip) -> None:
    # Names in a draft are somebody else's: nothing in them may hide or reorder what is signed.
    for line in describe_change(tip.authority_set, payload):
        click.echo(visible(line))
    for warning in list_warnings(tip.authority_set, payload.authority_set):
        click.secho(f"Warning: {visible(warning)}", err=True, fg="yellow")
    _show_signatures(transaction, payload, tip)


def _show_signatures(transaction: Transaction, payload: AuthoritySetPayload, tip: Tip) -> None:
    signers = list_change_signers(payload, tip.authority_set)
    for line in describe_signatures(transaction.signatures, signers, payload, tip.authority_set):
        click.echo(visible(line))


def _find_known(client: RestClient, transaction: Transaction) -> dict[str, Any] | None:
    try:
        return client.transaction(transaction.id.hex())
    except RequestFailedError as error:
        if error.status != NOT_FOUND:
            raise
        return None


def _wait_until_final(
    client: RestClient, transaction: Transaction, *, timeout_s: float
) -> dict[str, Any]:
    deadline = time.monotonic() + timeout_s
    while True:
        known = _find_known(client, transaction)
        if known is None:
            raise ChangeRefusedError(
                "the node has given this change up: another one was first, or it expired"
            )
        if known["status"] == "final":
            return known
        if time.monotonic() >= deadline:
            raise RequestFailedError(
                f"the change is still {known['status']} after {timeout_s:.0f} s; it is not lost, "
                "ask with ./aitbc authority submit --wait again"
            )
        time.sleep(POLL_S)
