"""A zoo as one web page: its table, charts, a map of its weights, each instance, and its audit."""
