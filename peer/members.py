"""Who belongs to the run: one container that everything which has to choose between peers is given.

The idea: identities cost nothing, places on the roster do. So what strangers can use up is kept apart from what members
need: the transport keeps room for their streams, the fetch server for their questions. As with `Bans`, nobody has to be
told when the roster changes.
"""

from __future__ import annotations

from crowdsurf.protocol.node import Node


class Members:
    """The members of a run, resting ones included, as far as the node knows: `peer in members`."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def __contains__(self, peer: object) -> bool:
        roster = self._node.chain.head.roster
        return peer in roster.indexes or peer in roster.rests
