"""Splits and plans: what is accepted, what is refused, and which layer gets which policy."""

import itertools
import math
import pickle
import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import wgan_64
from tests.runs import ROOT, SPLITS
from transfer import UserError
from transfer.plan import Named, Split, plan, table
from transfer.policies import POLICIES


def test_all_21_splits_of_each_network_are_accepted():
    pairs = [(Split(*G), Split(*D)) for G, D in itertools.product(SPLITS, SPLITS)]
    assert len(set(pairs)) == 441


@pytest.mark.parametrize(
    "i, j, k",
    [split for split in itertools.product(range(-1, 3), repeat=3) if min(split) < 0 or not any(split)],
)
def test_less_than_nothing_is_refused_with_the_rule_and_an_example(i, j, k):
    with pytest.raises(UserError, match=r"at least 0.*for example 1 2 2"):
        Split(i, j, k)


@example([math.inf, 2, 3])
@example([True, 2, 2])
@given(st.lists(st.one_of(st.integers(), st.floats(), st.text(), st.none(), st.booleans()), max_size=6))
def test_nothing_but_a_split_is_a_split(counts):
    try:
        split = Split(*counts)
    except UserError:
        return
    assert len(split) == 3 and min(split) >= 0 and split.layers == sum(split) > 0
    assert not any(isinstance(count, (bool, float)) for count in counts), "neither counts anything"


def test_the_critic_is_frozen_on_the_image_side_and_the_generator_too():
    names = [policy.name for policy in Split(1, 3, 1).discriminator()]
    assert names == ["freeze", "adafm", "adafm", "adafm", "finetune"]
    names = [policy.name for policy in Split(1, 3, 1).generator("filter_selection")]
    assert names == ["finetune", *["filter_selection"] * 3, "freeze"]


def test_the_long_form_names_a_policy_for_each_layer():
    words = "freeze,adafm,singular_values,rank_one,finetune"
    layers = plan(words)
    assert layers == plan(*words.split(",")) == Named(words.split(","))
    assert [policy.name for policy in layers.generator()] == words.split(",")
    assert [policy.name for policy in layers.discriminator(frozen_norm="source")] == words.split(",")
    assert layers.discriminator(frozen_norm="source")[0].norm == "source"
    assert plan("1", "2", "2") == plan(1, 2, 2) == Split(1, 2, 2)
    assert layers.digits == "favot" and pickle.loads(pickle.dumps(layers)) == layers


def test_the_letters_of_policies_do_not_collide():
    assert len({policy.letter for policy in POLICIES.values()}) == len(POLICIES)


@pytest.mark.parametrize("words", ["freeze,", "freeze,adafm,adafm,finetune,melt"])
def test_a_wrong_long_form_is_refused_with_the_names(words):
    with pytest.raises(UserError, match=r"one of freeze, adafm.*for example freeze,adafm") as refusal:
        plan(words)
    assert all(name in str(refusal.value) for name in POLICIES)


def test_the_table_counts_what_learns():
    split = Split(1, 2, 2)
    text = table(
        G=wgan_64.Generator(policies=split.generator()),
        D=wgan_64.Discriminator(policies=split.discriminator()),
    )
    rows = {tuple(line.split()[:2]): line.split() for line in text.splitlines()[1:]}
    assert rows["G", "5"][-3:] == ["freeze", "0", "3,072"]
    # gamma and beta of 256 x 128 slices and the norm's scale and shift of 128 channels, beside the kernel
    assert rows["G", "3"][-3:] == ["adafm", f"{2 * 256 * 128 + 256:,}", f"{(2 + 16) * 256 * 128 + 256:,}"]
    assert rows["D", "5"][-3:] == ["finetune", "8,192", "8,192"]


@pytest.mark.parametrize(
    "words", [["2", "2", "2"], ["freeze,adafm"], ["1", "2"], ["1", "2", "2", "0"], ["a", "b", "c"]]
)
def test_the_command_line_refuses_a_wrong_split_before_torch_is_loaded(words):
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['wgan_64_transferlearning.py', '--G', *{words!r}]\n"
        "try: runpy.run_path('wgan_64_transferlearning.py', run_name='__main__')\n"
        "finally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout.strip() == "False"
    assert "1 2 2" in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
