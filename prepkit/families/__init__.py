"""The networks of the zoos: one file for each family, and one table of all networks (`prepkit.families.table`).

Every network has one forward. Weights come in from outside through `torch.func.functional_call`, for one network or
stacked for many. Modules are registered in the order in which forward runs them, because they are packed in the order
of registration. Importing this package does not import torch: a family is imported when one of its networks is built.
"""
