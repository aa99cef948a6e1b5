"""Two experiments that take no time: one with a name that would break a page, and one that cannot be made."""

import math

from netspace.experiments.result import Result, Table, claim
from prepkit.errors import PrepkitError
from prepkit.figures import new_figure

NASTY = "<script>document.title = 'taken'</script> & \"quoted\" | bar"
ROWS = (("b", 10, None), ("a", 9.5, True), ("c", 100, False), ("d", None, True))
LINES = [
    {"step": 10, "loss": 2.0, "kd": 1.5, "gradient_norm": 3.0, "learning_rate": 1e-3, "instances_per_second": 40.0},
    {"step": 10, "validation": {"score": -0.5, "mean_difference": 0.5, "odd": math.nan}, "best": True},
    {"step": 15, "loss": 1.0, "kd": 0.5, "gradient_norm": 2.0, "learning_rate": 1e-3, "instances_per_second": 80.0},
]


def accuracy(subject):
    """An experiment whose number follows the run's seed, with a name that would break a page."""
    figure = new_figure(3, 2)
    figure.subplots().plot([0, 1], [0, 1])
    found = 0.9 + 0.03 * subject.run.recipe.training.seed
    return Result(
        "accuracy",
        f"Accuracy {NASTY}",
        f"Words in `code` and {NASTY}\n\nA second paragraph.",
        {"accuracy": found, "nasty": NASTY},
        [
            claim("Accuracy", found, ">=", 0.92, short="the accuracy of unseen instances"),
            claim(NASTY, math.nan, "<=", 1),
            claim("A question", 0.5, ">=", 0.25, kind="beyond", unit="%"),
            claim("A check", 0, "==", 0, kind="check"),
        ],
        [Table("Instances", ("name", "value", "flag"), ROWS)],
        [subject.picture("Curves", "accuracy.png", figure)],
    )


def broken(subject):
    raise PrepkitError(f"cannot be: {NASTY}")


FUNCTIONS = {"accuracy": accuracy, "identity": broken}
