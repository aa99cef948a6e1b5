"""bench: how well a column of a zoo's table can be predicted from weights, by baselines and by learners of the user."""
