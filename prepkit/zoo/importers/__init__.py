"""Importers: zoos that stand on a disk in the layouts of others become zoos of ours.

Each kind is a small module with a function `found(folder, ...)` that returns a Source (`prepkit.zoo.write.adding`):
ids, and how one model is read. `making.make_zoo` does the rest, and `kinds.KINDS` lists the modules.
"""
