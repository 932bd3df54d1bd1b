"""The ids, the prompt's layout and the attention of Show-o, as literal numbers."""

import itertools

import torch

from genrl_showo.layout import (
    Vocabulary,
    image_attention,
    image_ids,
    prefix_attention,
    prompt_ids,
)

from .conftest import TINY

SHOWO = Vocabulary()


def test_the_published_ids():
    assert (SHOWO.pad, SHOWO.soi, SHOWO.eoi, SHOWO.t2i) == (50295, 50296, 50297, 50300)
    assert (SHOWO.first_code, SHOWO.mask, SHOWO.size) == (50305, 58497, 58498)
    assert SHOWO.boundary == 50256


def test_a_short_prompt_is_padded_on_the_left():
    found = prompt_ids([64, 2266, 21185], SHOWO)
    assert len(found) == 129
    assert found == [50295] * 123 + [50300, 50256, 64, 2266, 21185, 50256]


def test_the_empty_prompt():
    assert prompt_ids([], SHOWO) == [50295] * 126 + [50300, 50256, 50256]


def test_a_text_that_begins_with_the_boundary_gets_no_second_one():
    assert prompt_ids([50256, 7], SHOWO) == [50295] * 125 + [50300, 50256, 7, 50256]


def test_a_long_prompt_is_cut_and_still_ends():
    text = list(range(1, 300))
    assert prompt_ids(text, SHOWO) == [50300, 50256, *text[:126], 50256]
    fits = list(range(1, 127))
    assert prompt_ids(fits, SHOWO) == [50300, 50256, *fits, 50256]
    assert prompt_ids([*fits, 9], SHOWO) == [50300, 50256, *fits, 50256]


def test_sequence_lengths_and_the_place_of_the_first_code():
    for tokens, length in ((256, 387), (1024, 1155)):
        canvas = torch.full((1, tokens), 8192)
        canvas[0, 0], canvas[0, 1] = 0, 8191
        ids = [*prompt_ids([], SHOWO), *image_ids(canvas, SHOWO)[0].tolist()]
        assert len(ids) == length
        assert ids[129:134] == [50296, 50305, 58496, 58497, 58497]  # code k stands at 130 + k
        assert ids[-2:] == [58497, 50297]


def omni_attention(padding: list[bool], image: int) -> list[list[bool]]:
    """Who sees whom, id by id, from the words of the specification."""
    prefix, size = len(padding), len(padding) + image
    allowed = [[False] * size for _ in range(size)]
    for query, key in itertools.product(range(size), repeat=2):
        key_pads = key < prefix and padding[key]
        if query >= prefix:
            allowed[query][key] = not key_pads
        elif padding[query]:
            allowed[query][key] = key <= query
        else:
            allowed[query][key] = key <= query and not key_pads
    return allowed


def test_attention_is_that_of_brute_force():
    padding = torch.tensor([[True, True, False, False, False], [False] * 5, [True] * 4 + [False]])
    image = 6
    top, bottom = prefix_attention(padding), image_attention(padding, image)
    assert top.shape == (3, 1, 5, 5) and top.dtype == torch.bool
    assert bottom.shape == (3, 1, 1, 11) and bottom.dtype == torch.bool
    unseen = torch.zeros(3, 1, 5, image, dtype=torch.bool)  # no text sees the image
    whole = torch.cat([torch.cat([top, unseen], 3), bottom.expand(3, 1, image, 11)], 2)
    expected = [omni_attention(row, image) for row in padding.tolist()]
    assert whole[:, 0].tolist() == expected
    assert whole.any(-1).all(), "a query without a key would be NaN"


def test_no_mask_where_nothing_is_padding():
    assert image_attention(torch.zeros(2, 5, dtype=torch.bool), 6) is None


def test_the_tiny_vocabulary_has_the_same_order():
    assert (TINY.pad, TINY.soi, TINY.eoi, TINY.t2i, TINY.first_code, TINY.mask) == (
        11, 12, 13, 16, 21, 37,
    )  # fmt: skip
