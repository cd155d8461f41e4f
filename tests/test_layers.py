"""Layers under a policy: they start as the source, learn what the plan names, keep to the clip."""

import re
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import wgan_64
import wgan_64_transferlearning
from tests.conftest import LATENT, WIDTH, as_source
from tests.runs import SPLITS
from transfer import UserError, shared, weights
from transfer.checkpoints import Checkpoints
from transfer.layers import Conv, ConvUp, Norm
from transfer.plan import Named, Split, layers_of
from transfer.policies import POLICIES, AdaFM, FilterSelection, Rescale

RESCALE = get_args(Rescale)


def transferred(networks, split, rescale="adafm", frozen_norm="batch"):
    """The source's two networks under a plan."""
    G = wgan_64_transferlearning.Generator(LATENT, WIDTH, Split(*split).generator(rescale, frozen_norm))
    D = wgan_64_transferlearning.Discriminator(WIDTH, Split(*split).discriminator(rescale, frozen_norm))
    for network, pretrained, name in zip((G, D), networks, "GD", strict=True):
        shared.carry(network, as_source(*2 * [pretrained]), name)
    return G, D


@pytest.mark.parametrize("rescale", RESCALE)
@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_at_step_0_the_networks_compute_what_the_source_computes(networks, split, rescale):
    z, x = torch.randn(3, LATENT), torch.rand(3, 3, 64, 64) * 2 - 1
    for frozen_norm in ("batch", "source"):
        for network, pretrained, data in zip(
            transferred(networks, split, rescale, frozen_norm), networks, (z, x), strict=True
        ):
            with torch.no_grad():
                assert torch.equal(network.eval()(data), pretrained.eval()(data))
                if frozen_norm == "batch":
                    assert torch.equal(network.train()(data), pretrained.train()(data))
                    shared.carry(network, as_source(pretrained), "G")  # running statistics have moved


LEARNS = {  # policy: what learns in such a layer, of the kernel and of the norm
    "freeze": set(),
    "adafm": {"gamma", "beta", "norm.weight", "norm.bias"},
    "filter_selection": {"gamma", "beta", "norm.weight", "norm.bias"},
    "normalised_adafm": {"gamma", "beta", "norm.weight", "norm.bias"},
    "singular_values": {"gamma", "norm.weight", "norm.bias"},
    "rank_one": {"v", "u", "norm.weight", "norm.bias"},
    "finetune": {"weight", "norm.weight", "norm.bias"},
}


def test_plans_under_which_nothing_learns_are_refused(source, faces, tmp_path):
    frozen = {"G": Split(5, 0, 0), "D": Split(5, 0, 0)}
    settings = wgan_64_transferlearning.Settings(source=source, images=faces, out=tmp_path, **frozen)
    with pytest.raises(UserError, match="nothing would learn"):
        wgan_64_transferlearning.main(settings)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("split", [split for split in SPLITS if split != (5, 0, 0)], ids=str)
def test_training_moves_what_the_plan_names_and_nothing_else(networks, source, faces, tmp_path, split):
    rescale = list(RESCALE)[SPLITS.index(split) % len(RESCALE)]
    frozen_norm = "batch" if sum(split[:2]) % 2 else "source"
    settings = wgan_64_transferlearning.Settings(
        source=source,
        images=faces,
        G=Split(*split),
        D=Split(*split),
        rescale=rescale,
        frozen_norm=frozen_norm,
        iterations=2,
        critic_steps=2,
        batch_size=4,
        learning_rate=0.05,  # gradients through a clipped critic of this width are tiny, and 1 + tiny is 1
        augment="diffaugment",
        device="cpu",
        out=tmp_path,
    )
    run = wgan_64_transferlearning.main(settings)
    after = Checkpoints(run).newest()[1]
    before = transferred(networks, split, rescale, frozen_norm)
    policies = [split_.name for split_ in Split(*split).discriminator(rescale)]
    for name, network, by_layer in zip("GD", before, (policies[::-1], policies), strict=True):
        expected = set()
        for index, policy in enumerate(by_layer, start=1):
            for ending in LEARNS[policy]:
                kind, _, tensor = ending.rpartition(".")
                if (policy, ending) == (
                    "filter_selection",
                    "beta",
                ) and f"norm{index}.bias" in network.state_dict():
                    continue  # normalisation takes it away again
                expected.add(f"{kind or 'conv'}{index}.{tensor}")
        parameters = {key: value for key, value in network.state_dict().items() if "running" not in key}
        parameters = {key: value for key, value in parameters.items() if "num_batches" not in key}
        moved = {key for key, value in parameters.items() if not torch.equal(value, after[name][key])}
        if rescale == "filter_selection":  # batch normalisation undoes a scale and shift of a whole channel
            moved |= {key for key in expected if key.endswith("gamma")}
            moved |= {"conv5.beta"} & expected if name == "D" else set()  # it shifts both sides' scores alike
        assert moved == expected & parameters.keys()
        if frozen_norm == "source":
            for index, policy in enumerate(by_layer, start=1):
                for key, value in network.state_dict().items():
                    if policy == "freeze" and key.startswith(f"norm{index}."):
                        assert torch.equal(value, after[name][key])


def by_hand(layer):
    """The effective kernel as the papers have it, in numpy: filter by filter, slice by slice."""
    name, out = layer.policy.name, layer.out_axis
    tensors = {key: tensor.detach().double().numpy() for key, tensor in layer.named_parameters()}
    W, gamma, beta, v, u = (tensors.get(key) for key in ("weight", "gamma", "beta", "v", "u"))
    kernel = W.copy()
    if name == "normalised_adafm":
        for a, b in np.ndindex(W.shape[:2]):
            kernel[a, b] = gamma[a, b] * (W[a, b] - W[a, b].mean()) / W[a, b].std() + beta[a, b]
    elif name == "singular_values":
        filters = np.moveaxis(W, out, -1)
        U, s, V = np.linalg.svd(filters.reshape(-1, W.shape[out]), full_matrices=False)
        kernel = np.moveaxis((U @ np.diag(gamma * s) @ V).reshape(filters.shape), -1, out)
    elif name == "rank_one":
        for each in range(W.shape[out]):
            index = (each,) if out == 0 else (slice(None), each)
            kernel[index] = W[index] * (1 + v.flatten()[each] * u.squeeze(out))
    return kernel


@pytest.mark.parametrize("policy", POLICIES.values(), ids=lambda policy: policy.name)
def test_the_kernels_are_those_of_the_papers(policy):
    torch.manual_seed(0)
    down, up = Conv(3, 5, 4, 2, 1, policy()), ConvUp(3, 5, 4, 2, 1, policy())
    for layer in (down, up):
        for name, tensor in layer.named_parameters():
            if name != "weight":
                nn.init.normal_(tensor)
    x = torch.randn(2, 3, 8, 8)
    W, V = down.weight, up.weight
    if policy is AdaFM:  # one gamma and one beta for each slice, of shape (C_out, C_in)
        assert down.gamma.shape == (5, 3, 1, 1) and up.gamma.shape == (3, 5, 1, 1)
        W, V = down.gamma * W + down.beta, up.gamma * V + up.beta
        down_, up_ = F.conv2d(x, W, None, 2, 1), F.conv_transpose2d(x, V, None, 2, 1)
    elif policy is FilterSelection:  # the filter's output, scaled and shifted
        assert down.gamma.shape == (5, 1, 1, 1) and up.gamma.shape == (1, 5, 1, 1)
        down_ = F.conv2d(x, W, None, 2, 1) * down.gamma.view(1, 5, 1, 1) + down.beta.view(1, 5, 1, 1)
        up_ = F.conv_transpose2d(x, V, None, 2, 1) * up.gamma + up.beta
    else:
        W, V = (torch.from_numpy(by_hand(layer)).float() for layer in (down, up))
        down_, up_ = F.conv2d(x, W, None, 2, 1), F.conv_transpose2d(x, V, None, 2, 1)
    torch.testing.assert_close(down(x), down_)
    torch.testing.assert_close(up(x), up_)


def test_a_slice_without_variation_can_be_normalised():
    layer = Conv(3, 5, 4, 2, 1, POLICIES["normalised_adafm"]())
    with torch.no_grad():
        layer.weight[0, 0] = 0.25  # whose mean is exact
    layer.start()
    assert torch.equal(layer.kernel(), layer.weight)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=lambda policy: policy.name)
def test_a_layers_bias_learns_where_its_kernel_does(policy):
    """A critic with a gradient penalty has biases, and a frozen layer's is frozen too."""
    layer = Conv(3, 5, 4, 2, 1, policy(), bias=True)
    assert layer.bias.requires_grad == layer.weight.requires_grad == ("weight" in policy.learns)


def test_networks_start_as_dcgan_does():
    torch.manual_seed(0)
    for network in (wgan_64.Generator(), wgan_64.Discriminator()):
        for layer in layers_of(network):
            assert layer.kernel.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert abs(layer.kernel.weight.mean().item()) < 1e-3
            if layer.norm is not None:
                assert layer.norm.weight.std().item() == pytest.approx(0.02, rel=0.3)
                assert layer.norm.weight.mean().item() == pytest.approx(1, abs=0.01)
                assert not layer.norm.bias.any()


def test_what_batch_normalisation_cancels_is_not_taught(networks):
    G, D = transferred(networks, (0, 5, 0), "filter_selection")
    for network in (G, D):
        taught = {name for name, tensor in network.named_parameters() if tensor.requires_grad}
        for layer in layers_of(network):
            assert f"{layer.name}.gamma" in taught
            assert (f"{layer.name}.beta" in taught) == (layer.norm is None)
    x = torch.rand(4, 3, 64, 64)
    before = D(x)
    with torch.no_grad():
        D.conv3.beta += 1
    torch.testing.assert_close(D(x), before)


def test_nothing_is_computed_backward_below_the_lowest_layer_that_learns(networks):
    _, D = transferred(networks, (3, 0, 2))
    inputs = []
    D.conv4.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    D(torch.rand(2, 3, 64, 64)).mean().backward(inputs=weights.learning(D))
    assert not inputs[0].requires_grad
    assert all(parameter.grad is None for parameter in D.conv3.parameters())


@pytest.mark.parametrize("rescale", RESCALE)
@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_the_effective_kernels_stay_within_the_clip(networks, split, rescale):
    _, D = transferred(networks, split, rescale)
    clip = weights.Clip(D, 0.01, carried=True)
    before = {name: module.kernel().clone() for name, module in D.named_modules() if isinstance(module, Conv)}
    state = {key: value.clone() for key, value in D.state_dict().items()}
    clip()
    for key, value in D.state_dict().items():
        assert torch.equal(value, state[key]), "at the identity the clip changes nothing"
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in weights.learning(D):
            parameter.add_(torch.randn_like(parameter))
    gammas = {name: value.clone() for name, value in D.state_dict().items() if name.endswith("gamma")}
    clip()
    assert all(layer.kernel.kernel().abs().max() <= 0.01 for layer in layers_of(D))
    for name, module in D.named_modules():
        if isinstance(module, Conv) and module.policy.modulates:
            pushed = module.policy.kernel(module)
            assert torch.equal(module.kernel(), pushed.clamp(-0.01, 0.01))
            if "gamma" in module.policy.learns and "gamma" not in module.policy.clamped:
                assert torch.equal(module.gamma, gammas[f"{name}.gamma"]), "a factor is not clamped"
        elif isinstance(module, Conv) and not module.weight.requires_grad:
            assert torch.equal(module.kernel(), before[name])
        elif isinstance(module, Norm) and module.weight.requires_grad:
            assert module.weight.abs().max() <= 0.01 and module.bias.abs().max() <= 0.01


def test_a_slice_at_the_clip_keeps_its_pattern_and_learns_by_the_rest(networks):
    """A shift that pushes some numbers against the clip must not shrink gamma, step by step, to nothing."""
    _, D = transferred(networks, (0, 5, 0))
    clip = weights.Clip(D, 0.01)
    layer = D.conv3
    pattern = torch.linspace(-0.01, 0.01, 16).reshape(4, 4)
    with torch.no_grad():
        layer.weight.copy_(pattern.expand_as(layer.weight))
        for _ in range(100):
            layer.beta += 0.0002
            clip()
    assert torch.equal(layer.gamma, torch.ones_like(layer.gamma))
    assert torch.equal(layer.beta, torch.full_like(layer.beta, 0.01))
    torch.testing.assert_close(layer.kernel()[0, 0], (pattern + 0.01).clamp(max=0.01))
    layer.kernel().sum().backward()
    inside = (pattern + 0.01 < 0.01).sum()
    assert layer.beta.grad.flatten().tolist() == [inside] * layer.beta.numel()


@pytest.mark.parametrize("rescale", RESCALE)
def test_the_clip_lets_nan_through_to_be_found(networks, rescale):
    _, D = transferred(networks, (0, 5, 0), rescale)
    clip = weights.Clip(D, 0.01)
    with torch.no_grad():
        getattr(D.conv3, D.conv3.policy.learns[0]).view(-1)[0] = float("nan")
    clip()
    assert D.conv3.kernel().isnan().any()


def test_any_policy_for_any_layer_and_fresh_ones_start_anew(networks):
    names = ("reinitialise", "adafm", "singular_values", "freeze", "rank_one")
    plan = Named(names)
    torch.manual_seed(5)
    G = wgan_64_transferlearning.Generator(LATENT, WIDTH, plan.generator())
    drawn = {key: value.clone() for key, value in G.state_dict().items()}
    source = networks[0].state_dict()
    shared.carry(G, as_source(networks[0]), "G")
    for index, name in enumerate(names, start=1):
        conv = getattr(G, f"conv{index}")
        assert conv.policy.name == name
        expected = drawn if name == "reinitialise" else source
        assert torch.equal(conv.kernel(), expected[f"conv{index}.weight"])
    assert torch.equal(G.norm1.weight, drawn["norm1.weight"])
    assert torch.equal(G.norm2.weight, source["norm2.weight"])


def test_a_clip_below_the_source_kernels_is_refused(networks):
    _, D = transferred(networks, (1, 2, 2))
    weights.Clip(D, 0.01, carried=True)
    with pytest.raises(UserError, match="give at least that"):
        weights.Clip(D, 0.001, carried=True)


@pytest.mark.parametrize("largest", [0.01234561, 0.01234569, 0.0999999999, 3e-7, 123.456789])
def test_the_bound_that_a_refusal_names_is_accepted(networks, largest):
    _, D = transferred(networks, (1, 2, 2))
    with torch.no_grad():
        for layer in layers_of(D):
            layer.kernel.weight.mul_(1e-9)
        D.conv1.weight[0, 0, 0, 0] = largest
    with pytest.raises(UserError) as refusal:
        weights.Clip(D, largest / 2, carried=True)
    named = float(re.search(r"kernels up to (\S+): give", str(refusal.value))[1])
    weights.Clip(D, named, carried=True)
    assert named == pytest.approx(largest, rel=2e-5)


def test_a_clip_is_held_against_the_largest_kernel_of_the_source_alone(networks):
    _, D = transferred(networks, (1, 2, 2))
    with torch.no_grad():
        D.conv1.weight[0, 0, 0, 0] = -0.0125
    with pytest.raises(UserError, match=r"clip is 0\.01, and .* kernels up to 0\.0125"):
        weights.Clip(D, 0.01, carried=True)
    weights.Clip(D, 0.0126, carried=True)
    fresh = Named(["reinitialise", *4 * ["finetune"]])
    D = wgan_64_transferlearning.Discriminator(WIDTH, fresh.discriminator())
    shared.carry(D, as_source(None, networks[1]), "D")
    assert D.conv1.weight.abs().max() > 0.01, "random numbers, which the clip brings in"
    clip = weights.Clip(D, 0.01, carried=True)
    clip()
    assert D.conv1.weight.abs().max() <= 0.01


def test_the_average_warms_up_and_then_follows_slowly():
    G = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(G.weight)
    average = weights.Average(G, 0.999)
    nn.init.ones_(G.weight)
    average.update(G, 1)
    assert average.network.weight.item() == pytest.approx(1 - 2 / 11)
    average.update(G, 100_000)
    assert average.network.weight.item() == pytest.approx(1 - 2 / 11 * 0.999)


def test_the_average_is_of_running_statistics_too(networks):
    """Those are what is sampled with: weights of one time and statistics of another draw neither's images."""
    G, _ = networks
    average = weights.Average(G, 0.999)
    before = {key: tensor.clone() for key, tensor in average.network.state_dict().items()}
    with torch.no_grad():
        for tensor in G.state_dict().values():
            tensor += 1
    average.update(G, 1)
    for key, tensor in average.network.state_dict().items():
        moved = 0 if key.endswith("num_batches_tracked") else 9 / 11
        torch.testing.assert_close(tensor, before[key] + moved, msg=key)
    assert not average.network.training and not weights.learning(average.network)


def test_networks_that_do_not_fit_are_refused_by_name(networks):
    wider = wgan_64.Generator(LATENT, WIDTH + 1)
    with pytest.raises(UserError, match=r"source's G does not fit.*conv1\.weight"):
        shared.carry(wider, as_source(networks[0]), "G")
