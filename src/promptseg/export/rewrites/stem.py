"""The first convolution, taking the picture as it is: its normalisation is folded into weights."""

from torch import Tensor, nn
from torch.nn import functional as F

from promptseg.networks.xdecoder.backbone import Downsample


class FoldedStem(nn.Module):
    """`Downsample` of the first stage after (x - mean) / std, for a picture of `res` x `res`.

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
