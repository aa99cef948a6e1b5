"""train_zoo: from a spec to a finished zoo, on this machine or on many, resumable after a kill at any moment.

The plan says which jobs there are, the engine which of them make a unit, and the order of units is the order of the
zoo. Units may finish in any order: one that is early waits on the disk until its predecessors are there. So a zoo is
the same whoever trained which unit, and however often that was interrupted. Until the zoo is finished its working
folder holds
    training/record.json              spec, sizes and engine of the training (provenance.py)
    training/unit-<n>.safetensors     the state of a unit that is being trained (units.py)
    training/done-<n>.safetensors     a finished unit that waits (spool.py)
    training/done-<n>.safetensors     a start that was fitted, as well
    training/told.jsonl               facts known only while training: attempts that diverged, the teacher's accuracy
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from prepkit.errors import ZooError, counted
from prepkit.families.registry import Registry, architecture
from prepkit.fusion.fold import note_on_costs
from prepkit.support.device import choose_device, hardware
from prepkit.support.logs import logger
from prepkit.support.progress import Progress
from prepkit.support.text import Brief
from prepkit.tasks import load_task
from prepkit.tasks.task import Task
from prepkit.training._engine import Engine, choose_engine
from prepkit.training._fit import check_fit
from prepkit.training._plan import Job, TrainingPlan, plan
from prepkit.training._provenance import (
    Provenance,
    check_engine,
    check_same_training,
    check_starts,
    read_provenance,
    training_folder,
)
from prepkit.training._spool import done_file, load_done, load_start, save_done
from prepkit.training._start import FITTED
from prepkit.training._start_tensors import Starts, facts_of, starts_of
from prepkit.training._trial import with_ways
from prepkit.training._units import FinishedUnit, Unit, fits_of, train_unit, units_of
from prepkit.training.spec import Spec, load_spec
from prepkit.zoo.card.card import README, write_card
from prepkit.zoo.format.manifest import MANIFEST, read_manifest
from prepkit.zoo.write.writer import ZooWriter

LOG = logger(__name__)
REMEDY = "The table has the scores of the rounded networks."
Executor = Callable[[list[Unit]], Iterator[FinishedUnit]]


@dataclass(frozen=True, repr=False)
class Trained(Brief):
    """What `train_zoo` did.

    instances: number of instances in the zoo
    diverged:  number of attempts that were given up and replaced
    """

    path: Path
    instances: int
    diverged: int
    engine: Engine


def train_zoo(
    spec: Spec | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    device: str | None = None,
    stack: int | None = None,
    threads: int | None = None,
    data: str | os.PathLike[str] | None = None,
    instances: int | None = None,
    epochs: int | None = None,
    ray: str | None = None,
    gpus: float = 1.0,
    progress: Progress | None = None,
) -> Trained:
    """Train all instances of a spec into a zoo; an interrupted training of the same spec goes on.

    spec:      a Spec, the name of a built-in one, or the path of a TOML file
    path:      the zoo's folder: new, empty, or of this training when it was interrupted
    device:    "cpu", "cuda", "cuda:1" or "mps"; None and "auto" are a GPU if there is one
    stack:     instances trained at once, in place of the choice that is made for the device
    threads:   CPU threads of a unit; torch's own number if missing
    data:      folder of the task's data, where the task needs one
    instances: number of instances of each architecture and split, for a trial run
    epochs:    largest number of epochs, for a trial run
    ray:       address of a Ray cluster whose workers train, "auto" for the running one, "local" to start one here
    gpus:      share of a GPU a unit takes on Ray
    raises ZooError, RegistryError, InvalidShape or DeviceError for what cannot be used; DataMissing
    """
    if not isinstance(path, str | os.PathLike):
        raise ZooError(f"path: expected the folder of the zoo; found a {type(path).__name__}.")
    loaded = spec if isinstance(spec, Spec) else load_spec(spec)
    loaded = loaded.with_sizes(instances, epochs)
    root = Path(path)
    if (root / MANIFEST).exists():
        if not (root / README).exists() and (read_manifest(root).provenance or {}).get("spec") == loaded.text:
            write_card(root)  # A kill came between the zoo and its card.
        raise ZooError(f"'{root}' holds a finished zoo; name another folder.")
    provenance, where = read_provenance(root), choose_device(device)
    if provenance is not None:
        check_same_training(provenance, loaded, None if device in (None, "auto") else where, root)
        where = where if where.type == provenance.engine.device else torch.device(provenance.engine.device)
    task = load_task(loaded.task, None if data is None else Path(data))
    check_fit(loaded, task)
    jobs = plan(loaded)
    starts = starts_of(loaded)
    facts = facts_of(loaded, starts)
    engine = choose_engine(loaded, jobs, where, stack, threads)
    if provenance is not None:
        check_engine(provenance, engine, stack, threads, root)
        check_starts(provenance, facts, root)
        engine = provenance.engine
    elif ray is None:
        engine = tried(engine, loaded, jobs, task, where, progress or Progress())
    stacks = ", ".join(f"{counted(size, 'instance')} of {name}" for name, size in engine.stacks.items())
    LOG.info("training '%s' on %s, at once %s", loaded.name, hardware(where), stacks)
    provenance = provenance or Provenance.of(loaded, engine, where, facts)
    with (
        workers_of(ray, engine, gpus),
        ZooWriter(
            root,
            width=loaded.width,
            height=loaded.height,
            name=loaded.name,
            registry=registry_of(loaded),
            task=task.record,
            license=loaded.license,
            provenance=provenance.to_dict(),
            resume=True,
        ) as writer,
    ):
        provenance.write(root)
        training = ZooTraining(writer, loaded, jobs, engine, progress or Progress(), starts)
        training.train(executor(task, engine, where, training, ray, gpus), task)
    write_card(root)
    return Trained(root, len(writer), len(training.log.diverged), engine)


def tried(
    engine: Engine, spec: Spec, jobs: TrainingPlan, task: Task, device: torch.device, progress: Progress
) -> Engine:
    """The engine with ways to share a GPU that were found by timing; unchanged on another device."""
    return with_ways(engine, spec, jobs, task.to(device), device, progress.say) if device.type == "cuda" else engine


class ZooTraining:
    """Has the units of one zoo trained, and writes them in the zoo's order.

    left:   units that are not in the zoo yet
    starts: tensors that instances begin with, by architecture and name of the start
    """

    def __init__(
        self,
        writer: ZooWriter,
        spec: Spec,
        jobs: TrainingPlan,
        engine: Engine,
        progress: Progress,
        starts: Starts | None = None,
    ) -> None:
        self.writer, self.progress, self.spec, self.jobs = writer, progress, spec, jobs
        self.folder = training_folder(writer.root)
        self.log = TrainingLog(self.folder / "told.jsonl")
        units = units_of(spec, jobs, engine)
        self.instances = sum(len(unit.ids) for unit in units)
        self.left = [unit for unit in units if not writer.finished_ids.issuperset(unit.ids)]
        self.teacher = teacher_unit(spec, jobs.teacher, len(units))
        self.first_fit = len(units) + 1
        self.starts = dict(starts or {})

    def train(self, execute: Executor, task: Task) -> None:
        """Train the units that are left, after the starts that they need, and write them in the order of the zoo."""
        waiting = [unit for unit in self.left if done_file(self.folder, unit).exists()]
        due = [unit for unit in self.left if unit not in waiting]
        teacher = [self.teacher] if self.teacher is not None and not self.writer.has_teacher else []
        fits = fits_of(self.spec, self.jobs, task, self.first_fit)
        unfitted = [unit for unit in fits if not done_file(self.folder, unit).exists()]
        text = "a start is fitted to all training instances" if unfitted else self._finished
        self.progress.begin(sum(unit.work(task) for unit in (*unfitted, *teacher, *due)), text=text)
        for finished in execute(unfitted) if unfitted else ():
            self._tell(finished)
            self._keep(finished)
        self.progress.advance(0.0, self._finished)
        self.starts |= {unit.architecture.name: {FITTED: load_start(unit, self.folder)} for unit in fits}
        self._write_waiting()
        ready = [replace(unit, starts=self.starts.get(unit.architecture.name, {})) for unit in due]
        for finished in execute([*teacher, *ready]):
            self._take(finished)
        about = {"teacher": self.log.teacher, "starts": facts_of(self.spec, self.starts)}
        self.writer.provenance |= {"diverged": self.log.diverged, **{key: what for key, what in about.items() if what}}

    @property
    def _finished(self) -> str:
        return f"{len(self.writer)}/{counted(self.instances, 'instance')}"

    def _tell(self, finished: FinishedUnit) -> None:
        for attempt in finished.diverged:
            self.log.add({"diverged": asdict(attempt)})
            place = f"with seed {attempt.seed} after epoch {attempt.epoch}"
            self.progress.say(f"note: {attempt.run} diverged {place}: replaced.")
        for note in note_on_costs(finished.rows.costs, "instance", remedy=REMEDY):
            self.progress.say(f"note: {note}")

    def _take(self, finished: FinishedUnit) -> None:
        unit, rows = finished.unit, finished.rows
        self._tell(finished)
        if unit == self.teacher:
            self.log.add({"teacher": {name: values[0] for name, values in rows.columns.items() if name != "run"}})
            self.writer.set_teacher({name: tensor[0] for name, tensor in rows.tensors.items()}, unit.architecture)
        elif unit == self.left[0]:
            self._write(finished)
            self._write_waiting()
        else:
            self._keep(finished)
        self._state_of(unit).unlink(missing_ok=True)

    def _keep(self, finished: FinishedUnit) -> None:
        save_done(finished, self.folder)
        self._state_of(finished.unit).unlink(missing_ok=True)

    def _state_of(self, unit: Unit) -> Path:
        return self.folder / f"{unit.name}.safetensors"

    def _write_waiting(self) -> None:
        while self.left and (finished := load_done(self.left[0], self.folder)):
            self._write(finished)

    def _write(self, finished: FinishedUnit) -> None:
        unit, rows = finished.unit, finished.rows
        ids, splits = rows.ids, rows.splits
        LOG.debug("writing unit %s: %s of %s", unit.name, counted(len(ids), "instance"), unit.architecture.name)
        self.writer.add_stack(rows.tensors, architecture=unit.architecture, ids=ids, split=splits, **rows.columns)
        done_file(self.folder, unit).unlink(missing_ok=True)
        self.left.pop(0)
        accuracies = rows.columns.get("accuracy", [])
        last = f", accuracy {sum(accuracies) / len(accuracies):.3f} in the last stack" if accuracies else ""
        self.progress.advance(0.0, f"{self._finished}{last}")


class TrainingLog:
    """Facts known only while training, appended to a file so that they survive a kill.

    raises ZooError if the file is damaged
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        content = file.read_bytes() if file.exists() else b""
        complete = content[: content.rfind(b"\n") + 1]
        if complete != content:  # A kill cut the last line; what follows must not be joined to it.
            os.truncate(file, len(complete))
        try:
            self.entries: list[dict[str, Any]] = [json.loads(line) for line in complete.splitlines()]
        except ValueError as error:
            raise ZooError(f"{file}: is damaged: {error}. Delete '{file.parents[2]}' and train it again.") from None

    def add(self, entry: dict[str, Any]) -> None:
        """Append an entry, unless it is there: a unit that was killed after its entry is trained again."""
        if entry not in self.entries:
            self.entries.append(entry)
            with open(self.file, "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    @property
    def diverged(self) -> list[dict[str, Any]]:
        """The attempts that were given up, in an order that does not depend on who finished first."""
        attempts = [entry["diverged"] for entry in self.entries if "diverged" in entry]
        return sorted(attempts, key=lambda entry: (entry["run"], entry["epoch"], entry["seed"]))

    @property
    def teacher(self) -> dict[str, Any] | None:
        """The columns of the teacher; those that were added last, as a kill may have had it trained twice."""
        teachers = [entry["teacher"] for entry in self.entries if "teacher" in entry]
        return teachers[-1] if teachers else None


def executor(
    task: Task, engine: Engine, device: torch.device, training: ZooTraining, ray: str | None, gpus: float
) -> Executor:
    """The function that trains units: in this process, one after another, or on the workers of a Ray cluster."""
    advance = training.progress.advance
    if ray is not None:
        from prepkit.training._ray import on_ray

        return lambda units: on_ray(ray, units, task, engine, gpus, advance)
    here = task.to(device)
    return lambda units: (train_unit(unit, here, engine, device, training.folder, advance) for unit in units)


def workers_of(ray: str | None, engine: Engine, gpus: float) -> AbstractContextManager[None]:
    """A connection to the Ray cluster, where there is one; what it lacks is told before anything is written."""
    if ray is None:
        return nullcontext()
    from prepkit.training._ray import roomy_cluster

    return roomy_cluster(ray, engine, gpus)


def teacher_unit(spec: Spec, job: Job | None, number: int) -> Unit | None:
    """The unit of the one network that is trained as a teacher."""
    if job is None or spec.teacher is None:
        return None
    return Unit(number, architecture(job.architecture), (job,), spec.teacher.training)


def registry_of(spec: Spec) -> Registry:
    """The architectures of a spec with ClassIds in its order, and the teacher's without one."""
    class_ids = {name: class_id for class_id, name in enumerate(spec.architectures)}
    teacher = spec.teacher
    others = [] if teacher is None or teacher.architecture in class_ids else [architecture(teacher.architecture)]
    return Registry(map(architecture, spec.architectures), others, class_ids)
