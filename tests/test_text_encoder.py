"""The text encoder: causal, read at the first end of text, and against its formula written out."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from promptseg.datasets.tokenizer import END_OF_TEXT, ClipTokenizer
from promptseg.networks.xdecoder.text_encoder import QuickGelu, TextConfig, TextEncoder, first_end_of_text


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    torch.manual_seed(0)
    return TextEncoder(TextConfig(width=8, heads=2, layers=2, context_length=77, vocab_size=49408), proj_dim=6).eval()


def _ids(*words: int) -> torch.Tensor:
    ids = torch.full((1, 77), END_OF_TEXT, dtype=torch.int32)
    ids[0, : len(words)] = torch.tensor(words)
    return ids


def test_the_end_is_the_tokenizers(encoder):
    assert encoder.end_of_text == END_OF_TEXT


@given(st.integers(0, 76))
def test_the_first_end_is_marked(place):
    ids = _ids(*range(1, place + 1))
    expected = np.zeros(77)
    expected[place] = 1
    assert (first_end_of_text(ids, END_OF_TEXT, torch.float32)[0].numpy() == expected).all()


def test_what_follows_the_first_end_does_not_matter(encoder):
    ids = _ids(49406, 320, 1125)
    other = ids.clone()
    other[0, 60:] = 7
    with torch.no_grad():
        features = []
        for each in (ids, other):
            x = encoder.token_embedding(each) + encoder.positional_embedding
            for block in encoder.blocks:
                x = block(x, encoder.causal)
            features.append(x[0, 3])
    assert torch.equal(*features)


def test_every_word_and_its_place_matter(encoder):
    phrases = torch.cat([_ids(49406, 320, 1125), _ids(49406, 1125, 320), _ids(49406, 320, 1126), _ids(49406, 320)])
    with torch.no_grad():
        out = encoder(phrases)
    assert out.shape == (4, 6)
    assert torch.cdist(out, out).fill_diagonal_(1).min() > 1e-3


def test_equals_the_formula_at_the_first_end(encoder):
    ids = _ids(49406, 320, 1125, 539)
    with torch.no_grad():
        x = encoder.token_embedding.weight[ids.long()] + encoder.positional_embedding
        for block in encoder.blocks:
            y = block.norm1(x)
            x = x + block.attention(y, y, y, encoder.causal)
            x = x + block.mlp.down(QuickGelu()(block.mlp.up(block.norm2(x))))
        expected = encoder.final_norm(x[:, 4]) @ encoder.projection
        torch.testing.assert_close(encoder(ids), expected)


def test_rows_are_independent(encoder):
    one, two = _ids(49406, 320), _ids(49406, 1125, 539)
    with torch.no_grad():
        torch.testing.assert_close(encoder(torch.cat((one, two))), torch.cat((encoder(one), encoder(two))))


def test_quick_gelu():
    x = torch.linspace(-3, 3, 7)
    torch.testing.assert_close(QuickGelu()(x), x / (1 + torch.exp(-1.702 * x)))


def test_takes_what_the_tokenizer_makes_even_a_phrase_that_was_cut(encoder):
    tokens = ClipTokenizer().encode_all(["cat", "a red circle " * 100])
    with torch.no_grad():
        assert encoder(torch.from_numpy(tokens[:, 0])).isfinite().all()
