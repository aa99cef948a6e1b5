"""train_zoo: from a spec to a finished zoo, on this machine or on many, resumable after a kill at any moment.

The plan says which jobs there are, the engine which of them make a unit, and the order of units is the order of the
zoo. Units may finish in any order: one that is early waits on the disk until its predecessors are there. So a zoo is
the same whoever trained which unit, and however often that was interrupted. Until the zoo is finished its working
folder holds
    training/record.json              what was begun (record.py)
    training/unit-<n>.safetensors     a unit on its way (units.py)
    training/done-<n>.safetensors     a finished one that waits (spool.py)
    training/told.jsonl               attempts that diverged, how the teacher turned out
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from prepkit.device import choose_device
from prepkit.errors import ZooError, counted
from prepkit.families.registry import Registry, architecture
from prepkit.progress import Progress
from prepkit.tasks import load_task
from prepkit.tasks.task import Task
from prepkit.training.engine import Engine, choose_engine
from prepkit.training.plan import Job, Plan, plan
from prepkit.training.record import Record, begun, check_engine, check_same, training_folder
from prepkit.training.spec import Spec, load_spec
from prepkit.training.spool import done_file, load_done, save_done
from prepkit.training.units import Done, Unit, train_unit, units_of
from prepkit.zoo.card.card import README, write_card
from prepkit.zoo.format.manifest import MANIFEST, read_manifest
from prepkit.zoo.write.writer import ZooWriter

Executor = Callable[[list[Unit]], Iterator[Done]]


@dataclass(frozen=True)
class Trained:
    """What `train_zoo` did.

    instances: in the zoo
    diverged:  attempts that were given up and replaced
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
    threads:   of the CPU a unit takes; torch's own number if missing
    data:      folder of the task's data, where the task needs one
    instances: of each architecture and split, for a trial run
    epochs:    at most so many, for a trial run
    ray:       address of a Ray cluster whose workers train, "auto" for the running one, "local" to start one here
    gpus:      share of a GPU a unit takes on Ray
    raises ZooError, RegistryError, InvalidShape or DeviceError for what cannot be used; DataMissing
    """
    loaded = spec if isinstance(spec, Spec) else load_spec(spec)
    loaded = loaded.with_sizes(instances, epochs)
    root = Path(path)
    if (root / MANIFEST).exists():
        if not (root / README).exists() and (read_manifest(root).provenance or {}).get("spec") == loaded.text:
            write_card(root)  # it was killed in between
        raise ZooError(f"'{root}' holds a finished zoo; name another folder.")
    record, where = begun(root), choose_device(device)
    if record is not None:
        check_same(record, loaded, None if device in (None, "auto") else where, root)
        where = where if where.type == record.engine.device else torch.device(record.engine.device)
    task = load_task(loaded.task, None if data is None else Path(data))
    check_fit(loaded, task)
    jobs = plan(loaded)
    engine = choose_engine(loaded, jobs, where, stack, threads)
    if record is not None:
        check_engine(record, engine, stack, threads, root)
        engine = record.engine
    record = record or Record.of(loaded, engine, where)
    with ZooWriter(
        root,
        width=loaded.width,
        height=loaded.height,
        name=loaded.name,
        registry=registry_of(loaded),
        task=task.record,
        license=loaded.license,
        provenance=record.provenance,
        resume=True,
    ) as writer:
        record.write(root)
        run = Run(writer, loaded, jobs, engine, progress or Progress())
        run.train(executor(task, engine, where, run, ray, gpus), task)
    write_card(root)
    return Trained(root, len(writer), len(run.told.diverged), engine)


class Run:
    """The training of one zoo: what is left, what is finished, and putting it in order."""

    def __init__(self, writer: ZooWriter, spec: Spec, jobs: Plan, engine: Engine, progress: Progress) -> None:
        self.writer, self.progress = writer, progress
        self.folder = training_folder(writer.root)
        self.told = Told(self.folder / "told.jsonl")
        units = units_of(spec, jobs, engine)
        self.of = sum(len(unit.ids) for unit in units)
        self.left = [unit for unit in units if not writer.finished_ids.issuperset(unit.ids)]
        self.teacher = teacher_unit(spec, jobs.teacher, len(units))

    def train(self, execute: Executor, task: Task) -> None:
        """Train what is left, and write it in the order of the zoo."""
        waiting = [unit for unit in self.left if done_file(self.folder, unit).exists()]
        due = [unit for unit in self.left if unit not in waiting]
        if self.teacher is not None and not self.writer.has_teacher:
            due.insert(0, self.teacher)
        self.progress.begin(sum(unit.work(task) for unit in due), text=self._finished)
        self._write_waiting()
        for done in execute(due):
            self._take(done)
        teacher = {} if self.told.teacher is None else {"teacher": self.told.teacher}
        self.writer.provenance |= {"diverged": self.told.diverged, **teacher}

    @property
    def _finished(self) -> str:
        return f"{len(self.writer)}/{counted(self.of, 'instance')}"

    def _take(self, done: Done) -> None:
        for gone in done.diverged:
            self.told.add({"diverged": asdict(gone)})
            self.progress.say(f"note: {gone.run} diverged with seed {gone.seed} after epoch {gone.epoch}: replaced.")
        if done.unit == self.teacher:
            columns = {name: values[0] for name, values in done.rows.columns.items() if name != "run"}
            self.told.add({"teacher": columns})
            tensors = {name: tensor[0] for name, tensor in done.rows.tensors.items()}
            self.writer.set_teacher(tensors, architecture(done.unit.architecture))
        elif done.unit == self.left[0]:
            self._write(done)
            self._write_waiting()
        else:
            save_done(done, self.folder)
        (self.folder / f"{done.unit.name}.safetensors").unlink(missing_ok=True)

    def _write_waiting(self) -> None:
        while self.left and (done := load_done(self.left[0], self.folder)):
            self._write(done)

    def _write(self, done: Done) -> None:
        rows = done.rows
        known = architecture(done.unit.architecture)
        self.writer.add_stack(rows.tensors, architecture=known, ids=rows.ids, split=rows.splits, **rows.columns)
        done_file(self.folder, done.unit).unlink(missing_ok=True)
        self.left.pop(0)
        accuracies = rows.columns.get("accuracy", [])
        last = f", accuracy {sum(accuracies) / len(accuracies):.3f} in the last stack" if accuracies else ""
        self.progress.advance(0.0, f"{self._finished}{last}")


class Told:
    """What only training knows, and the zoo or the bar tells later; appended to a file, which survives a kill.

    raises ZooError if the file is damaged
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        content = file.read_bytes() if file.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:  # a kill cut the last line; what follows must not be joined to it
            os.truncate(file, len(whole))
        try:
            self.entries: list[dict[str, Any]] = [json.loads(line) for line in whole.splitlines()]
        except ValueError as error:
            raise ZooError(f"{file}: is damaged: {error}. Delete '{file.parents[2]}' and train it again.") from None

    def add(self, entry: dict[str, Any]) -> None:
        """Keep an entry, once: a unit that was killed after it is trained, and tells it, again."""
        if entry not in self.entries:
            self.entries.append(entry)
            with open(self.file, "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    @property
    def diverged(self) -> list[dict[str, Any]]:
        """The attempts that were given up, in an order that does not depend on who was first."""
        gone = [entry["diverged"] for entry in self.entries if "diverged" in entry]
        return sorted(gone, key=lambda entry: (entry["run"], entry["epoch"], entry["seed"]))

    @property
    def teacher(self) -> dict[str, Any] | None:
        """The columns of the teacher; of the last one, as a kill may have come between telling and keeping it."""
        told = [entry["teacher"] for entry in self.entries if "teacher" in entry]
        return told[-1] if told else None


def executor(task: Task, engine: Engine, device: torch.device, run: Run, ray: str | None, gpus: float) -> Executor:
    """Who trains units: this process, one after another, or the workers of a Ray cluster."""
    if ray is not None:
        from prepkit.training.ray import on_ray

        return lambda units: on_ray(ray, units, task, engine, gpus, run.progress.advance)
    here = task.to(device)
    return lambda units: (train_unit(unit, here, engine, device, run.folder, run.progress.advance) for unit in units)


def teacher_unit(spec: Spec, job: Job | None, number: int) -> Unit | None:
    """The unit of the one network that is trained as a teacher."""
    return None if job is None or spec.teacher is None else Unit(number, (job,), spec.teacher.training)


def registry_of(spec: Spec) -> Registry:
    """The architectures of a spec with ClassIds in its order, and the teacher's without one."""
    class_ids = {name: class_id for class_id, name in enumerate(spec.architectures)}
    teacher = spec.teacher
    others = [] if teacher is None or teacher.architecture in class_ids else [architecture(teacher.architecture)]
    return Registry(map(architecture, spec.architectures), others, class_ids)


def check_fit(spec: Spec, task: Task) -> None:
    """Raise ZooError unless every network takes the task's inputs and gives an output for each of its classes."""
    names = [*spec.architectures, *([spec.teacher.architecture] if spec.teacher else [])]
    for name in names:
        known = architecture(name)
        if known.input_shape != task.input_shape:
            took, given = ("x".join(map(str, shape)) for shape in (known.input_shape, task.input_shape))
            raise ZooError(
                f"{spec.name}, architectures: {name} takes inputs of {took}, but those of the task are {given}."
            )
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            outputs = known.build().eval()(known.example_input(1)).shape[-1]
        if outputs != task.num_outputs:
            raise ZooError(
                f"{spec.name}, architectures: {name} has {outputs} outputs, but the task needs {task.num_outputs}."
            )
