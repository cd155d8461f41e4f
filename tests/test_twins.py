"""The networks are written out in each script on purpose; this is the list of how the copies may differ."""

import ast

import pytest

from tests.runs import ROOT, SCRIPTS, TRANSFERS


def bodies(script: str) -> dict[str, str]:
    """The script's classes and functions as text without docstrings and comments."""
    tree = ast.parse((ROOT / script).read_text())
    found = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            for inner in ast.walk(node):
                if isinstance(inner, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(inner) is not None:
                    inner.body = inner.body[1:]
            found[node.name] = ast.dump(node)
    return found


def test_there_are_six_scripts():
    assert len(SCRIPTS) == 6


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("name", ["Generator", "Discriminator"])
def test_the_networks_are_the_same_in_every_script(script, name):
    assert bodies(script)[name] == bodies("wgan_64.py")[name]


@pytest.mark.parametrize("script", TRANSFERS)
def test_the_transfers_differ_in_their_defaults_only(script):
    assert bodies(script)["main"] == bodies("wgan_64_transferlearning.py")["main"]
