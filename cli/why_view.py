"""What `crowdsurf why` says to people: every fact it knows as a plain sentence."""

from __future__ import annotations

from collections.abc import Iterator

from crowdsurf.peer.past import Banned
from crowdsurf.peer.why import Standing, Why, status_of
from crowdsurf.protocol.ids import Digest, PeerId, digest_text, peer_text
from crowdsurf.protocol.manifest import run_id_of
from crowdsurf.protocol.messages import Commit, Reason, reason_name
from crowdsurf.protocol.recheck import Judgement
from crowdsurf.protocol.roster import STRIKE_FADES_STEPS, STRIKES_MAX

NOTES = {
    "joined": "became a member",
    "left": "left in order",
    "dropped": "was dropped from the roster, unharmed, because it had missed too many steps in a row",
    "rests": "was left out for a while",
    "banned": "was banned",
    "no_aggregate": "got a strike: the aggregate it had promised did not come, or counted for nothing",
    "no_finding": "got a strike: drawn by lot to recompute the work of another peer, it said that it could not",
    "no_nonce": "got a strike and has to rest: it did not open its nonce, so the step was void",
}


_PROOFS = {
    int(Reason.FALSE_ACCUSATION): "that the proof it signed does not hold",
    int(Reason.WRONG_AGGREGATE): "that what it signed does not add up",
}


def sentences(why: Why) -> Iterator[str]:
    """Everything known about a peer, a paragraph each."""
    run = f"run {why.manifest.name} ({digest_text(run_id_of(why.manifest))})"
    yield f"Peer {peer_text(why.peer)} in {run}:"
    if why.standing is not None:
        yield _standing(why.standing)
        if why.standing.banned is None and why.standing.notes:
            yield "What happened to it, by certified step:"
            yield from (f"  step {note.step}: it {NOTES[note.what]}" for note in why.standing.notes)
    if why.judgement is not None:
        yield from _judgement(why.judgement, why.standing is None)
    elif why.problem is not None:
        yield f"The evidence in {why.file} {'cannot be checked' if why.lacks_past else 'does NOT hold'}: {why.problem}."
    elif why.standing is not None and why.standing.banned is not None:
        yield (
            "There is no evidence of it in this home: this peer had no part in the case. Ask a peer that was a member "
            f"then for its file evidence/{peer_text(why.peer)}.evidence."
        )
    if why.judgement is not None and why.lacks_past and why.exported is None:
        yield (
            f"The steps before the ban were taken from the journal here, and are not in the file {why.file}: for "
            "anybody else write one that has them, with --export FILE."
        )
    elif why.judgement is not None:
        file = why.exported or why.file
        yield f"Anybody can check this again with the file {file} and the run's manifest: --file and --manifest."


def _standing(standing: Standing) -> str:
    """Where the chain has it."""
    status, steps = status_of(standing), f"after {standing.steps} certified steps"
    if standing.banned is not None:
        return _banned(standing.banned)
    if status == "member" and standing.member is not None:
        member = standing.member
        missed = (
            f"missed the last {_count(member.missed, 'step')}" if member.missed else "did its part in the last step"
        )
        return (
            f"It is a member since step {member.joined}, {steps}. It has {_count(member.strikes, 'strike')} (one fades "
            f"every {STRIKE_FADES_STEPS} steps, {STRIKES_MAX} mean a rest) and {missed}."
        )
    if standing.resting is not None:
        rest = standing.resting
        return (
            f"It is left out until step {rest.until}, unharmed, for the {_nth(rest.times)} time lately; "
            f"now it is step {standing.steps}. After that it may join again."
        )
    return f"It is no member {steps}, and nothing is held against it: it may join again."


def _banned(found: Banned) -> str:
    return (
        f"It is banned for {_words(found.ban.reason)} in step {found.ban.step}, by the header of step {found.step}, "
        f"which {found.votes} of {found.members} members signed."
    )


def _judgement(found: Judgement, alone: bool) -> Iterator[str]:
    guilty, accuser, accused = PeerId(found.ban.peer), _name(found.accuser), _name(found.accused)
    if alone:
        yield _banned(Banned(found.ban, found.banned_in, found.votes, found.members))
    yield f"What it did: {_deed(found)}"
    if found.ban.reason != Reason.FALSE_ACCUSATION:
        yield f"Who said so: {accuser}{_entitlement(found)}, in step {found.said_in}."
    yield f"Who decided: {_decision(found, accused)}"
    yield f"Checked here, just now, offline: {_checked(found)}"
    if found.audit is not None:
        yield f"Not checked here: {_work(found)}"
    if guilty == found.accuser:
        yield f"Nothing is held against {accused}, which it accused."


def _entitlement(found: Judgement) -> str:
    """How the accuser came to know."""
    if found.audit is None or found.audit.validator != found.accuser:
        return ""
    if found.charge != Reason.WRONG_PROJECTION:
        return ", which had been drawn by lot to recompute its work"
    whose = (
        "whose part it is about" if found.audit.target == found.accuser else "which had been drawn by lot to check it"
    )
    return f", {whose}"


def _deed(found: Judgement) -> str:
    ban, accused = found.ban, _name(found.accused)
    if ban.reason == Reason.EQUIVOCATION:
        return f"in step {ban.step} it signed two different messages where the rules let a peer sign one."
    if ban.reason == Reason.WRONG_GRADIENT:
        return f"in step {ban.step} it committed to a gradient that its work unit does not give."
    if ban.reason == Reason.WRONG_FINDING:
        return (
            f"drawn by lot to recompute the work of another peer, it committed in step {ban.step} to something that "
            "the work does not give, so it had not recomputed it."
        )
    if ban.reason == Reason.WRONG_AGGREGATE:
        return (
            f"as aggregator of a part in step {ban.step} it published numbers about its inputs that do not add up to "
            "nothing, as those of the right aggregate do."
        )
    if ban.reason == Reason.WRONG_PROJECTION:
        return (
            f"as aggregator of a part in step {ban.step} it published something about the contribution of another peer "
            "that is not so, which hides a wrong aggregate."
        )
    if ban.reason == Reason.FALSE_ACCUSATION:
        what = "its proof proves nothing" if found.audit is None else "what it accused was right"
        return f"in step {found.said_in} it accused {accused} of {_words(found.charge)} in step {ban.step}, and {what}."
    return f"{_words(ban.reason)} in step {ban.step}."


def _decision(found: Judgement, accused: str) -> str:
    if found.audit is None:
        if found.ban.reason == Reason.FALSE_ACCUSATION:
            return "nobody had to: its own signature is under an accusation that anybody can see to be false."
        if found.ban.reason == Reason.WRONG_AGGREGATE:
            return f"nobody had to: the numbers carry the signature of {accused}, and anybody can add them up."
        return f"nobody had to: both messages carry the signature of {accused}, and nobody else can make it."
    against = f"{found.verdicts_against} signed otherwise" if found.verdicts_against else "nobody signed otherwise"
    return (
        f"{found.verdicts} of the {found.members} members did the work again and signed that it is guilty, "
        f"{found.quorum} were needed; {against}."
    )


def _checked(found: Judgement) -> str:
    parts = [
        f"{found.steps} certified steps from the founders in the manifest to the ban, each signed by a quorum",
        f"that the header of step {found.banned_in} bans it for this ({found.votes} of {found.members} signatures)",
    ]
    if found.audit is None:
        parts.append(_PROOFS.get(found.ban.reason, "the two signatures that convict it"))
    else:
        about_a_line = found.charge == Reason.WRONG_PROJECTION
        lot = "that the lot of the certified beacon had put the accuser and the accused together"
        parts.append("that the accused signed it and the accuser could know" if about_a_line else lot)
        parts.append(f"the accusation and {found.verdicts + found.verdicts_against} verdicts of members")
        if found.commit is not None:
            parts.append("the commit that was judged")
    return f"{'; '.join(parts)}. {found.signatures} signatures in all. Everything holds."


def _work(found: Judgement) -> str:
    audit = found.audit
    if audit is None:
        return ""
    text = (
        f"the work itself, for which those members vouch. With the state before step {audit.step}, which must have the "
        f"digest {digest_text(audit.state)}, anybody can repeat it: the gradient of {_name(audit.target)} for the work "
        f"unit {digest_text(audit.seed)}, cut into {audit.parts} parts."
    )
    if found.charge == Reason.WRONG_PROJECTION:
        return f"{text} Compared with the aggregate, it gives other numbers than those in the accusation."
    return text + _said(found, found.commit)


def _said(found: Judgement, commit: Commit | None) -> str:
    if commit is None:
        return " What it had committed to is not shown in this file."
    whose = f" {_name(found.accused)} had committed to"
    if commit.finding:
        return f"{whose} the finding {digest_text(Digest(commit.finding))}."
    if not commit.parts:
        return f"{whose} nothing."
    named = ", ".join(digest_text(Digest(part))[:19] + "…" for part in commit.parts[:4])
    more = f" and {len(commit.parts) - 4} more" if len(commit.parts) > 4 else ""
    return f"{whose} parts with the digests {named}{more}."


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _words(reason: int) -> str:
    return reason_name(reason).replace("_", " ")


def _name(peer: PeerId) -> str:
    return f"…{peer_text(peer)[-8:]}"


def _nth(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")
