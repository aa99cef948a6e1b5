"""The networks of the zoos: one file a family, all of them in one table (`prepkit.families.table`).

Every network has one forward. Weights come in from outside through `torch.func.functional_call`, alone or stacked
under `torch.func.vmap`. Modules are registered in the order in which forward runs them, because registration order
is packing order. Importing this package does not import torch: a family is imported when one of it is built.
"""
