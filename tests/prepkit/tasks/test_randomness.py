"""Streams of random numbers depend on their purpose and numbers alone."""

import hashlib

import torch

from prepkit.tasks.randomness import generator, others_of_each, stream_seed


def drawn(*arguments):
    return torch.randint(1 << 40, (4,), generator=generator(*arguments)).tolist()


def test_a_stream_depends_on_purpose_and_numbers_only():
    torch.manual_seed(1)
    first = drawn("order", 3, 7)
    torch.manual_seed(2)
    assert drawn("order", 3, 7) == first
    others = [drawn("order", 7, 3), drawn("crop", 3, 7), drawn("order", 37), drawn("order", 3, 70), drawn("order")]
    assert len({tuple(values) for values in (first, *others)}) == 6


def test_drawing_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    drawn("order", 1)
    assert torch.equal(torch.rand(1), expected)


def test_seeds_are_those_of_sha256_and_fit_63_bits():
    number = int(hashlib.sha256(b"order:3,7").hexdigest()[:16], 16) // 2
    assert stream_seed("order", 3, 7) == number
    assert generator("order", 3, 7).initial_seed() == number
    assert all(0 <= stream_seed("x", n) < 2**63 for n in range(500))
    assert max(stream_seed("x", n) for n in range(500)) > 2**62


def test_a_stream_is_the_same_for_ever():
    assert stream_seed("order", 0, 0) == 3459353434267064790


def test_others_are_different_and_drawn_equally_often():
    few, many, again = (
        others_of_each(count, 15, generator("others", seed)) for count, seed in ((4, 0), (40, 0), (40, 1))
    )
    assert [sorted(others) for others in few] == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]
    assert all(len(set(others)) == 15 and number not in others for number, others in enumerate(many))
    assert {sum(others.count(number) for others in many) for number in range(40)} == {15}
    assert many != again
    assert others_of_each(1, 15, generator("others", 0)) == [[]]
