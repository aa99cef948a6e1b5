"""Views: what the learners of the field read, made from batches of PReps, and back.

    view = prepkit.views.tokens(zoo)              # or an architecture, its name, a network or a layout
    tokens = view(preps)                          # [N, H, W] -> [N, T, S]; view.mask [T, S], view.position [T, 3]
    preps = view.inverse(tokens)                  # the same PReps to the bit

| view | gives | for |
| --- | --- | --- |
| prep | `[N, H, W]`, the PReps themselves | NetSpace |
| flat | `[N, P]` in the order of the state dict | MLPs, autoencoders |
| layers | weights `[N, out, in, ...]` and biases `[N, out]` | nfn's WeightSpaceFeatures |
| tokens | `[N, T, S]`, one token for each output channel, with mask and position | SANE, transformers |
| graph | nodes `[N, V, F]` and edges `[N, E, K]`, residual sums found by running | graph networks |
| statistics | `[N, tensors, 7]`: mean, spread and five quantiles | the baseline of Unterthiner et al. |
| outputs | `[N, B, ...]`: what the networks answer on given inputs | probing |

A view is of one architecture and works on a whole batch at once, on any device and in any dtype. `zoo.loader(view=...)`
gives batches of it. `statistics` and `outputs` have no inverse; all others lose nothing.
"""

from prepkit.support.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
