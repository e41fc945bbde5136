"""The model of a run as a file for others to use, rebuilt from what a peer has kept.

The idea: a kept state that a certificate vouches for, and the certified updates after it, applied by the very
worker that trains. Every state on the way is compared with its certificate, so what is exported is what the swarm
agreed on. Reads only, so the peer may be running.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from crowdsurf.peer.compute.client import ComputeClient
from crowdsurf.peer.compute.segments import Segment
from crowdsurf.peer.files import checked_target
from crowdsurf.peer.journal import read_journal
from crowdsurf.peer.keys import verify
from crowdsurf.peer.launch import load_manifest
from crowdsurf.peer.offline import Kept, mapped, state_digest, update_matches
from crowdsurf.protocol.assignment import ELEMENT_BYTES, part_ranges
from crowdsurf.protocol.chain import Chain
from crowdsurf.protocol.errors import Refusal, WorldError
from crowdsurf.protocol.ids import Digest, digest_text
from crowdsurf.protocol.manifest import Manifest, run_id_of
from crowdsurf.protocol.messages import Header
from crowdsurf.protocol.recovery import certificates_of


@dataclass(frozen=True, slots=True)
class Exported:
    """A model on disk; every field is documented in the README."""

    path: str
    name: str
    task: str
    run: str
    step: int
    """Certified steps the model has learned from."""
    certified_steps: int
    """Certified steps in the journal; more than `step` if the updates of the last ones are not kept here."""
    state_digest: str
    checked: bool
    """Whether certificates vouch for it. False for the last state of a run so short that nothing older is kept:
    then it is this peer's own word."""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


async def export_model(folder: Path, out: Path) -> Exported:
    """Rebuild the model at the last certified step and write its parameters as safetensors.

    Raises MisuseError if there is no run, WorldError if journal or files are damaged or missing.
    """
    manifest, out = load_manifest(folder), checked_target(out)
    with Kept(folder) as kept:
        headers = _headers(folder, manifest)
        client = ComputeClient()
        try:
            info = await client.start(manifest, "cpu")
            model = _Rebuild(client, kept, headers, info.vector_elements * ELEMENT_BYTES, info.state_bytes)
            step, name = await model.run()
            await client.export(out)
        finally:
            await client.close()
    return Exported(
        path=str(out),
        name=manifest.name,
        task=manifest.task.name,
        run=digest_text(run_id_of(manifest)),
        step=step,
        certified_steps=len(headers),
        state_digest=digest_text(name),
        checked=model.checked,
    )


def _headers(folder: Path, manifest: Manifest) -> list[Header]:
    """The certified headers of a journal, checked. Raises WorldError."""
    chain = Chain(manifest)
    headers: list[Header] = []
    try:
        for certificate in certificates_of(read_journal(folder)):
            chain.extend(certificate, verify)
            headers.append(certificate.header)
    except Refusal as refusal:
        raise WorldError(
            f"the journal in {folder} holds a step that is not valid ({refusal.detail}); see `crowdsurf verify`"
        ) from refusal
    return headers


class _Rebuild:
    """From the newest kept state that a certificate vouches for, update by update, to the present."""

    def __init__(
        self, client: ComputeClient, kept: Kept, headers: list[Header], vector_bytes: int, state_bytes: int
    ) -> None:
        self._client = client
        self._kept = kept
        self._headers = headers
        self._vector_bytes = vector_bytes
        self._state_bytes = state_bytes
        self.checked = True

    async def run(self) -> tuple[int, Digest]:
        """The step reached, and the state's digest. Raises WorldError."""
        step, name = await self._load()
        segment = Segment(self._vector_bytes)
        try:
            while step < len(self._headers) and step in self._kept.updates:
                name = await self._apply(step, segment)
                step += 1
                if step < len(self._headers) and self._headers[step].state != name:
                    raise WorldError(
                        f"this machine computes another state before step {step} than the swarm certified; "
                        "export on a machine like those of the swarm"
                    )
        finally:
            segment.close()
        if any(later >= step for later in self._kept.updates if later < len(self._headers)):
            raise WorldError(f"the update of step {step} is missing; start the peer once, so that it catches up")
        return step, name

    async def _load(self) -> tuple[int, Digest]:
        certified = [step for step in self._kept.states if step < len(self._headers)]
        for step in sorted(certified, reverse=True):
            if state_digest(self._kept.states[step]) == self._headers[step].state:
                return step, await self._load_state(self._kept.states[step])
        if self._headers and 0 not in self._kept.updates:
            return await self._load_last()
        name = await self._client.load_initial()
        if self._headers and self._headers[0].state != name:
            raise WorldError(
                "this machine makes another initial model than the swarm; export on a machine like its own"
            )
        return 0, name

    async def _load_last(self) -> tuple[int, Digest]:
        """The state after the last certified step, which no certificate names yet."""
        step = len(self._headers)
        if step not in self._kept.states:
            raise WorldError("no certified state of this run is kept here; start the peer once, so that it catches up")
        self.checked = False
        return step, await self._load_state(self._kept.states[step])

    async def _load_state(self, file: BinaryIO) -> Digest:
        segment = Segment(self._state_bytes)
        try:
            with mapped(file) as view:
                if len(view) != self._state_bytes:
                    raise WorldError(f"a state of this run has {self._state_bytes} bytes, the kept one {len(view)}")
                segment.view[:] = view
            return await self._client.load_state(segment, self._state_bytes)
        finally:
            segment.close()

    async def _apply(self, step: int, segment: Segment) -> Digest:
        header, file = self._headers[step], self._kept.updates[step]
        with mapped(file) as view:
            if len(view) != self._vector_bytes or not update_matches(file, header):
                raise WorldError(
                    f"the kept update of step {step} is damaged; start the peer once, so that it catches up"
                )
            segment.view[:] = view
        elements = self._vector_bytes // ELEMENT_BYTES
        ranges = part_ranges(elements, len(header.parts))
        void = [where for name, where in zip(header.parts, ranges, strict=True) if not name]
        return await self._client.apply(segment, void)
