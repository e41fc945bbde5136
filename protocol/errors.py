"""Whose fault is it? Four families of error, and the codes a message can be refused with.

The idea: blame is in the type. `MisuseError` is ours to fix in the calling code, `Refusal` is a peer's
doing, `WorldError` is nobody's (disk, network, a worker that died), and anything else that escapes is a
bug of our own. Only a `Refusal` may ever cost a peer something, and only with `Severity.REJECT`.
"""

from __future__ import annotations

import enum


def printable(text: str) -> str:
    """Text that may hold a stranger's words, for a terminal or a log: whatever is no visible character (what moves the
    cursor, changes colours or the direction of writing) is shown as its escape. Line breaks stay."""
    return "".join(
        letter if letter.isprintable() or letter == "\n" else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )


def one_line(text: str, characters_max: int) -> str:
    """The same as one line without wide gaps, cut to so many characters."""
    return printable(" ".join(text[:characters_max].split()))[:characters_max]


class CrowdsurfError(Exception):
    """Base of every error this project raises on purpose; its text is one plain sentence."""


class MisuseError(CrowdsurfError):
    """The calling code, a configuration or a command line asked for something that cannot be."""


class WorldError(CrowdsurfError):
    """The world failed: a disk is full, a port is taken, nobody answers, a worker process died."""


class Severity(enum.Enum):
    """What a refusal says about the peer the message came from."""

    IGNORE = "ignore"
    """Nobody's fault that we could prove: late, duplicate, early, or about something we do not know."""
    REJECT = "reject"
    """No correct peer sends this. Costs the sender."""


class Code(enum.Enum):
    """Why a message was refused. The value is what logs, metrics and the wire show."""

    MALFORMED = "malformed"
    OVERSIZED = "oversized"
    NOT_CANONICAL = "not_canonical"
    UNKNOWN_KIND = "unknown_kind"
    WRONG_VERSION = "wrong_version"
    WRONG_RUN = "wrong_run"
    BAD_SIGNATURE = "bad_signature"
    NOT_MEMBER = "not_member"
    STALE = "stale"
    FUTURE = "future"
    DUPLICATE = "duplicate"
    EQUIVOCATION = "equivocation"
    WRONG_PROPOSER = "wrong_proposer"
    WRONG_CHAIN = "wrong_chain"
    BAD_COMMIT = "bad_commit"
    BAD_PROPOSAL = "bad_proposal"
    BAD_AGGREGATE = "bad_aggregate"
    BAD_REVEAL = "bad_reveal"
    BAD_PROJECTION = "bad_projection"
    BAD_OUTCOME = "bad_outcome"
    BAD_CERTIFICATE = "bad_certificate"
    LOCKED = "locked"
    UNEXPECTED_BLOB = "unexpected_blob"
    WRONG_DIGEST = "wrong_digest"
    QUEUE_FULL = "queue_full"
    EXPIRED = "expired"
    BAD_ACCUSATION = "bad_accusation"
    BANNED = "banned"


_IGNORED = frozenset(
    {
        Code.STALE,
        Code.FUTURE,
        Code.DUPLICATE,
        Code.NOT_MEMBER,
        Code.LOCKED,
        Code.QUEUE_FULL,
        Code.EXPIRED,
        Code.UNEXPECTED_BLOB,
        Code.BANNED,
    }
)


class Refusal(CrowdsurfError):
    """A peer's bytes were refused. `code` names the rule, `detail` says it in words."""

    def __init__(self, code: Code, detail: str) -> None:
        super().__init__(f"{code.value}: {detail}")
        self.code = code
        self.detail = detail

    @property
    def severity(self) -> Severity:
        """IGNORE for what a correct peer on a slow link may also send, REJECT for everything else."""
        return Severity.IGNORE if self.code in _IGNORED else Severity.REJECT


class Unreadable(Refusal):
    """Bytes that are refused for what they are, whatever the receiver knows: whoever hands them on has not looked."""


class Unreachable(WorldError):
    """Nobody answers: no bootstrap address, no member of the swarm."""


class RefusedBySwarm(CrowdsurfError):
    """The swarm does not want this peer: another protocol version, not admitted, banned."""
