# %% [markdown]
# # How well do weights tell the accuracy?
# A learner of one's own stands beside plain baselines, on a split that keeps runs together. The zoo is that of
# `python examples/digits_zoo.py digits-zoo`.

# %%
from pathlib import Path

import torch
from digits_zoo import make_zoo

import prepkit
from prepkit.benching.report import text_of, write_folder

if not Path("digits-zoo").exists():
    make_zoo("digits-zoo")


# %%
def nearest(train, validation, test):
    """Predict the accuracy of the nearest training instance."""
    known, asked = (part.zoo.preps().flatten(1) for part in (train, test))
    return train.target[torch.cdist(asked, known).argmin(1)]


# %%
baselines = ["statistics + ridge", "statistics + boosting", "flat + ridge"]
result = prepkit.bench("digits-zoo", "accuracy", learners={"nearest": nearest}, baselines=baselines)
print(text_of(result))
write_folder(result, Path("bench"), overwrite=True)
Path("bench/bench.png").replace("bench_zoo.png")
