"""What the pages promise: the tests, links and commands that they name exist."""

import importlib
import inspect
import re

import pytest

from tests.runs import ROOT

PAGES = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / "pretrained_model").glob("*.md"),
    *(ROOT / "train_images").glob("*/README.md"),
]


def test_every_test_that_the_fault_table_names_exists():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "reliability.md").read_text()))
    defined = {
        name
        for path in (ROOT / "tests").glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    assert len(named) > 40 and named <= defined, named - defined


def anchors(page):
    """The headings of a page as links name them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_link_between_pages_leads_somewhere():
    links = [(page, link) for page in PAGES for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text())]
    links = [(page, *link.partition("#")[::2]) for page, link in links if "://" not in link]
    assert len(links) > 30
    for page, path, anchor in links:
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name} links to {path}"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {path}#{anchor}"


def modules():
    """Each python -m of the pages that is the project's own: the module and the flags that it is given."""
    own = r"python -m ((?:fid|transfer|methods|experiments|benchmarks|demo)\b[^\n`#]*)"
    lines = [line for page in PAGES for line in re.findall(own, page.read_text())]
    return sorted({(line.split()[0].rstrip(":"), *re.findall(r"--([\w-]+)", line)) for line in lines})


@pytest.mark.parametrize("command", modules(), ids=" ".join)
def test_every_module_that_a_page_runs_takes_the_flags_that_it_is_given(command):
    name, *flags = command
    found = importlib.import_module(name)
    if hasattr(found, "__path__"):
        found = importlib.import_module(f"{name}.__main__")
    known = set(getattr(getattr(found, "Settings", None), "__dataclass_fields__", ()))
    known |= {
        argument
        for _, each in inspect.getmembers(found, inspect.isfunction)
        for argument in inspect.signature(each).parameters
    }
    assert {flag.replace("-", "_") for flag in flags} <= known
