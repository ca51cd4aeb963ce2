"""The text encoder's last block for the one token that is read."""

from torch import Tensor, nn

from promptseg.xdecoder.text_encoder import TextBlock, TextEncoder, first_end_of_text


class EndTokenEncoder(nn.Module):
    """`TextEncoder` whose last block has one query, the first end-of-text token."""

    causal: Tensor

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("causal", encoder.causal.clone(), persistent=False)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Int [1, T] -> float [1, P]."""
        encoder = self.encoder
        x = encoder.token_embedding(token_ids) + encoder.positional_embedding
        blocks = [block for block in encoder.blocks if isinstance(block, TextBlock)]
        for block in blocks[:-1]:
            x = block(x, self.causal)
        place = first_end_of_text(token_ids, x.dtype)  # (1, T), one-hot
        end = self._last(blocks[-1], x, place)
        return encoder.final_norm(end) @ encoder.projection

    def _last(self, block: TextBlock, x: Tensor, place: Tensor) -> Tensor:
        y = block.norm1(x)
        bias = (place @ self.causal)[:, None]  # (1, 1, T)
        attended = block.attention(place[:, None] @ y, y, y, bias)[:, 0]
        end = place @ x[0] + attended
        return end + block.mlp(block.norm2(end))
