"""Training on a Ray cluster (extra `ray`): each unit is one task, which is tried again if its worker is lost.

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
from prepkit.program import ENVIRONMENT
from prepkit.tasks.task import Task
from prepkit.training._engine import Engine
from prepkit.training._provenance import versions
from prepkit.training._units import FinishedUnit, Unit, train_unit

RETRIES = 3  # A unit whose worker or machine is lost is tried again so many times.
CONNECT_SECONDS = 10.0  # A cluster's port must answer within this time; Ray itself tries a dead address ten minutes.
AHEAD = 4  # So many units are queued for each that can run at once: workers never wait, and memory is bounded.


class WorkerLost(PrepkitError):
    """A unit's worker was lost each time that it was tried."""

    exit_code = 1


def on_ray(
    address: str, units: Sequence[Unit], task: Task, engine: Engine, gpus: float, advance: Callable[[float], None]
) -> Iterator[FinishedUnit]:
    """Train units on a cluster and yield them as they finish.

    address: address of the cluster; "auto" for the one that runs here, "local" to start one
    gpus:    share of a GPU that a unit takes, if the engine trains on GPUs
    advance: is called with the work of each unit that is finished
    raises ZooError if there is no such cluster or it has no room for a unit, WorkerLost, and what training raises
    """
    if not units:
        return
    with cluster(address) as ray:
        needs = resources_for(engine, gpus)
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
            finished = result(ray, ready, unit)
            advance(unit.work(task))
            yield finished


def train_remotely(unit: Unit, task: Task, engine: Engine, expected: dict[str, str]) -> FinishedUnit:
    """Train a unit on a worker; `expected` are the versions of packages in the process that sent it."""
    if versions() != expected:
        raise ZooError(f"a worker has {versions()}, here are {expected}; install the same there.")
    device = torch.device(engine.device)
    return train_unit(unit, task.to(device), engine, device)


@contextmanager
def roomy_cluster(address: str, engine: Engine, gpus: float) -> Iterator[None]:
    """Stay connected to a cluster that has room for a unit, so that a training begins only where it can be done.

    raises ZooError if Ray is not installed, there is no cluster, or no room in it
    """
    with cluster(address) as ray:
        check_room(ray.cluster_resources(), resources_for(engine, gpus), address)
        yield


@contextmanager
def cluster(address: str) -> Iterator[Any]:
    """Connect, and give the module `ray`; afterwards leave or stop the cluster that was joined or started here.

    raises ZooError if Ray is not installed or there is no cluster
    """
    try:
        import ray
    except ImportError:
        raise ZooError("training on Ray needs the extra: pip install 'prepkit[ray]'.") from None
    connected = ray.is_initialized()
    if not connected:
        try:
            check_reachable(address)
            # Ray's own messages would mix with our progress on the terminal; its errors come as exceptions.
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": environment_of_workers()},
            )
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            reason = (str(error).strip().splitlines() or ["no answer"])[0].rstrip(".")
            raise ZooError(
                f"no Ray cluster answers at '{address}': {reason}. Start one (`ray start --head`), or use `ray` local."
            ) from None
    try:
        yield ray
    finally:
        if not connected:
            ray.shutdown()


def environment_of_workers() -> dict[str, str]:
    """The settings of this process that its workers need too: those that a command line makes, or the user made."""
    return {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}


def check_reachable(address: str) -> None:
    """Raise OSError unless somebody listens at the address of a cluster; "auto" and "local" are left to Ray."""
    place = (os.environ.get("RAY_ADDRESS") or address) if address == "auto" else address
    host, _, port = place.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal() and int(port) < 2**16:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()


def resources_for(engine: Engine, gpus: float) -> dict[str, Any]:
    """The resources that a unit takes, as Ray names them."""
    if engine.device == "cuda":
        return {"num_gpus": gpus, "num_cpus": 1}
    return {"num_cpus": engine.threads or 1}


def check_room(resources: dict[str, float], needs: dict[str, Any], address: str) -> int:
    """How many units the cluster can train at once.

    raises ZooError if there is no room for one, as its task would wait for ever
    """
    has = {"num_cpus": resources.get("CPU", 0.0), "num_gpus": resources.get("GPU", 0.0)}
    room = min(int(has[name] / count) for name, count in needs.items() if count)
    if room < 1:
        taken = ", ".join(f"{count:g} {name.removeprefix('num_')}" for name, count in needs.items())
        there = ", ".join(f"{has[name]:g} {name.removeprefix('num_')}" for name in needs)
        raise ZooError(
            f"a unit takes {taken}, but the Ray cluster at '{address}' has {there}. Give fewer `threads`, a smaller "
            "share of a GPU with `gpus`, or another cluster."
        )
    return room


def result(ray: Any, ready: Any, unit: Unit) -> FinishedUnit:
    """The unit that a task returned.

    raises the task's own error if it failed, WorkerLost if it never ended
    """
    try:
        finished: FinishedUnit = ray.get(ready)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, Exception) else error
        raise cause from None
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError) as error:
        reason = str(error).strip().splitlines()[0]
        raise WorkerLost(
            f"{unit.jobs[0].run} and {counted(len(unit.jobs) - 1, 'other')}: the worker was lost {RETRIES + 1} times "
            f"({reason}). What is finished is kept; run the same command to go on."
        ) from None
    return finished
