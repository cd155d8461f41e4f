"""The page in the browser: what it reads and refuses, starts and stops, and how a person finds it."""

import contextlib
import json
import os
import shlex
import shutil
import socket
import sys
import threading
import time
import urllib.request
from urllib.error import HTTPError

import numpy as np
import pytest
import torch
import tyro

import wgan_64_scale_shift
from demo import runs
from demo.guard import refusal
from demo.models import Shelf
from demo.pictures import figure, row
from demo.runs import Starter, State, stop
from methods import several_targets
from tests.runs import tiny
from tests.stand_ins import images, write
from transfer import UserError, drawing
from transfer.__main__ import adapter
from transfer.checkpoints import Checkpoints
from transfer.folder import Folder, holder
from transfer.settings import plain, registry
from transfer.shared import Source

MODEL, RUN = "pretrained_model/tiny.safetensors", "target_domain/0001-wgan_64_scale_shift-G050-D050"


@pytest.fixture(scope="module")
def project(faces, source, tmp_path_factory):
    """A folder with what a project's has: a model, images, a run, and an adapter of another run."""
    root = tmp_path_factory.mktemp("project")
    for part in ("pretrained_model", "train_images"):
        (root / part).mkdir()
    shutil.copy(source, root / MODEL)
    shutil.copytree(faces, root / "train_images" / "mine")
    own = {"learning_rate": 0.02, "iterations": 3, "device": "cpu"}
    for out, seed in ((root / "target_domain", 0), (root / "elsewhere", 1)):
        script, settings = tiny("wgan_64_scale_shift", faces, root / MODEL, out, seed=seed, **own)
        run = script.main(settings)
    adapter(run, root / "other.safetensors")
    shutil.rmtree(root / "elsewhere")
    return root


@pytest.fixture
def shelf(project, tmp_path):
    return Shelf([tmp_path], project)


# ----------------------------------------------------------------------------------------------------------
# Who is answered, and what is read.


@pytest.mark.parametrize(
    "host, origin, path, refused",
    [
        ("127.0.0.1:7860", None, "/", False),
        ("localhost:7860", "http://localhost:7860", "/gradio_api/queue/join", False),
        ("evil.example", None, "/", True),
        ("127.0.0.1.evil.example:7860", None, "/", True),
        ("", None, "/", True),
        ("[", None, "/", True),
        ("127.0.0.1:7860", "http://evil.example", "/gradio_api/queue/join", True),
        ("127.0.0.1:7860", "null", "/gradio_api/queue/join", True),
        ("127.0.0.1:7860", "http://127.0.0.1:9999", "/gradio_api/queue/join", True),
        ("127.0.0.1:7860", "http://127.0.0.1:7860", "/gradio_api/upload", True),
    ],
)
def test_only_this_machines_own_page_is_answered(host, origin, path, refused):
    headers = [(b"host", host.encode())] + ([(b"Origin", origin.encode())] if origin else [])
    assert bool(refusal({"headers": headers, "path": path})) == refused
    assert refusal({"headers": [*headers, (b"host", b"localhost")], "path": path}), "two hosts"


def test_paths_outside_the_projects_folders_are_refused_in_one_sentence(shelf, project, tmp_path):
    (project / "way_out").symlink_to("/etc")
    for name in ("/etc/passwd", "../..", "~", "way_out", "train_images/../../.."):
        with pytest.raises(UserError, match="outside of the project's folder") as error:
            shelf.model(name)
        assert "\n" not in str(error.value)
    (project / "way_out").unlink()
    assert shelf.path(tmp_path / "more") == tmp_path / "more", "a folder that --folders names"
    assert shelf.path("train_images//mine") == project.resolve() / "train_images" / "mine", "as some type it"


def test_what_is_there_is_found_and_what_is_broken_is_named(shelf, project, tmp_path):
    (tmp_path / "cut.safetensors").write_bytes((project / MODEL).read_bytes()[:-9])
    (tmp_path / "0007-run" / "checkpoints").mkdir(parents=True)
    found = shelf.look()
    assert found.models[MODEL] == "tiny (shipped)" and RUN in found.models
    assert found.targets.keys() == {RUN, "other.safetensors"}
    assert found.faults.keys() == {str(tmp_path / "cut.safetensors"), str(tmp_path / "0007-run")}
    assert found.adapters == {"other.safetensors"} and list(found.models) == [MODEL, "other.safetensors", RUN]
    assert shelf.images() == {"train_images/mine": "mine"}
    assert shelf.runs().index(str(tmp_path / "0007-run")) < shelf.runs().index(RUN), "the newest is first"


def test_a_model_is_read_once_and_again_when_it_has_changed(shelf, project, monkeypatch):
    reads, read = [], Source.read
    monkeypatch.setattr(
        Source, "read", lambda path, *best, **label: reads.append(path) or read(path, *best, **label)
    )
    first = shelf.model(MODEL)
    assert shelf.model(MODEL) is first and len(reads) == 1
    mixed = shelf.mixed(["other.safetensors"], [0.5])
    assert len(reads) == 1 and shelf.source_of(shelf.adapter("other.safetensors")) is first
    assert mixed.generator["conv2.weight"].data_ptr() != 0
    os.utime(project / MODEL, (1, 1))
    assert shelf.model(MODEL) is not first and len(reads) == 2


# ----------------------------------------------------------------------------------------------------------
# Pictures.


def test_the_shares_go_from_the_source_to_the_run(shelf, project):
    z = drawing.latents(shelf.model(MODEL), 3, 0)
    source, run = (np.asarray(row(shelf.model(name), z)) for name in (MODEL, RUN))
    assert not np.array_equal(source, run)
    for share, wanted in ((0, source), (1, run)):
        assert np.array_equal(np.asarray(row(shelf.mixed([RUN], [share]), z)), wanted)
    assert np.array_equal(
        np.asarray(row(shelf.model("other.safetensors"), z)),
        np.asarray(row(shelf.mixed(["other.safetensors"], [1]), z)),
    )
    both = shelf.mixed([RUN, "other.safetensors"], [0.5, 0.5]).generator["conv2.gamma"]
    own = [shelf.adapter(name).networks["ema"]["conv2.gamma"] for name in (RUN, "other.safetensors")]
    torch.testing.assert_close(both, sum(own) / 2)


@pytest.fixture(scope="module")
def domains(project, tmp_path_factory):
    """A run with two labels, one called like a part of the run's folder."""
    folder = tmp_path_factory.mktemp("domains")
    for seed, label in enumerate(("owls", "samples")):
        write(folder / "images" / label, images(4, seed))
    small = {"batch_size": 4, "stretch": 64, "channels": 8, "device": "cpu", "learning_rate": 0.02}
    given = {"source": project / MODEL, "images": folder / "images", "out": folder / "runs", "iterations": 2}
    return several_targets.main(several_targets.Settings(**given, **small))


def test_a_run_with_several_labels_is_a_model_and_a_target_for_each(project, domains):
    shelf = Shelf([domains.parent], project)
    names = [f"{domains} // owls", f"{domains} // samples"]
    found = shelf.look()
    assert [found.models[name] for name in names] == [f"{domains.name} (owls)", f"{domains.name} (samples)"]
    assert set(names) < found.targets.keys() and str(domains) not in found.models
    z = drawing.latents(shelf.model(MODEL), 3, 0)
    owls, others = (np.asarray(row(shelf.model(name), z)) for name in names)
    assert np.array_equal(owls, np.asarray(row(Source.read(domains, label="owls"), z)))
    assert not np.array_equal(owls, others)
    assert np.array_equal(np.asarray(row(shelf.mixed(names, [1, 0]), z)), owls)


def test_a_labels_pictures_are_called_by_it(project, domains):
    pytest.importorskip("gradio", reason="python -m demo needs requirements-demo.txt")
    from demo import draw

    shown = draw.pictures(Shelf([domains.parent], project), f"{domains} // owls", 0, 4, 1.0)
    assert f"{domains.name}-owls-seed0" in shown


def test_a_pictures_html_holds_it_and_shows_names_as_text(shelf):
    picture = row(shelf.model(MODEL), drawing.latents(shelf.model(MODEL), 2, 0))
    html = figure(picture, "<b>", 'a"b')
    assert "&lt;b&gt;" in html and 'download="a&quot;b.png"' in html and "data:image/png;base64," in html
    assert "data:image/webp;base64," in figure([picture, picture.rotate(180)], "walk", "walk")


# ----------------------------------------------------------------------------------------------------------
# Runs.


def test_a_run_tells_how_far_it_is_and_by_which_command(project, faces):
    state = State.of(project / RUN)
    assert (state.step, state.iterations, state.process) == (3, 3, None)
    assert state.grid == project / RUN / "samples" / "000003.png" and state.seconds_left == 0
    assert {line["loss"] for line in state.losses} == {"wasserstein", "generator"}
    _, script, *words = shlex.split(state.command)
    assert script.endswith("wgan_64_scale_shift.py")
    again = tyro.cli(wgan_64_scale_shift.Settings, args=words, registry=registry())
    assert plain(again) == json.loads((project / RUN / "settings.json").read_text())["settings"]
    assert state.resume.endswith(f"--resume {project / RUN}")


def test_a_run_in_the_making_tells_of_what_is_there(project, tmp_path):
    run = tmp_path / "0001-run"
    run.mkdir()
    folder = Folder(run, runs.ROOT / "wgan_64.py")
    with pytest.raises(UserError, match="is beginning"):
        State.of(run)
    folder.release()
    with pytest.raises(UserError, match="missing or damaged"):
        State.of(run)
    shutil.copy(project / RUN / "settings.json", run)
    assert State.of(run).step == 0 and State.of(run).seconds_left is None
    lines = [{"step": 1, "generator": 2.0, "images_per_second": 8.0}, {"step": 1, "warning": "look"}]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 2, "gen')
    state = State.of(run)
    assert state.step == 1 and state.warning == "look"
    assert state.seconds_left == (3 - 1) * 4 * 2 / 8, "4 images in each of 2 critic steps, 8 a second"


def test_who_holds_a_run_is_told_and_only_while_it_does(tmp_path):
    assert holder(tmp_path) is None and not (tmp_path / ".lock").exists()
    folder = Folder(tmp_path, runs.ROOT / "wgan_64.py")
    assert holder(tmp_path) == os.getpid()
    (tmp_path / ".owner").write_text("process 1 on another-machine since then", encoding="utf-8")
    assert holder(tmp_path) is None
    folder.release()
    assert holder(tmp_path) is None
    with pytest.raises(UserError, match="has ended already"):
        stop(tmp_path)


def until(what, seconds=180):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it has not happened"
        time.sleep(0.1)
    return found


@pytest.fixture
def starter():
    own = Starter()
    yield own
    if own.running():
        own.process.kill()
        own.process.wait()


def test_a_run_that_is_started_shows_up_is_stopped_and_goes_on(starter, source, faces, tmp_path):
    line = starter.line("wgan_64_scale_shift.py", faces, 20_000)
    starter.start(f"{line} --source {source} --out {tmp_path} --device cpu --batch-size 2 --no-fast")
    with pytest.raises(UserError, match="still going on"):
        starter.start(line)
    run = until(lambda: starter.found(sorted(tmp_path.glob("0*"))))
    assert starter.found([run]) is None, "it is new only once"
    until(lambda: (run / "log.jsonl").exists() and State.of(run).step >= 10)
    assert os.getpgid(starter.process.pid) == starter.process.pid, "Ctrl-C at the page does not reach it"
    stop(run)
    assert starter.process.wait(180) == 128 + 15 and not starter.running()
    stopped = Checkpoints(run).newest()[1]["step"]
    assert stopped >= 10 and State.of(run).process is None
    (tmp_path / "0002-newer").mkdir()
    starter.start(State.of(run).resume)
    assert until(lambda: starter.found(sorted(tmp_path.glob("0*"), reverse=True))) == run
    until(lambda: State.of(run).step > stopped)
    stop(run)
    assert starter.process.wait(180) == 128 + 15


def test_a_run_that_cannot_begin_says_why(starter):
    starter.start(shlex.join([sys.executable, "-c", "import sys; sys.exit('there is nothing')"]))
    starter.process.wait(180)
    with pytest.raises(UserError, match=r"has not begun.*there is nothing"):
        starter.found([])
    assert starter.found([]) is None, "it is said once"


# ----------------------------------------------------------------------------------------------------------
# In a browser.


@contextlib.contextmanager
def served(shelf):
    """The address of a page of what is on a shelf, while it is served."""
    import uvicorn

    from demo import page

    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        config = uvicorn.Config(page.application(shelf), log_level="warning", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [own]})
        thread.start()
        until(lambda: server.started)
        yield f"http://127.0.0.1:{own.getsockname()[1]}/"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def address(project):
    """Where the page of the project is served, with a way of training that takes seconds."""
    pytest.importorskip("gradio", reason="python -m demo needs requirements-demo.txt")
    from demo import train

    made, more = [], f" --source {project / MODEL} --out {project / 'target_domain'} --device cpu"

    class Short(Starter):
        def __init__(self):
            super().__init__()
            made.append(self)

        @staticmethod
        def line(*given):
            return f"{Starter.line(*given)}{more} --batch-size 2 --no-fast"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "WAYS", {"wgan_64_scale_shift.py": "Scale and shift"})
        patch.setattr(train, "Starter", Short)
        with served(Shelf([], project)) as there:
            yield there
        for each in filter(Starter.running, made):
            each.process.kill()
            each.process.wait()


def test_the_server_refuses_other_hosts_other_sites_and_other_files(address):
    def status(path="", data=None, **headers):
        request = urllib.request.Request(address + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
                return answer.status
        except HTTPError as error:
            return error.code

    assert status() == 200 and status(Origin=address.rstrip("/")) == 200
    assert status(Host="evil.example") == status(Origin="http://evil.example") == 403
    join = "gradio_api/queue/join"
    assert status(join, b"{}", Origin="null") == 403 != status(join, b"{}")
    assert status("gradio_api/upload", b"") == 403
    for path in ("/etc/passwd", runs.ROOT / "README.md"):
        assert status(f"gradio_api/file={path}") in (403, 404)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright drives a browser")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("there is no chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, address):
    """Opens the page at a width; in the end nothing was asked of elsewhere, and nothing failed."""
    asked, failed = [], []

    def open_at(width):
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.set_default_timeout(180_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.goto(address)
        page.wait_for_selector(".shown img")
        return page

    yield open_at
    assert asked and all(url.startswith((address, "data:", "blob:")) for url in asked), asked
    assert not failed


def pictures(page):
    """The pictures that are in sight, by their captions."""
    return page.evaluate(
        "Object.fromEntries([...document.querySelectorAll('figure')].filter(each => each.offsetParent)"
        ".map(each => [each.querySelector('figcaption').innerText, each.querySelector('img')?.src]))"
    )


def shown(page, caption):
    """The picture under a caption that begins so, once it is there."""

    def found():
        page.wait_for_timeout(50)
        return next((image for text, image in pictures(page).items() if text.startswith(caption)), None)

    return until(found)


@pytest.mark.parametrize("width", [400, 1400])
def test_a_person_draws_saves_and_mixes(opened, width):
    page = opened(width)
    first = shown(page, "tiny, seed 0")
    page.get_by_role("button", name="Draw others").click()
    assert shown(page, "tiny, seed 1") != first
    with page.expect_download() as download:
        page.get_by_text("Save as PNG").locator("visible=true").click()
    assert download.value.suggested_filename == "tiny-seed1.png"
    page.get_by_label("Seed").locator("visible=true").fill("")
    assert shown(page, "tiny, seed 0") == first, "a seed that is cleared is 0"
    page.get_by_role("tab", name="Mix").click()
    source, target = shown(page, "The source: tiny"), shown(page, "The target")
    slider = page.locator("input[type=range]").locator("visible=true")
    assert slider.count() == 1 and "Share of" in slider.get_attribute("aria-label")
    for share, wanted in (("0", source), ("1", target)):
        slider.fill(share)
        assert shown(page, f"Your mix: tiny + {share} ×") == wanted
    assert source != target
    assert page.evaluate("document.documentElement.scrollWidth") <= width


CLOCK = """let began
const images = () => [...document.querySelectorAll('.shown img')].filter(each => each.offsetParent)
const sources = () => images().map(each => each.src).join()
addEventListener('pointerup', () => { began = performance.now() }, true)
addEventListener('pointerdown', () => {
  const before = sources()
  began = performance.now()
  window.took = new Promise(done => new MutationObserver(async (_, observer) => {
    if (sources() === before) return
    observer.disconnect()
    await Promise.all(images().map(each => each.decode()))
    done((performance.now() - began) / 1000)
  }).observe(document.body, {subtree: true, childList: true, attributes: true, attributeFilter: ['src']}))
}, true)"""
TOOK = "Promise.race([took, new Promise((_, fail) => setTimeout(fail, 60000, 'nothing was drawn'))])"


def redraws(page, times=10):
    """Seconds from the click on Draw others, and from letting go the slider of a mix, to the new pictures."""
    page.evaluate(CLOCK)
    button = page.get_by_role("button", name="Draw others")
    drawn = [button.click() or page.evaluate(TOOK) for _ in range(times)]
    page.get_by_role("tab", name="Mix").click()
    shown(page, "Your mix")
    page.wait_for_timeout(1000)
    slider = page.locator("input[type=range]").locator("visible=true").first
    wide = slider.bounding_box()["width"]
    places = [wide * (0.3 + 0.4 * (each % 2)) for each in range(times)]  # not below the thumb
    mixed = [slider.click(position={"x": x, "y": 4}) or page.evaluate(TOOK) for x in places]
    return drawn, mixed


def test_a_redraw_at_full_width_is_quick(browser, tmp_path):
    with served(Shelf([runs.ROOT / "pretrained_model"], tmp_path)) as address:
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.goto(address)
        page.wait_for_selector(".shown img")
        began, (drawn, mixed) = time.process_time(), redraws(page)
        used = (time.process_time() - began) / len(drawn + mixed)
        assert used < 0.5, f"{used:.2f} s of a core for the server's part of a redraw"
        assert min(drawn) < 10 > min(mixed), "a second of a core, where ten others are at work"


def test_the_page_names_what_is_broken(opened, project):
    cut = project / "cut.safetensors"
    cut.write_bytes((project / MODEL).read_bytes()[:-9])
    page = opened(400)
    page.get_by_text("Not usable: 1 file or run").click()
    page.get_by_text("cut.safetensors: no whole safetensors file").wait_for()
    cut.unlink()


def test_three_clicks_start_a_run_that_is_seen_and_stopped(opened, project):
    page = opened(1400)
    page.get_by_role("tab", name="Train").click()
    images, command = page.get_by_label("Images"), page.locator("textarea").locator("visible=true")

    def commands(part):
        return until(
            lambda: page.wait_for_timeout(50) or any(part in each.input_value() for each in command.all())
        )

    images.fill("/etc"), images.press("Enter")
    assert commands("outside of the project's folder")
    images.click()
    page.get_by_role("option", name="mine").click()
    assert commands("train_images/mine")
    page.get_by_label("Iterations").fill("20000")
    assert commands("--iterations 20000")
    page.get_by_role("button", name="Start").click()
    page.get_by_role("button", name="Stop and save").click()
    page.get_by_text(": stopped.").wait_for()
    (run,) = (project / "target_domain").glob("0002-*")
    stopped = State.of(run).step
    assert State.of(run).process is None and commands(f"--resume {run}")
    page.get_by_role("button", name="Go on").click()
    page.get_by_text(": running").wait_for()
    until(lambda: State.of(run).step > stopped)
    page.get_by_role("button", name="Stop and save").click()
    page.get_by_text(": stopped.").wait_for()
