"""The plan that is suggested for new images, from how much each layer means to them."""

import pytest
import torch

from experiments import suggest
from experiments.suggest import Importance, Settings, agreement, importances, measured, proposal
from methods import projected_critic
from tests.conftest import LATENT, WIDTH
from transfer.plan import Named, Split, plan
from wgan_64_finetune import Generator


def alike(*shares):
    return [Importance(share, share) for share in shares]


def test_the_layer_that_matters_most_is_frozen_and_the_two_that_matter_least_are_tuned():
    names = proposal(alike(0.1, 0.2, 0.5, 0.05, 0.15))
    assert names == Named(["finetune", "adafm", "freeze", "finetune", "adafm"])


def test_the_fisher_information_is_the_mean_square_of_a_single_images_gradient():
    torch.manual_seed(0)
    G = Generator(LATENT, WIDTH).eval()
    z = torch.randn(2, 1, LATENT)
    found = importances(G, (G(each).sum() for each in z))
    kernels = [G.conv1.weight, G.conv2.weight, G.conv3.weight, G.conv4.weight, G.conv5.weight]
    squares = [0.0] * 5
    for each in z:
        for number, gradient in enumerate(torch.autograd.grad(G(each).sum(), kernels)):
            squares[number] += gradient.square().mean().item()
    assert [layer.fisher for layer in found] == pytest.approx([s / sum(squares) for s in squares], rel=1e-4)
    assert sum(layer.ratio for layer in found) == pytest.approx(1)


def test_a_measure_that_foretells_the_measured_order_agrees():
    found = {"G": alike(0.6, 0.1, 0.1, 0.1, 0.1), "D": alike(0.1, 0.1, 0.1, 0.1, 0.6)}
    keeps, half, loses = "freeze", "adafm", "finetune"
    rest = 4 * ["finetune"]
    kids = {
        (plan(first, *rest), Split(0, 0, 5)): kid for first, kid in ((keeps, 1.0), (half, 2.0), (loses, 3.0))
    }
    assert agreement(found, kids, "fisher")[0] == pytest.approx(-1)
    assert agreement(found, dict(zip(kids, [3.0, 2.0, 1.0], strict=True)), "ratio")[0] == pytest.approx(1)


def test_the_plans_of_the_anime_faces_have_been_measured():
    kids = measured("target_anime_96.zip", 2000)
    assert min(kids, key=kids.get)[0] == Split(0, 0, 5)
    assert (Split(0, 0, 5), Split(2, 0, 3)) in kids and Split(1, 2, 2) in {G for G, _ in kids}


def test_a_probe_ends_in_a_plan_and_its_command(faces, source, tmp_path, capsys):
    tiny = Settings(
        images=faces, source=source, iterations=1, batch_size=4, samples=2, out=tmp_path, device="cpu"
    )
    assert suggest.main(tiny) == suggest.BEST
    said = capsys.readouterr().out
    assert "G      5" in said and "D      1" in said
    assert "-m methods.projected_critic --images" in said
    assert (projected_critic.Settings().G, projected_critic.Settings().D) == suggest.BEST, "its default"
    assert "wgan_64_freeze_layers.py --G 0 0 5 --D 2 0 3 --images" in said


def test_a_dry_run_makes_nothing(tmp_path):
    assert suggest.main(Settings(out=tmp_path, dry_run=True)) is None
    assert not list(tmp_path.iterdir())
