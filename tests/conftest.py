"""What the tests share: `dassl` made importable, small real CLIPs with random weights, and configurations."""

import os
import re
import shutil
import tempfile

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start, too; two workers share two cores

import kdpl  # first: it makes `dassl` importable

import pytest  # isort: skip

pytest.register_assert_rewrite("support")


def pytest_addoption(parser):
    parser.addoption("--whole", action="store_true", help="try every value of the parameters that the suite samples")


def pytest_collection_modifyitems(config, items):
    """Leave out the values that a suite's sample leaves out (`mostly_slow`), but for a test that the command line names.

    With `-k NAME` of a learner its own tests are left: not those of KgCoOp for CoOp, nor of commands for MMA.
    """
    from kdpl.students import Student

    learner, left, left_out = config.option.keyword, [], []
    for item in items:
        sampled = item.get_closest_marker("whole") and item.nodeid not in config.args and not config.option.whole
        words = re.split(r"[^A-Za-z0-9]+|_", item.nodeid)
        other = learner in Student.known and learner not in words and learner.lower() not in words
        (left_out if sampled or other else left).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = left


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """Run the fast tests, `pytest -m "not slow"`, in two processes; `-n 0` runs them in one."""
    in_one_of_them = "PYTEST_XDIST_WORKER" in os.environ
    if config.option.markexpr == "not slow" and getattr(config.option, "numprocesses", 0) is None and not in_one_of_them:
        config.option.numprocesses = 2


def pytest_configure(config):
    """Share the drawn images of the embedded benchmark among all processes: drawing takes seconds for each data set."""
    if "KDPL_TEST_SCENES" not in os.environ:
        os.environ["KDPL_TEST_SCENES"] = folder = tempfile.mkdtemp(prefix="kdpl-scenes-")
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop("KDPL_TEST_SCENES", folder), ignore_errors=True))


@pytest.fixture(scope="session")
def golden_clips(tmp_path_factory):
    """Names of the golden student and teacher: `(student, teacher)`."""
    from support import save_clip

    folder = tmp_path_factory.mktemp("clips")
    student = save_clip(folder / "student.safetensors", 11, 64, 64, 3, 768, 16, 77, 49408, 512, 8, 3)
    teacher = save_clip(folder / "teacher.safetensors", 12, 96, 64, 4, 128, 8, 77, 49408, 128, 2, 4)
    return student, teacher


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory):
    """The caches of a test process are its own, but for the drawn images."""
    from support import own_cache

    previous = os.environ.get("KDPL_CACHE")
    os.environ["KDPL_CACHE"] = previous or own_cache(tmp_path_factory.mktemp("cache"))
    yield
    if previous is None:
        del os.environ["KDPL_CACHE"]


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium; the test is skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api")
    installed = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    with playwright.sync_playwright() as p:
        try:
            browser = p.chromium.launch(
                executable_path=installed, args=["--no-sandbox", "--host-resolver-rules=MAP evil.example 127.0.0.1"]
            )
        except playwright.Error as error:
            pytest.skip(f"no Chromium to run: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


__all__ = ["kdpl"]
