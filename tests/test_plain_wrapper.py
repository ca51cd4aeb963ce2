"""The plain computation against the published numbers, and ours against the plain one: nothing left out is missed."""

from dataclasses import replace

import pytest
import torch
from published import VARIANTS, published_network, published_numbers, published_weights

from benchmarks.network import class_query
from benchmarks.plain_wrapper import ClassQuery, plain_grounding, plain_wrapper
from promptseg.checkpoints.published import convert
from promptseg.export.deployed_graph import plain_mask
from promptseg.networks.xdecoder.model import XDecoder, resize_canvas

TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}  # of maps and logits, float32
ROUNDED = {"atol": 5e-4, "rtol": 1e-4}  # where the plain one adds -10,000 to all scores of a query: see test_model
RES = 72


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_plain_computation_gives_the_published_numbers(variant):
    network, numbers = published_network(variant), published_numbers()
    query = class_query(convert(published_weights(), network.config))
    picture = resize_canvas(numbers["image_input"].float(), RES)
    masks, embeddings, phrase = plain_grounding(network, query, picture, numbers["text_input"][0])
    torch.testing.assert_close(masks, numbers[f"{variant}/pred_masks"].squeeze(), **TOLERANCE)
    torch.testing.assert_close(embeddings, numbers[f"{variant}/pred_captions"].squeeze(), **TOLERANCE)
    torch.testing.assert_close(phrase.squeeze(), numbers[f"{variant}/text_embedding"].squeeze(), **TOLERANCE)


@pytest.mark.parametrize("variant", VARIANTS)
def test_ours_equals_the_plain_computation_whatever_the_class_query_is(variant):
    network = published_network(variant)
    pictures = torch.rand(3, 1, 3, RES, RES, generator=torch.Generator().manual_seed(5)) * 255
    tokens = published_numbers()["text_input"][0]
    for seed, picture in enumerate(pictures):
        query = ClassQuery(*torch.randn(2, 1, 64, generator=torch.Generator().manual_seed(seed)))
        masks, embeddings, phrase = plain_grounding(network, query, picture, tokens)
        (ours,), our_phrase = network(picture, tokens)
        torch.testing.assert_close(ours.mask_logits[0], masks, **ROUNDED)
        torch.testing.assert_close(ours.query_embedding[0], embeddings, **ROUNDED)
        assert torch.equal(our_phrase, phrase)


@pytest.mark.parametrize("res", [96, 94, 590])
def test_both_decide_the_same_mask_at_every_size(res):
    network = published_network("xdecoder")
    query = ClassQuery(torch.zeros(1, 64), torch.zeros(1, 64))
    image = torch.rand(1, 3, 1024, 1024, generator=torch.Generator().manual_seed(3)) * 255
    text = published_numbers()["text_input"]
    plain = plain_wrapper(network, query, image, text, res)
    ours = plain_mask(network, image, text, res)
    assert 0 < plain.float().mean() < 1
    assert (plain != ours).float().mean() <= 1e-3
    cropping = XDecoder(replace(network.config, canvas_rule="crop")).eval()
    cropping.load_state_dict(network.state_dict())
    differs = (plain != plain_mask(cropping, image, text, res)).float().mean() > 1e-2
    assert differs == (res % 4 > 0)
