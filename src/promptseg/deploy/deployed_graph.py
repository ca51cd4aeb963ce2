"""The deployment graph: the network's function with the contract's border, in forms that an NPU likes.

Every rewrite lives here, so that the network itself stays plain. Each computes the same, up to rounding.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from promptseg.preprocess import CANVAS
from promptseg.xdecoder.model import MASK_STRIDE, XDecoder, best_masks, masks_to_canvas, resize_canvas

STEEPNESS = 1000.0  # the sigmoid that decides a pixel leaves 0 and 1 only for logits within a few thousandths of zero


class DeployedGraph(nn.Module):
    """image_input, text_input -> pred_mask, as deploy/contract.py has them, at one `res`.

    Rewrites: of the last layer's masks only the chosen query's is computed; the resize to the canvas is two products
    with constant matrices; the decision is a steep sigmoid.
    """

    upsample: Tensor

    def __init__(self, network: XDecoder, res: int) -> None:
        super().__init__()
        self.network = network
        self.res = res
        self.register_buffer("upsample", upsampling_matrix(res), persistent=False)

    def forward(self, image_input: Tensor, text_input: Tensor) -> Tensor:
        """Float [1, 3, CANVAS, CANVAS], int32 [2, 1, 77] -> float [CANVAS, CANVAS]."""
        logits = self.best_mask_logits(image_input, text_input)
        on_canvas = self.upsample @ logits @ self.upsample.T
        return torch.sigmoid(on_canvas * STEEPNESS)

    def best_mask_logits(self, image_input: Tensor, text_input: Tensor) -> Tensor:
        """Logits [h, w] at stride 4 of the query that is most like the phrase."""
        network = self.network
        decoder = network.mask_decoder
        mask_features, pyramid = network.encode(resize_canvas(image_input, self.res))
        phrase = network.text_encoder(text_input[0])
        state = decoder.refine(mask_features, pyramid, phrase)[-1]  # (1, Q, C)
        similarity = F.normalize(state @ decoder.class_projection, dim=-1) @ phrase.unsqueeze(2)  # (1, Q, 1)
        best = state[0].index_select(0, similarity.flatten().argmax(0, keepdim=True))  # (1, C)
        kernel = decoder.mask_embedding(best)  # (1, M)
        return (kernel @ mask_features[0].flatten(1)).view(mask_features.shape[2:])


def upsampling_matrix(res: int) -> Tensor:
    """Float [CANVAS, ceil(res / 4)]: `masks_to_canvas` along one axis, as the matrix of that linear map."""
    cells = -(-res // MASK_STRIDE)
    matrix = torch.empty(CANVAS, cells)
    for cell, unit in enumerate(torch.eye(cells)):  # one canvas at a time: all of them take 1 GB at the largest res
        rows = unit.view(1, cells, 1).expand(-1, -1, cells)
        matrix[:, cell] = masks_to_canvas(rows, res, CANVAS)[0, :, CANVAS // 2]
    return matrix


def plain_mask(network: XDecoder, image_input: Tensor, text_input: Tensor, res: int) -> Tensor:
    """What the graph must decide, by the network's own code: bool [CANVAS, CANVAS]."""
    groundings, phrase = network(resize_canvas(image_input, res), text_input[0])
    similarity = network.similarity(groundings[-1].query_embedding, phrase)
    return masks_to_canvas(best_masks(groundings[-1], similarity), res, CANVAS)[0] > 0
