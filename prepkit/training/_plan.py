"""From a spec to its instances: one Job each, with all that is drawn for it.

Every draw is a function of the spec's seed, what is drawn, the architecture's ClassId and the instance's index, and of
nothing else: a trial run with fewer instances trains the first ones of the full zoo.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from prepkit.errors import ZooError, counted
from prepkit.tasks.randomness import SEED_BITS, stream_seed
from prepkit.training._hyperparameters import Training
from prepkit.training._start import FITTED, OWN
from prepkit.training.spec import Spec

SEEDS = 2**31
ATTEMPTS = 101  # The first attempt, and a hundred after divergence.
# STRIDE is odd, so that multiplying by it modulo SEEDS is one to one. It is near the golden ratio times SEEDS, so that
# seeds of neighbours differ in most of their bits.
STRIDE = 0x4F1BBCDD


@dataclass(frozen=True)
class Job:
    """One training run.

    index:       position among the jobs of its architecture, from 0
    split:       split of the zoo; None for the teacher
    seed:        0 <= seed < 2**31; no other job has it
    item:        number of its data set where each instance has its own (shapes), from 0; no other job has it
    run:         the run's name, such as "lenet_like-00012"
    kept_epochs: epochs after which weights are stored, ending with `epochs`; several only in a trajectory
    trajectory:  whether ids name the epoch
    start:       name of the weights that it begins with (prepkit.training._start); "own" are drawn by its seed
    """

    architecture: str
    index: int
    split: str | None
    seed: int
    item: int
    epochs: int
    learning_rate: float
    momentum: float
    weight_decay: float
    run: str
    kept_epochs: tuple[int, ...]
    trajectory: bool = False
    start: str = OWN

    @property
    def id(self) -> str:
        """The run's name: it is the id of the run's one row, and the ids of a trajectory begin with it."""
        return self.run

    def id_at(self, epoch: int) -> str:
        """The id of the row that holds the weights of an epoch; raises ValueError for one that is not stored."""
        if epoch not in self.kept_epochs:
            raise ValueError(f"{self.run}: epoch {epoch} is not stored, only {self.kept_epochs}")
        return f"{self.run}-e{epoch:04d}" if self.trajectory else self.run

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of all rows of this run, in the order of `kept_epochs`."""
        return tuple(self.id_at(epoch) for epoch in self.kept_epochs)

    def reseeded(self, attempt: int) -> Job:
        """The job with the seed of another attempt, which no attempt of another job has.

        attempt: how often the job has diverged; 0 gives the job itself
        raises ZooError after 100 attempts, as then the seed is not to blame
        """
        if not 0 <= attempt < ATTEMPTS:
            raise ZooError(
                f"{self.run}: diverged with {counted(attempt, 'seed')} at learning rate {self.learning_rate:g}; "
                "lower it."
            )
        return replace(self, seed=(self.seed + STRIDE * attempt) % SEEDS)


@dataclass(frozen=True)
class TrainingPlan:
    """All jobs of a zoo: architecture after architecture in ClassId order, by index; and the teacher's."""

    jobs: tuple[Job, ...]
    teacher: Job | None

    @cached_property
    def by_architecture(self) -> dict[str, tuple[Job, ...]]:
        """The jobs of each architecture that has any."""
        names = dict.fromkeys(job.architecture for job in self.jobs)
        return {name: tuple(job for job in self.jobs if job.architecture == name) for name in names}

    def stacks(self, size_of: Mapping[str, int]) -> tuple[tuple[Job, ...], ...]:
        """The jobs, without the teacher's, divided into stacks that are trained together.

        size_of: architecture -> how many instances a stack holds at most
        Instances with most epochs come first, so that those of a stack end at about the same time.
        """
        stacks: list[tuple[Job, ...]] = []
        for name, jobs in self.by_architecture.items():
            size = size_of[name]
            if size < 1:
                raise ValueError(f"{name}: a stack holds at least 1 instance, not {size}")
            longest = sorted(jobs, key=lambda job: (-job.epochs, job.index))
            stacks += [tuple(longest[start : start + size]) for start in range(0, len(longest), size)]
        return tuple(stacks)


def plan(spec: Spec) -> TrainingPlan:
    """The jobs that a spec describes.

    raises ZooError if there are more of them than seeds, or than data sets of their own
    """
    counts = {name: sum(spec.instances[name].values()) for name in spec.architectures if name in spec.instances}
    check_counts(spec, counts)
    prefixes = run_prefixes(spec.architectures)
    jobs: list[Job] = []
    for name, count in counts.items():
        splits, starts = dealt_splits(spec, name, count), dealt_starts(spec, name, count)
        for index, (epochs, split) in enumerate(zip(dealt_epochs(spec, name, count), splits, strict=True)):
            run = f"{prefixes[name]}-{index:05d}"
            made = job(spec, name, spec.training[name], index, split, len(jobs), epochs, run)
            jobs.append(replace(made, start=starts[index]))
    teacher = spec.teacher
    if teacher is None:
        return TrainingPlan(tuple(jobs), None)
    last = teacher.training.epochs.last
    taught = job(spec, teacher.architecture, teacher.training, 0, None, len(jobs), last, "teacher")
    return TrainingPlan(tuple(jobs), taught)


def job(
    spec: Spec, name: str, training: Training, index: int, split: str | None, item: int, epochs: int, run: str
) -> Job:
    """One job with all that is drawn for it."""
    return Job(
        architecture=name,
        index=index,
        split=split,
        seed=seed_of(spec, name, index, teacher=split is None),
        item=item,
        epochs=epochs,
        learning_rate=training.learning_rate.at(drawn(spec, "learning_rate", name, index)),
        momentum=training.momentum.at(drawn(spec, "momentum", name, index)),
        weight_decay=training.weight_decay.at(drawn(spec, "weight_decay", name, index)),
        run=run,
        kept_epochs=training.keep.epochs(epochs),
        trajectory=training.keep.every is not None,
    )


def fitting_job(spec: Spec, name: str, training: Training) -> Job:
    """The job of the one network that becomes the start of all instances of an architecture."""
    run = f"start-of-{run_prefixes(spec.architectures)[name]}"
    made = job(spec, name, training, 0, None, 0, training.epochs.last, run)
    return replace(made, seed=start_seed(spec, FITTED, name))


def start_seed(spec: Spec, start: str, name: str) -> int:
    """The seed of a start of an architecture; it depends on them and the spec's seed alone."""
    return stream_seed(f"plan, start {start}, {name}", spec.seed) % SEEDS


def drawn(spec: Spec, what: str, name: str, *numbers: int) -> float:
    """A number from 0 to below 1 that depends on the spec's seed, its purpose, the architecture and the numbers."""
    seed = stream_seed(f"plan, {what}, {name}", spec.seed, *numbers)
    return (seed >> (SEED_BITS - 53)) / 2**53  # A double holds 53 bits; more of them could round up to 1.


def seed_of(spec: Spec, name: str, index: int, teacher: bool) -> int:
    """The seed of a job's first attempt.

    All attempts of all jobs are numbered, the teacher's after those of the architectures, and the numbers permuted: no
    two attempts share a seed, and a job's seed does not depend on how many other jobs there are.
    """
    place = len(spec.architectures) if teacher else spec.architectures.index(name)
    first = ATTEMPTS * (index * (len(spec.architectures) + 1) + place)
    return (stream_seed("plan, seeds", spec.seed) + STRIDE * first) % SEEDS


def dealt_epochs(spec: Spec, name: str, count: int) -> list[int]:
    """The epochs of each instance: all candidates in a drawn order, then all of them in another order, and so on."""
    candidates = spec.training[name].epochs.candidates
    dealt: list[int] = []
    for turn in range(-(-count // len(candidates))):
        dealt += sorted(candidates, key=lambda epochs: (drawn(spec, "epochs", name, turn, epochs), epochs))
    return dealt[:count]


def dealt_starts(spec: Spec, name: str, count: int) -> list[str]:
    """The start of each instance: all starts in a drawn order, then all of them in another order, and so on."""
    names = spec.training[name].start.names
    dealt: list[str] = []
    for turn in range(-(-count // len(names))):
        order = sorted(range(len(names)), key=lambda number: (drawn(spec, "start", name, turn, number), number))
        dealt += [names[number] for number in order]
    return dealt[:count]


def dealt_splits(spec: Spec, name: str, count: int) -> list[str]:
    """The split of each instance, exactly as many of each as the spec says.

    Instances are ranked by epochs, and the ranks divided into as many equal parts as the split has members; each part
    gives one member. So every split has instances with few, some and many epochs.
    """
    epochs = dealt_epochs(spec, name, count)
    ranked = sorted(range(count), key=lambda index: (epochs[index], drawn(spec, "rank", name, index)))
    places = [
        ((member + drawn(spec, f"place in {split}", name, member)) / size, split)
        for split, size in spec.instances[name].items()
        for member in range(size)
    ]
    split_of = dict(zip(ranked, (split for _, split in sorted(places)), strict=True))
    return [split_of[index] for index in range(count)]


def run_prefixes(names: tuple[str, ...]) -> dict[str, str]:
    """How names of runs begin: with the architecture's name before the `@`, or all of it where two would be alike."""
    short = {name: name.partition("@")[0] for name in names}
    return short if len(set(short.values())) == len(names) else {name: name.replace("@", "-") for name in names}


def check_counts(spec: Spec, counts: Mapping[str, int]) -> None:
    """Raise ZooError if a spec has more instances than seeds, or than shapes."""
    most = SEEDS // ATTEMPTS // (len(spec.architectures) + 1)
    for name, count in counts.items():
        if count > most:
            raise ZooError(
                f"{spec.name}: {counted(count, 'instance')} of {name} are more than there are seeds for; use {most:,}."
            )
    shapes, total = spec.task.get("count"), sum(counts.values())
    if spec.task.get("kind") == "shapes" and shapes is not None and total > shapes:
        raise ZooError(
            f"{spec.name}: {counted(total, 'instance')}, but the task has {counted(shapes, 'shape')}; each fits one of "
            "its own."
        )
