"""The critic that sees: its features are frozen, gradients reach the pixels, runs go on exactly."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import fid
from experiments.resume import equal
from methods import projected_critic
from methods.projected_critic import Head, Heads, Look, Spectral, coarse, step_unless
from tests.conftest import LATENT, WIDTH
from transfer import UserError
from transfer.adapters import Adapter, applied
from transfer.augment import blurred
from transfer.checkpoints import Checkpoints
from transfer.plan import Split
from transfer.regularisers import Balance, Drift
from transfer.shared import Source


@pytest.fixture
def settings(faces, source, tmp_path):
    return projected_critic.Settings(
        source=source, images=faces, out=tmp_path, iterations=2, batch_size=4, stretch=64, closer=0,
        channels=8, log_every=1, sample_every=1, device="cpu", latent=LATENT, width=WIDTH,
    )  # fmt: skip


def newest(run):
    return Checkpoints(run).newest()[1]


def fingerprint(extractor):
    digest = hashlib.sha256()
    for part in extractor.parts:
        for tensor in part.state_dict().values():
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def test_the_features_are_frozen_and_everything_else_learns(settings, source):
    settings = replace(settings, D=Split(0, 0, 5), rest=0.0)
    seen = fid.load(settings.features, device="cpu")
    before = fingerprint(seen)
    run = projected_critic.main(settings)
    assert fingerprint(seen) == before
    end, origin = newest(run), Source.read(source)
    for name, start in (("G", origin.generator), ("D", origin.discriminator)):
        assert any(not torch.equal(end[name][key], tensor) for key, tensor in start.items()), name
    taught = {name: len(each["state"]) for name, each in end["optimizers"].items()}
    heads = sum(key.endswith(("weight", "bias")) for key in end["heads"])
    assert taught == {"optimizer_G": 5 + 8, "optimizer_D": 5 + 6, "optimizer_heads": heads}, (
        "kernels and norms"
    )
    clipped = [key for key in end["D"] if key.endswith("weight")]
    assert max(end["D"][key].abs().max() for key in clipped) <= settings.clip + 1e-9


def test_gradients_reach_the_pixels_through_the_features():
    extractor = fid.load("efficientnet_lite1", device="cpu")
    x = torch.rand(2, 3, 64, 64, requires_grad=True)
    maps = extractor.maps(x, 128)
    assert [each.shape[1:] for each in maps] == [
        (16, 64, 64), (24, 32, 32), (40, 16, 16), (112, 8, 8), (320, 4, 4),
    ]  # fmt: skip
    head = Head(320, 4, 8)
    head(maps[-1]).sum().backward()
    assert (x.grad.abs().sum((1, 2, 3)) > 0).all()


@pytest.mark.parametrize(
    ("sides", "kept"),
    [
        ([64, 32, 16, 8, 4], [1, 2, 3, 4]),
        ([128, 128, 64, 64, 32, 32, 16], [5, 6]),
        ([61, 28, 13, 2], [1, 2, 3]),
    ],
)
def test_heads_look_at_the_last_map_of_each_side(sides, kept):
    maps = [torch.zeros(1, 3, side, side) for side in sides]
    assert [id(each) for each in coarse(maps, 128)] == [id(maps[at]) for at in kept]
    for each in coarse(maps, 128):
        assert 2 <= Head(3, each.shape[-1], 4)(each).shape[1] ** 0.5 <= 7


def test_heads_with_a_spread_see_how_far_the_images_of_a_batch_differ():
    torch.manual_seed(0)
    plain, spread = Heads([Head(3, 8, 4)]), Heads([Head(3, 8, 4, spread=True)])
    spread.carry(plain.state_dict())
    x = torch.randn(5, 3, 8, 8)
    same = x[:1].expand(5, -1, -1, -1)
    for head in (plain.eval()[0], spread.eval()[0]):
        torch.testing.assert_close(head(x), plain[0](x))
        torch.testing.assert_close(head(same)[0], head(x)[0])
    with torch.no_grad():
        spread[0].spread.fill_(1.0)
    more = spread[0](x) - plain[0](x)
    torch.testing.assert_close(more, more[:1].expand(5, -1))  # it is said of the batch
    assert (more > 0.1).all() and (spread[0](same) - plain[0](same)).abs().max() < 0.01
    again = Heads([Head(3, 8, 4, spread=True)])
    again.carry(spread.state_dict())
    assert (again[0].spread == 1).all()
    plain.carry(spread.state_dict())  # and back: what has none leaves it out
    one = x[:1].clone().requires_grad_()
    spread[0](one).sum().backward()
    assert torch.isfinite(one.grad).all(), "a batch of one"


def test_a_spread_learns_and_a_run_with_it_goes_on_to_the_bit(settings, source):
    settings = replace(settings, spread=True, rest=0.0)
    through = projected_critic.main(settings)
    stopped = projected_critic.main(replace(settings, iterations=1))
    projected_critic.main(replace(settings, resume=stopped))
    end = newest(through)
    assert equal(end, newest(stopped))
    assert all(end["heads"][f"{place}.spread"].abs().min() > 0 for place in range(4))


def test_a_run_whose_features_drift_goes_on_to_the_bit(settings):
    settings = replace(settings, drift=1.0, rest=0.0, iterations=3)
    through = projected_critic.main(settings)
    stopped = projected_critic.main(replace(settings, iterations=2))
    projected_critic.main(replace(settings, resume=stopped))
    end, plain = newest(through), newest(projected_critic.main(replace(settings, drift=0.0)))
    assert equal(end, newest(stopped))
    assert [len(end["drifts"][f"{at}.real"]) for at in range(2)] == [256, 256], "the two coarsest maps"
    assert not equal(end["G"], plain["G"]) and "drifts" not in plain


def test_features_drift_in_full_under_the_blur_and_by_their_weight_after_it(settings, monkeypatch):
    weights, forward = [], Drift.forward

    def noting(self, real, fake, gradient, weight):
        weights.append(weight)
        return forward(self, real, fake, gradient, weight)

    monkeypatch.setattr(Drift, "forward", noting)
    projected_critic.main(replace(settings, drift=0.3, fade=2))
    assert weights == [1.0, 1.0, 0.3, 0.3], "at two maps each"


def test_heads_look_closer_while_they_are_behind_and_the_blur_is_gone(settings):
    look = Look(replace(settings, closer=96, rest=0.6), torch.device("cpu"))
    assert [look(1, sigma) for sigma in (2.0, 0.0)] == [64, 96]
    for _ in range(200):
        look.update(torch.tensor(0.5))
    assert [look(step, 0.0) for step in (50, 51, 52)] == [96, 64, 64], "decided every so many iterations"
    for _ in range(20):
        look.update(torch.tensor(0.9))
    assert look(101, 0.0) == 96
    assert Look(settings, torch.device("cpu"))(1, 0.0) == 64


def test_a_size_that_is_not_closer_is_refused(settings):
    for closer in (32, settings.stretch):
        with pytest.raises(UserError, match=f"--closer {closer} is not larger than --stretch 64"):
            projected_critic.main(replace(settings, closer=closer, dry_run=True))


def test_a_run_whose_heads_look_closer_goes_on_to_the_bit(settings, monkeypatch):
    sizes, sight = [], projected_critic.Sight.__call__

    def noting(self, x, size=None):
        sizes.append(size)
        return sight(self, x, size)

    monkeypatch.setattr(projected_critic.Sight, "__call__", noting)
    monkeypatch.setattr(projected_critic, "DECIDE", 2)
    settings = replace(settings, closer=96, blur=0.0, iterations=4)
    through = projected_critic.main(settings)
    assert sizes == [None, *8 * [96]], "of real and of generated images"
    stopped = projected_critic.main(replace(settings, iterations=1))
    projected_critic.main(replace(settings, resume=stopped))
    assert equal(newest(through), newest(stopped))
    assert newest(through)["look"]["behind"]


def test_step_0_draws_the_sources_samples_and_a_run_goes_on_to_the_bit(settings, source):
    through = projected_critic.main(settings)
    stopped = projected_critic.main(replace(settings, iterations=1))
    projected_critic.main(replace(settings, resume=stopped))
    assert equal(newest(through), newest(stopped))
    from transfer.drawing import generator

    with Image.open(through / "samples" / "000000.png") as grid:
        shown = np.asarray(grid)[:64, :64].astype(int)
    z = torch.randn(1000, LATENT, generator=torch.Generator().manual_seed(settings.seed))[:64]
    with torch.no_grad():
        drawn = generator(Source.read(source))(z)[0].add(1).mul(127.5).round().permute(1, 2, 0).int().numpy()
    assert abs(shown - drawn).max() <= 1


def test_critic_and_heads_go_on_from_a_source_that_has_them(settings):
    first = projected_critic.main(replace(settings, source=None))
    second = replace(settings, source=first, iterations=1, learning_rate=1e-9, critic_learning_rate=1e-9)
    start, end = newest(first), newest(projected_critic.main(second))
    for part in ("D", "heads"):
        for key, tensor in start[part].items():
            if key.endswith(("weight", "bias")):
                torch.testing.assert_close(end[part][key], tensor, atol=1e-6, rtol=0)
    for layer in (1, 2):
        assert torch.equal(end["D"][f"conv{layer}.weight"], start["D"][f"conv{layer}.weight"])
    anew = newest(projected_critic.main(replace(second, keep_heads=False, seed=7)))
    assert not torch.allclose(anew["heads"]["0.last.weight"], start["heads"]["0.last.weight"], atol=1e-3)


def test_the_generator_learns_from_both_critics_in_the_parts_that_are_asked_for():
    balance, one, other = Balance(), torch.tensor([3.0, 4.0]), torch.tensor([0.0, 0.1])
    torch.testing.assert_close(balance(one, other, 1.0), torch.tensor([3.0, 9.0]))
    torch.testing.assert_close(balance(one, 10 * other, 0.0), one)
    later = balance(one, 10 * other, 1.0) - one  # ten times as sure as it was, and so heard more
    assert 5 < later[1] < 50


def test_heads_that_are_ahead_rest(settings, monkeypatch):
    asked, forward = [], projected_critic.Heads.forward
    monkeypatch.setattr(
        projected_critic.Heads, "forward", lambda heads, maps: asked.append(1) or forward(heads, maps)
    )
    start = newest(projected_critic.main(replace(settings, iterations=1, rest=0.0)))
    for rest, learns in ((100.0, False), (0.0, True)):
        asked.clear()
        end = newest(projected_critic.main(replace(settings, iterations=1, rest=rest, seed=0)))
        assert len(asked) == (3 if learns else 2), "what they say of the fakes holds until they have learned"
        assert bool(end["optimizers"]["optimizer_heads"]["state"]) is learns
        assert torch.equal(end["heads"]["0.last.weight"], start["heads"]["0.last.weight"]) is learns


def test_heads_can_rest_without_a_value_being_read():
    """Which is how they rest on a GPU."""
    torch.manual_seed(0)
    both = []
    for rests in ([False, True, False], [False, False]):
        x = torch.ones(3, requires_grad=True)
        optimizer = torch.optim.Adam([x], 0.1, betas=(0.0, 0.99), fused=True)
        slopes = iter((1.0, 3.0))
        for rest in rests:
            x.grad = torch.full((3,), 9.0 if rest else next(slopes))
            step_unless(torch.tensor(rest), optimizer)
        plain = optimizer.state_dict()["state"][0]
        both.append([x.detach(), plain["step"], plain["exp_avg"], plain["exp_avg_sq"]])
    assert all(map(torch.equal, *both)) and (both[0][0] < 1).all()


def test_a_score_by_the_network_that_the_critic_saw_through_says_so(settings, monkeypatch, tmp_path, capsys):
    from transfer import record

    monkeypatch.setattr(record, "SCORED", 4)
    monkeypatch.setenv("FID_CACHE", str(tmp_path / "cache"))
    scored = replace(settings, iterations=1, score_every=1)
    projected_critic.main(replace(scored, extractor=settings.features))
    assert "the critic saw through efficientnet_lite1" in capsys.readouterr().out
    projected_critic.main(replace(scored, extractor="efficientnet_lite0"))
    assert "saw through" not in capsys.readouterr().out


def test_a_kernel_is_divided_by_its_largest_singular_value():
    torch.manual_seed(0)
    kernel, spectral = torch.randn(6, 5, 4, 4), Spectral(6)
    for _ in range(50):
        normalised = spectral(kernel)
    largest = torch.linalg.svdvals(kernel.flatten(1))[0]
    torch.testing.assert_close(normalised, kernel / largest, rtol=1e-3, atol=1e-5)
    head = Head(5, 8, 4)
    assert [key for key in head.state_dict() if key.endswith("constraint.u")] == [
        "convs.0.constraint.u", "last.constraint.u",
    ]  # fmt: skip


def test_the_blur_keeps_the_mean_and_fades_to_nothing():
    x = torch.rand(2, 3, 32, 32)
    assert blurred(x, 0.0) is x
    y = blurred(x, 2.0)
    assert y.std() < 0.5 * x.std() and abs(y.mean() - x.mean()) < 0.02


def test_a_generator_that_would_not_learn_is_refused(settings):
    with pytest.raises(UserError, match="nothing would learn"):
        projected_critic.main(replace(settings, G=Split(5, 0, 0)))


def test_heads_that_have_won_is_a_warning(settings, monkeypatch, capsys):
    monkeypatch.setattr(projected_critic, "WON", 100.0)
    run = projected_critic.main(replace(settings, iterations=1))
    assert "the heads have won" in capsys.readouterr().out + (run / "log.jsonl").read_text()


def test_it_is_an_adapter_of_the_source(settings, source):
    run = projected_critic.main(settings)
    ends, read = applied(Source.read(source), [Adapter.of(run)], [1]), Source.read(run)
    for name, tensors in (("ema", read.generator), ("D", read.discriminator)):
        assert all(torch.equal(tensor, ends[name][key]) for key, tensor in tensors.items())


@pytest.mark.parametrize("steps, warned", [(2, True), (5, False)])
def test_from_nothing_fewer_critic_steps_than_wgans_are_warned_of(settings, capsys, steps, warned):
    projected_critic.main(replace(settings, source=None, critic_steps=steps, dry_run=True))
    assert ("made one image of all latents" in capsys.readouterr().out) == warned
