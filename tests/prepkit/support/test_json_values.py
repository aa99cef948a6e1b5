"""Values as JSON has them."""

import json
import math

import numpy as np
import pytest
import torch

from prepkit.support.json_values import by_dotted_key, json_value


def test_all_that_has_a_form_in_json():
    value = {
        1: (True, None, "x", 2, 0.5),
        "arrays": [np.float32(0.5), np.arange(2), torch.ones(1, 2), torch.tensor(3), np.float64(2.0)],
    }
    plain = json_value(value)
    assert plain == {"1": [True, None, "x", 2, 0.5], "arrays": [0.5, [0, 1], [[1.0, 1.0]], 3, 2.0]}
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert type(plain["arrays"][4]) is float  # numpy's float64 is a float, too


def test_numbers_that_are_not_finite():
    assert json_value({"a": [math.nan, -math.inf], "b": np.array([math.inf])}) == {"a": [None, None], "b": [None]}
    assert json_value({"a": [math.nan, -math.inf]}, not_finite=str) == {"a": ["nan", "-inf"]}


def test_what_has_no_form_in_json_is_named_with_its_place():
    with pytest.raises(TypeError, match=r"^numbers, x, \[1\]: a set has no form in JSON\.$"):
        json_value({"x": [0, {1}]}, "numbers")


def test_trees_by_dotted_key():
    assert by_dotted_key({"a": {"b": 1, "c": {"d": [2]}}, "e": 3}) == {"a.b": 1, "a.c.d": [2], "e": 3}


def test_two_values_of_one_dotted_key_are_refused():
    with pytest.raises(ValueError, match=r"^a\.b$"):
        by_dotted_key({"a.b": 1, "a": {"b": 2}})
