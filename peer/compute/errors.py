"""What the compute side can answer besides a result, in words the daemon understands.

The idea: the worker is another process, so an error crosses a socket as a name and a sentence; only the
names listed here cross, everything else is a dead worker.
"""

from __future__ import annotations

from crowdsurf.protocol.errors import CrowdsurfError, MisuseError, WorldError


class WorkerDied(WorldError):
    """The worker process is gone (crash, out of memory, killed). `ComputeClient.restart` starts a new one, at the
    run's initial state: the daemon then loads the state it has kept."""


class WorkFailed(WorldError):
    """A command could not be carried out (the gradient is not finite); the worker lives and its state is unchanged."""


class WorkCancelled(CrowdsurfError):
    """`cancel_work` stopped this work command before it was finished."""


class StateForgotten(CrowdsurfError):
    """A work unit was to be computed again at a state this worker does not have: it is too long ago, or the worker
    has loaded a state since. The audit is for others to make."""


class NoUsableRows(CrowdsurfError):
    """Every row given to an aggregation rule was excluded, so there is nothing to aggregate: the part is void."""


BY_NAME: dict[str, type[CrowdsurfError]] = {
    kind.__name__: kind
    for kind in (MisuseError, WorldError, WorkerDied, WorkFailed, WorkCancelled, StateForgotten, NoUsableRows)
}
"""The errors that cross from the worker to the daemon."""


def name_of(error: CrowdsurfError) -> str:
    """The name under which an error crosses: its own or its nearest listed base's, else WorkFailed."""
    for kind in type(error).__mro__:
        if kind.__name__ in BY_NAME:
            return kind.__name__
    return WorkFailed.__name__
