"""Training units on the workers of a Ray cluster (extra `ray`): each is one task, and a lost worker's is tried again.

A worker trains exactly as this process would: the engine, with its number of threads, is sent along. Results come back
as units finish, in any order.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from prepkit.errors import PrepkitError, ZooError, counted
from prepkit.tasks.task import Task
from prepkit.training.engine import Engine
from prepkit.training.record import versions
from prepkit.training.units import Done, Unit, train_unit

RETRIES = 3  # of a unit whose worker or machine is lost
CONNECT_SECONDS = 10.0  # for a cluster's port to answer; Ray itself tries a dead address for ten minutes
AHEAD = 4  # units in line for each that can run at once: workers never wait, and the driver's memory is bounded


class WorkerLost(PrepkitError):
    """A unit's worker was lost each time that it was tried."""

    exit_code = 1


def on_ray(
    address: str, units: Sequence[Unit], task: Task, engine: Engine, gpus: float, tell: Callable[[float], None]
) -> Iterator[Done]:
    """Train units on a cluster and yield them as they finish.

    address: of the cluster; "auto" for the one that runs here, "local" to start one
    gpus:    share of a GPU a unit takes, where the engine is of a GPU
    tell:    called with the work of each unit that is finished
    raises ZooError if there is no such cluster or it has no room for a unit, WorkerLost, and what training raises
    """
    if not units:
        return
    with cluster(address) as ray:
        needs = needed(engine, gpus)
        room = check_room(ray.cluster_resources(), needs, address)
        train = ray.remote(**needs, max_retries=RETRIES)(train_remotely)
        shared = ray.put(task)
        waiting, running = list(units), dict[Any, Unit]()
        while waiting or running:
            while waiting and len(running) < AHEAD * room:
                unit = waiting.pop(0)
                running[train.remote(unit, shared, engine, versions())] = unit
            (ready,), _ = ray.wait(list(running), num_returns=1)
            unit = running.pop(ready)
            done = result(ray, ready, unit)
            tell(unit.work(task))
            yield done


def train_remotely(unit: Unit, task: Task, engine: Engine, expected: dict[str, str]) -> Done:
    """What a worker does."""
    if versions() != expected:
        raise ZooError(f"a worker has {versions()}, here are {expected}; install the same there.")
    device = torch.device(engine.device)
    return train_unit(unit, task.to(device), engine, device)


@contextmanager
def cluster(address: str) -> Iterator[Any]:
    """The module `ray`, connected; what was connected or started here is left or stopped afterwards.

    raises ZooError if Ray is not installed or there is no cluster
    """
    try:
        import ray
    except ImportError:
        raise ZooError("training on Ray needs the extra: pip install 'prepkit[ray]'.") from None
    connected = ray.is_initialized()
    if not connected:
        try:
            knock(address)
            # Only what we say ourselves is for the user's terminal: errors come as exceptions.
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            reason = (str(error).strip().splitlines() or ["no answer"])[0].rstrip(".")
            raise ZooError(
                f"no Ray cluster answers at '{address}': {reason}. Start one (`ray start --head`), or use --ray local."
            ) from None
    try:
        yield ray
    finally:
        if not connected:
            ray.shutdown()


def knock(address: str) -> None:
    """Raise OSError unless somebody listens where a cluster is said to be; of "auto" and "local" Ray itself knows."""
    place = (os.environ.get("RAY_ADDRESS") or address) if address == "auto" else address
    host, _, port = place.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal() and int(port) < 2**16:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()


def needed(engine: Engine, gpus: float) -> dict[str, Any]:
    """The resources that a unit takes."""
    if engine.device == "cuda":
        return {"num_gpus": gpus, "num_cpus": 1}
    return {"num_cpus": engine.threads or 1}


def check_room(resources: dict[str, float], needs: dict[str, Any], address: str) -> int:
    """How many units the cluster can train at once.

    raises ZooError if it is none: its tasks would wait for ever
    """
    has = {"num_cpus": resources.get("CPU", 0.0), "num_gpus": resources.get("GPU", 0.0)}
    room = min(int(has[name] / count) for name, count in needs.items() if count)
    if room < 1:
        told = ", ".join(f"{count:g} {name.removeprefix('num_')}" for name, count in needs.items())
        found = ", ".join(f"{has[name]:g} {name.removeprefix('num_')}" for name in needs)
        raise ZooError(
            f"a unit takes {told}, but the Ray cluster at '{address}' has {found}. Give fewer --threads, a smaller "
            "share of a GPU with --gpus, or another cluster."
        )
    return room


def result(ray: Any, ready: Any, unit: Unit) -> Done:
    """What a task returned.

    raises its error as it was, WorkerLost if it never came to an end
    """
    try:
        done: Done = ray.get(ready)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, Exception) else error
        raise cause from None
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError) as error:
        reason = str(error).strip().splitlines()[0]
        raise WorkerLost(
            f"{unit.jobs[0].run} and {counted(len(unit.jobs) - 1, 'other')}: the worker was lost {RETRIES + 1} times "
            f"({reason}). What is finished is kept; run the same command to go on."
        ) from None
    return done
