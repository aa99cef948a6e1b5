"""Plans: every instance once, with a seed of its own at every attempt, splits exact and epochs spread over them."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spec_samples import spec, trained

from prepkit.errors import ZooError
from prepkit.training import _plan as planning
from prepkit.training._plan import ATTEMPTS, SEEDS, plan
from prepkit.training._values import Range
from prepkit.training.spec import load_spec

SPREAD = 'learning_rate = {low = 1e-4, high = 1e-1, scale = "log"}\nmomentum = {low = 0.8, high = 0.9}'


def resized(**counts):
    """The sample spec with other numbers of instances: lenet=(train, validation, test)."""
    names = {"lenet": '"lenet_like@digits"', "resnet": '"resnet8@digits"'}
    old = {
        "lenet": "{train = 4, validation = 3, test = 2}",
        "resnet": "{train = 5, test = 2}",
    }
    changes = []
    for key, sizes in counts.items():
        pairs = zip(("train", "validation", "test"), sizes, strict=True)
        table = ", ".join(f"{split} = {size}" for split, size in pairs if size)
        changes.append((f"{names[key]} = {old[key]}", f"{names[key]} = {{{table}}}"))
    return spec(*changes)


# Jobs ---------------------------------------------------------------------------------------------------------


def test_jobs_come_by_class_id_and_index_with_their_names():
    jobs = plan(spec()).jobs
    assert [job.id for job in jobs[:2]] == ["lenet_like-00000", "lenet_like-00001"]
    assert [(job.architecture, job.index) for job in jobs] == [
        *(("lenet_like@digits", index) for index in range(9)),
        *(("resnet8@digits", index) for index in range(7)),
    ]
    assert [job.item for job in jobs] == list(range(16))
    assert len({job.id for job in jobs}) == 16


def test_runs_have_their_datasets_name_where_two_would_be_alike():
    assert planning.run_prefixes(("a@x", "b@x")) == {"a@x": "a", "b@x": "b"}
    assert planning.run_prefixes(("a@x", "a@y")) == {"a@x": "a-x", "a@y": "a-y"}


def test_the_teacher_is_a_job_beside_the_others():
    found = plan(spec())
    teacher = found.teacher
    assert (teacher.architecture, teacher.id, teacher.split) == ("resnet20@digits", "teacher", None)
    assert (teacher.epochs, teacher.learning_rate, teacher.kept_epochs) == (12, 0.1, (12,))
    assert teacher.seed not in {job.seed for job in found.jobs}
    assert plan(load_spec("chairs_mini")).teacher is None


def test_each_architecture_has_its_own_training():
    jobs = plan(spec()).by_architecture
    assert {job.epochs for job in jobs["lenet_like@digits"]} == {30}
    assert {job.epochs for job in jobs["resnet8@digits"]} == {2, 3, 4}


def test_a_plan_is_the_same_whatever_the_order_of_the_tables():
    resnets, lenets = '"resnet8@digits" = {train = 5, test = 2}\n', "{train = 4, validation = 3, test = 2}\n"
    swapped = spec((resnets, ""), (lenets, "{test = 2, validation = 3, train = 4}\n" + resnets))
    assert plan(swapped) == plan(spec())
    assert plan(replace(spec(), instances=dict(reversed(spec().instances.items())))) == plan(spec())


def test_a_plan_stays_what_it_was():
    """A zoo that was trained with an earlier version goes on with the same seeds, splits and learning rates."""
    job = plan(trained(SPREAD)).jobs[4]
    found = (job.seed, job.split, round(job.learning_rate, 9), round(job.momentum, 9))
    assert found == FROZEN


FROZEN = (1752836004, "validation", 0.000117786, 0.857851719)


def test_another_seed_gives_other_draws():
    changed = spec(("seed = 3\n", "seed = 4\n"))
    for old, new in zip(plan(spec()).jobs, plan(changed).jobs, strict=True):
        assert old.seed != new.seed
    assert [job.split for job in plan(spec()).jobs] != [job.split for job in plan(changed).jobs]
    assert planning.dealt_epochs(spec(), "resnet8@digits", 30) != planning.dealt_epochs(changed, "resnet8@digits", 30)


def test_a_trial_run_trains_the_first_instances_of_the_whole_zoo():
    whole = {job.id: job for job in plan(trained(SPREAD)).jobs}
    trial = plan(trained(SPREAD).with_sizes(instances=1)).jobs
    assert len(trial) == 5
    for job in trial:
        same = ("seed", "epochs", "learning_rate", "momentum", "weight_decay")
        assert [getattr(job, key) for key in same] == [getattr(whole[job.id], key) for key in same]


# Seeds --------------------------------------------------------------------------------------------------------


def all_seeds(found):
    return [job.reseeded(attempt).seed for job in [*found.jobs, found.teacher] for attempt in range(ATTEMPTS)]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**40), st.integers(1, 40), st.integers(1, 40))
def test_no_two_jobs_ever_have_the_same_seed(seed, lenets, resnets):
    sizes = {"lenet": (lenets, 2, 0), "resnet": (resnets, 0, 1)}
    base = resized(**sizes)
    found = all_seeds(plan(replace(base, seed=seed)))
    assert len(set(found)) == len(found) == (lenets + resnets + 4) * ATTEMPTS
    assert all(type(number) is int and 0 <= number < SEEDS for number in found)


def test_the_largest_paper_zoo_has_no_seed_twice():
    found = all_seeds(plan(load_spec("cifar10_multi")))
    assert len(set(found)) == len(found) == 399 * 101


def test_a_reseeded_job_is_the_same_but_for_its_seed():
    job = plan(spec()).jobs[0]
    assert job.reseeded(0) == job
    assert replace(job.reseeded(1), seed=job.seed) == job
    assert job.reseeded(1).seed != job.seed
    assert job.reseeded(1).reseeded(2) == job.reseeded(3)


@pytest.mark.parametrize("attempt", [-1, 101])
def test_after_a_hundred_attempts_it_is_not_the_seed(attempt):
    with pytest.raises(ZooError, match=r"lenet_like-00000: diverged with -?\d+ seeds at learning rate 0.05; lower it"):
        plan(spec()).jobs[0].reseeded(attempt)


def test_more_instances_than_seeds():
    with pytest.raises(
        ZooError, match="9,000,000 instances of lenet_like@digits are more than there are seeds for; use 5,315,553"
    ):
        plan(spec(("{train = 4, validation = 3, test = 2}", "{train = 9_000_000}")))


def test_more_instances_than_shapes():
    with pytest.raises(
        ZooError, match="chairs_mini: 200 instances, but the task has 144 shapes; each fits one of its own"
    ):
        plan(load_spec("chairs_mini").with_sizes(instances=100))


# Splits and epochs --------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.tuples(*[st.integers(0, 30)] * 3).filter(any), st.tuples(*[st.integers(0, 30)] * 3).filter(any))
def test_splits_hold_exactly_what_the_spec_says(lenets, resnets):
    found = plan(resized(lenet=lenets, resnet=resnets))
    for jobs, sizes in zip(found.by_architecture.values(), (lenets, resnets), strict=True):
        counts = Counter(job.split for job in jobs)
        assert [counts[split] for split in ("train", "validation", "test")] == list(sizes)


def test_every_split_has_instances_of_few_some_and_many_epochs():
    jobs = sorted(plan(load_spec("cifar10_single")).jobs, key=lambda job: job.epochs)
    quarters = [Counter(job.split for job in jobs[start : start + 33]) for start in range(0, 132, 33)]
    for split, most in (("validation", 5), ("test", 5), ("train", 27)):
        assert sum(quarter[split] for quarter in quarters) in (16, 100)
        assert all(most - 2 <= quarter[split] <= most for quarter in quarters)
    assert [job.split for job in plan(load_spec("cifar10_single")).jobs] != [job.split for job in jobs]


def test_splits_are_drawn_where_all_have_the_same_epochs():
    splits = [job.split for job in plan(load_spec("digits_multi")).by_architecture["resnet8@digits"]]
    assert splits != sorted(splits)
    assert splits != sorted(splits, reverse=True)


def test_no_number_of_epochs_is_dealt_twice_before_all_are():
    dealt = planning.dealt_epochs(spec(), "resnet8@digits", 8)
    assert sorted(dealt[:3]) == sorted(dealt[3:6]) == [2, 3, 4]
    assert dealt[6] != dealt[7]
    dense = planning.dealt_epochs(load_spec("digits_single"), "resnet8@digits", 54)
    assert sorted(dense[:27]) == sorted(dense[27:])
    assert dense[:27] != dense[27:]  # each time in another order
    assert len({job.epochs for job in plan(load_spec("cifar10_single")).jobs}) == 132  # out of 186


# Draws --------------------------------------------------------------------------------------------------------


def test_hyper_parameters_are_drawn_for_each_instance_within_their_range():
    jobs = plan(trained(SPREAD).with_sizes(instances=200)).by_architecture["lenet_like@digits"]
    rates, momenta = [job.learning_rate for job in jobs], [job.momentum for job in jobs]
    assert len(set(rates)) == len(set(momenta)) == 600
    assert all(1e-4 <= rate <= 1e-1 for rate in rates)
    assert all(0.8 <= momentum <= 0.9 for momentum in momenta)
    for low, high in ((1e-4, 1e-3), (1e-3, 1e-2), (1e-2, 1e-1)):  # each decade of a log scale has a third
        assert sum(low <= rate < high for rate in rates) == pytest.approx(200, abs=50)
    assert sum(momentum < 0.85 for momentum in momenta) == pytest.approx(300, abs=60)
    assert all(job.weight_decay == 0.0 for job in jobs)


def test_the_ends_of_a_range():
    assert Range(0.05, 0.05, "log").at(0.7) == 0.05
    assert Range(1.0, 3.0).at(0.25) == 1.5
    assert Range(1e-4, 1e-2, "log").at(0.5) == pytest.approx(1e-3)


# Trajectories -------------------------------------------------------------------------------------------------


def test_a_trajectory_keeps_every_so_many_epochs_and_the_last():
    found = plan(trained("keep = {every = 10}\nepochs = 25"))
    job = found.jobs[0]
    assert job.kept_epochs == (10, 20, 25)
    assert job.ids == ("lenet_like-00000-e0010", "lenet_like-00000-e0020", "lenet_like-00000-e0025")
    assert (job.run, job.id) == ("lenet_like-00000", "lenet_like-00000")
    assert found.teacher.ids == ("teacher",)
    assert plan(trained("keep = {every = 10}\nepochs = 20")).jobs[0].kept_epochs == (10, 20)


def test_ids_of_a_trajectory_name_the_epoch_even_if_it_is_the_only_one():
    job = plan(trained("keep = {every = 10}\nepochs = 5")).jobs[0]
    assert job.ids == ("lenet_like-00000-e0005",)


def test_without_a_trajectory_the_one_row_has_the_runs_name():
    job = plan(spec()).jobs[0]
    assert (job.kept_epochs, job.ids) == ((30,), ("lenet_like-00000",))
    with pytest.raises(ValueError, match="epoch 29 is not stored"):
        job.id_at(29)


# Stacks -------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.integers(1, 12))
def test_stacks_hold_each_job_once_sorted_by_epochs(lenets, resnets, of_lenets, of_resnets):
    found = plan(resized(lenet=(lenets, 0, 0), resnet=(resnets, 0, 0)))
    sizes = {"lenet_like@digits": of_lenets, "resnet8@digits": of_resnets}
    stacks = found.stacks(sizes)
    assert Counter(job.id for stack in stacks for job in stack) == Counter(job.id for job in found.jobs)
    assert len(stacks) == -(-lenets // of_lenets) + -(-resnets // of_resnets)  # as few as there can be
    for stack in stacks:
        assert len({job.architecture for job in stack}) == 1
        assert 1 <= len(stack) <= sizes[stack[0].architecture]
    for name in sizes:
        epochs = [job.epochs for stack in stacks for job in stack if job.architecture == name]
        assert epochs == sorted(epochs, reverse=True)
    assert found.stacks(sizes) == stacks


def test_a_stack_of_none():
    with pytest.raises(ValueError, match="resnet8@digits: a stack holds at least 1 instance, not 0"):
        plan(spec()).stacks({"lenet_like@digits": 4, "resnet8@digits": 0})
