"""The nodes of a Ray cluster: their numbers, and the first one, which decides for all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runed.errors import RunedError
from runed.extras import needed
from runed.jobs.nodes import Fingerprint, Node


class Shape:
    """The numbers of a cluster.

    Attributes:
        nodes: The nodes with processors for work.
        cpus: The processors that the work of one node counts for.
        gpus: The GPUs that it counts for.
        first: The id of the node that is asked first; "" if none is known.
    """

    def __init__(self, resources: Mapping[str, Mapping[str, float]]) -> None:
        workers = {name: node for name, node in resources.items() if node.get("CPU", 0) > 0} or {"": {"CPU": 1}}
        self.first = min(workers)
        self.nodes = len(workers)
        self.gpus = 1 if all(node.get("GPU", 0) >= 1 for node in workers.values()) else 0
        least = min(node["CPU"] for node in workers.values())
        cpus = min(1, least / 2) if self.gpus else max(least - 1, least / 2)
        self.cpus = int(cpus) if cpus >= 1 else cpus  # Ray takes fractions below 1 alone

    @classmethod
    def of_cluster(cls) -> Shape:
        """Read the numbers of the cluster that this program is connected to. Connect if it is not, as Ray Data does."""
        ray = of_ray("ray")
        if not ray.is_initialized():
            ray.init()
        return cls({node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]})


def ask(shape: Shape, node: Node, dimensions: int | None = None) -> Fingerprint:
    """Ask the first node for the fingerprint of its vectors.

    Args:
        shape: The cluster.
        node: Its daemon.
        dimensions: As for `Node.fingerprint`.

    Raises:
        RunedError: As for `Node.fingerprint`.
    """
    options: dict[str, Any] = {"num_cpus": 0, "num_gpus": shape.gpus}  # a cluster whose processors are all taken can be asked
    if shape.first:
        strategies = of_ray("ray.util.scheduling_strategies")
        options["scheduling_strategy"] = strategies.NodeAffinitySchedulingStrategy(shape.first, soft=True)
    (found,) = results_of([of_ray("ray").remote(**options)(_fingerprint_here).remote(node, dimensions)])
    assert isinstance(found, Fingerprint)
    return found


def results_of(references: list[Any]) -> list[Any]:
    """Return the results of tasks. An error of ours is raised as such, and not as an error of Ray about a task."""
    ray = of_ray("ray")
    try:
        results: list[Any] = ray.get(references)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, RunedError):
            raise error.cause from None
        raise
    return results


def of_ray(module: str) -> Any:  # noqa: ANN401 # Ray has no types that mypy sees
    """Return a module of Ray.

    Raises:
        SettingsError: It is not installed; the message tells how to install it.
    """
    return needed(module, "ray")


def _fingerprint_here(node: Node, dimensions: int | None) -> Fingerprint:
    return node.fingerprint(dimensions)
