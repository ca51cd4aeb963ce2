"""Backbones with constants folded into weights: the picture's normalisation, layer scales, residuals, branches."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from promptseg.networks.xdecoder.backbone import DepthwiseConv, Downsample, FocalBlock, FocalModulation
from promptseg.networks.xdecoder.timm_backbone import TimmBackbone


class FoldedStem(nn.Module):
    """(x - mean) / std, then the first stage's `Downsample`, for a picture of `res` x `res`.

    Zeros that the convolution adds around the normalised picture are not zeros of the picture: what the mean
    contributes is a constant map that differs at the border. Its inner value is a bias; the rest is added.
    """

    border: Tensor

    def __init__(self, stem: Downsample, mean: Tensor, std: Tensor, res: int) -> None:
        super().__init__()
        conv = stem.conv
        assert conv.bias is not None
        weight = conv.weight.detach() / std
        kernel = conv.kernel_size[0]
        self.padding = (0, -res % stem.stride, 0, -res % stem.stride)
        self.conv = nn.Conv2d(3, conv.out_channels, kernel, stem.stride, kernel // 2)
        self.conv.weight = nn.Parameter(weight.clone())
        means = F.pad(mean.detach().expand(1, 3, res, res), self.padding)
        share = F.conv2d(means, weight, stride=stem.stride, padding=kernel // 2)
        inner = (weight * mean).sum((1, 2, 3))
        self.conv.bias = nn.Parameter(conv.bias.detach() - inner)
        border = inner.view(-1, 1, 1) - share
        border[border.abs() < 1e-4 * inner.abs().max()] = 0  # rounding: there the mean is whole
        self.register_buffer("border", border.permute(0, 2, 3, 1).contiguous(), persistent=False)
        self.norm = stem.norm

    def forward(self, picture: Tensor) -> Tensor:
        """Float (1, res, res, 3), RGB 0..255 -> (1, h, w, C) at stride 4."""
        x = self.conv(F.pad(picture.permute(0, 3, 1, 2), self.padding)).permute(0, 2, 3, 1)
        return self.norm(x + self.border)


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


def norm_conv(mean: Tensor, std: Tensor) -> nn.Conv2d:
    """(x - mean) / std, mean and std (3, 1, 1), as a 1x1 convolution: the NPU broadcasts over three channels slowly.

    Unlike `FoldedStem` it leaves the backbone's first convolution alone, whatever that is, and however it pads.
    """
    conv = nn.Conv2d(3, 3, 1)
    conv.weight = nn.Parameter(torch.diag(1 / std.flatten()).view(3, 3, 1, 1))
    conv.bias = nn.Parameter(-(mean / std).flatten())
    return conv


def reparameterised(backbone: TimmBackbone) -> TimmBackbone:
    """Return a copy whose parallel branches are one convolution each, where timm's backbone offers that.

    Its batch norms after convolutions are folded by the exporter.
    """
    from timm.utils.model import reparameterize_model

    clone = copy.copy(backbone)
    clone._modules = {**backbone._modules, "encoder": reparameterize_model(backbone.encoder)}
    return clone


def _with_residual(conv: DepthwiseConv) -> DepthwiseConv:
    """Return a convolution that computes x + conv(x): 1 is added in the middle of every kernel."""
    middle = conv.kernel_size[0] // 2
    folded = DepthwiseConv(conv.in_channels, conv.kernel_size[0], bias=True)
    assert conv.bias is not None
    assert folded.bias is not None
    folded.weight = nn.Parameter(conv.weight.detach().clone())
    folded.weight.data[:, :, middle, middle] += 1
    folded.bias = nn.Parameter(conv.bias.detach().clone())
    return folded


def _scaled(linear: nn.Linear, scale: Tensor | float, bias: bool = True) -> nn.Linear:
    """Return `linear` with its outputs times `scale`, one number or one per output; without `bias`, its bias stays."""
    scale = torch.as_tensor(scale, dtype=linear.weight.dtype).reshape(-1)
    folded = nn.Linear(linear.in_features, linear.out_features)
    folded.weight = nn.Parameter(linear.weight.detach() * scale[:, None])
    folded.bias = nn.Parameter(linear.bias.detach() * (scale if bias else 1))
    return folded
