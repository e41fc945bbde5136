"""The invite: one string that brings a volunteer into a run.

The idea: `crowdsurf1:` and base64url of canonical msgpack [protocol version, run id, addresses, organizer, signature].
The organizer signs everything before the signature, so nobody on the way can send a newcomer to other addresses under
this organizer's name, and a damaged copy is told from a good one. In every later version the version stays first and
organizer and signature last, so that an intact invite for another version can be named as that.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import msgspec

from crowdsurf.protocol import limits, wire
from crowdsurf.protocol.errors import MisuseError, Refusal
from crowdsurf.protocol.ids import DIGEST_BYTES, SIGNATURE_BYTES, Digest, PeerId, digest, public_key_of

Sign = Callable[[bytes], bytes]
"""message → signature of our own key."""
Verify = Callable[[PeerId, bytes, bytes], bool]
"""(peer, message, signature) → did that peer sign it?"""

INVITE_BYTES_MAX = 256 + limits.ADDRESSES_PER_PEER_MAX * (limits.ADDRESS_BYTES_MAX + 4)
"""Version, run id, organizer and signature with their msgpack heads (under 256 bytes), and the addresses."""

_PREFIX = "crowdsurf1:"
_TEXT_MAX = len(_PREFIX) + INVITE_BYTES_MAX * 4 // 3 + 4
_ANY_FORM = re.compile(r"crowdsurf[0-9]{1,4}:")
_UPDATE = "update crowdsurf, or ask the organizer for a new invite"

_Address = Annotated[str, msgspec.Meta(max_length=limits.ADDRESS_BYTES_MAX, pattern=r"^/[!-~]+\Z")]


class InviteError(MisuseError):
    """The text is no invite, or a damaged one."""


class WrongVersion(InviteError):
    """The invite is intact and made for another protocol version than this program's."""


class Invite(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, array_like=True):
    """Where to find which run. Field order is the order in the invite."""

    protocol_version: Annotated[int, msgspec.Meta(ge=1, le=65535)] = limits.PROTOCOL_VERSION
    run_id: Annotated[bytes, msgspec.Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]
    """Digest of the manifest; whoever serves it cannot serve another."""
    addresses: Annotated[tuple[_Address, ...], msgspec.Meta(min_length=1, max_length=limits.ADDRESSES_PER_PEER_MAX)]
    """Multiaddresses of peers to ask first."""
    organizer: bytes
    """Peer id of the organizer, who signed."""


def encode_invite(run_id: Digest, addresses: Sequence[str], organizer: PeerId, sign: Sign) -> str:
    """The invite's text. `sign` is the organizer's. Raises MisuseError for addresses nobody could use."""
    fields = [limits.PROTOCOL_VERSION, bytes(run_id), list(addresses), bytes(organizer)]
    try:
        msgspec.convert(fields, Invite)
    except msgspec.ValidationError as error:
        raise MisuseError(
            f"an invite needs 1 to {limits.ADDRESSES_PER_PEER_MAX} addresses such as /ip4/203.0.113.7/tcp/31337, "
            f"each of at most {limits.ADDRESS_BYTES_MAX} characters ({error})"
        ) from error
    data = wire.pack([*fields, sign(_signed(fields))])
    return _PREFIX + base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def decode_invite(text: str, verify: Verify) -> Invite:
    """The invite in `text`; spaces and line breaks from copying do not matter.

    Raises InviteError (no invite, or damaged) and WrongVersion.
    """
    fields = _intact_fields(_data_of(text), verify)
    version = fields[0]
    if version != limits.PROTOCOL_VERSION:
        speaks = limits.PROTOCOL_VERSION
        raise WrongVersion(
            f"this invite is made for protocol version {version}; this program speaks {speaks}: {_UPDATE}"
        )
    try:
        return msgspec.convert(fields[:-1], Invite)
    except msgspec.ValidationError as error:
        raise InviteError(
            f"this invite is signed but makes no sense ({error}): ask the organizer for a new one"
        ) from error


def _data_of(text: str) -> bytes:
    """The bytes behind the prefix, if the text is the only spelling of them."""
    if len(text) > 2 * _TEXT_MAX:
        raise InviteError("this is not an invite: it is far too long")
    text = "".join(text.split())
    form = _ANY_FORM.match(text)
    if form is None:
        raise InviteError(f"this is not an invite: an invite begins with {_PREFIX}")
    if form[0] != _PREFIX:
        raise WrongVersion(f"this invite has the form {form[0]} and this program knows {_PREFIX}: {_UPDATE}")
    body = text[len(_PREFIX) :]
    try:
        data = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise _damaged() from error
    if base64.urlsafe_b64encode(data).rstrip(b"=") != body.encode("ascii"):
        raise _damaged()
    return data


def _intact_fields(data: bytes, verify: Verify) -> list[Any]:
    """The fields of an invite of any version whose organizer's signature holds."""
    try:
        fields = wire.unpack(data, list, INVITE_BYTES_MAX)
        if len(fields) < 3 or type(fields[0]) is not int:
            raise _damaged()
        organizer, signature = fields[-2:]
        if not isinstance(organizer, bytes) or not isinstance(signature, bytes) or len(signature) != SIGNATURE_BYTES:
            raise _damaged()
        public_key_of(PeerId(organizer))
    except (Refusal, RecursionError) as error:
        raise _damaged() from error
    if not verify(PeerId(organizer), _signed(fields[:-1]), signature):
        raise _damaged()
    return fields


def _signed(fields: list[Any]) -> bytes:
    """What the organizer signs: a digest of everything before the signature."""
    return digest("invite", wire.pack(fields))


def _damaged() -> InviteError:
    return InviteError("this invite is damaged: copy it again as a whole, from the first letter to the last")
