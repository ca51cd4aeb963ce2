"""Focal blocks whose constants are folded into their weights."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from promptseg.networks.xdecoder.backbone import DepthwiseConv, FocalBlock, FocalModulation


class FoldedBlock(nn.Module):
    """`FocalBlock` with layer scales in the linear layers before them and residuals in the depth-wise convolutions.

    Scaling a map by a constant per channel costs an NPU as much as a linear layer; in a weight it costs nothing.
    """

    def __init__(self, block: FocalBlock) -> None:
        super().__init__()
        self.local1, self.local2 = _with_residual(block.local1), _with_residual(block.local2)
        self.modulation = FoldedModulation(block.modulation, block.scale1.detach())
        self.norm1, self.norm2 = block.norm1, block.norm2
        up, gelu, down = block.mlp
        assert isinstance(down, nn.Linear)
        self.mlp = nn.Sequential(up, gelu, _scaled(down, block.scale2.detach()))

    def forward(self, x: Tensor) -> Tensor:
        """(1, H, W, C) -> (1, H, W, C)."""
        x = self.local1(x)
        x = self.norm1(x + self.modulation(x))
        x = self.local2(x)
        return self.norm2(x + self.mlp(x))


class FoldedModulation(nn.Module):
    """`FocalModulation` times `scale`, with the mean over its levels in a weight."""

    def __init__(self, modulation: FocalModulation, scale: Tensor) -> None:
        super().__init__()
        self.dim, self.levels = modulation.dim, modulation.levels
        self.input_proj = modulation.input_proj
        self.context_convs = modulation.context_convs
        self.context_proj = _scaled(modulation.context_proj, 1 / (self.levels + 1), bias=False)
        self.output_proj = _scaled(modulation.output_proj, scale)

    def forward(self, x: Tensor) -> Tensor:
        """(1, H, W, C) -> (1, H, W, C)."""
        query, context, gates = self.input_proj(x).split((self.dim, self.dim, self.levels + 1), dim=3)
        total: Tensor | None = None
        for level, conv in enumerate(self.context_convs):
            context = F.gelu(conv(context))
            gated = context * gates[..., level : level + 1]
            total = gated if total is None else total + gated
        everywhere = F.gelu(context.mean((1, 2)))  # (1, C)
        spread = gates[..., self.levels :] @ everywhere  # a product: one map that is broadcast both ways costs more
        total = spread if total is None else total + spread
        return self.output_proj(query * self.context_proj(total))


def _with_residual(conv: DepthwiseConv) -> DepthwiseConv:
    """X + conv(x) as one convolution: 1 more in the middle of every kernel."""
    middle = conv.kernel_size[0] // 2
    folded = DepthwiseConv(conv.in_channels, conv.kernel_size[0], bias=True)
    assert conv.bias is not None
    assert folded.bias is not None
    folded.weight = nn.Parameter(conv.weight.detach().clone())
    folded.weight.data[:, :, middle, middle] += 1
    folded.bias = nn.Parameter(conv.bias.detach().clone())
    return folded


def _scaled(linear: nn.Linear, scale: Tensor | float, bias: bool = True) -> nn.Linear:
    """`linear` with its outputs times `scale` (its bias only if `bias`)."""
    scale = torch.as_tensor(scale, dtype=linear.weight.dtype).reshape(-1)
    folded = nn.Linear(linear.in_features, linear.out_features)
    folded.weight = nn.Parameter(linear.weight.detach() * scale[:, None])
    folded.bias = nn.Parameter(linear.bias.detach() * (scale if bias else 1))
    return folded
