"""What is published: the sdist and the wheel, built from copies of the tracked files among strays."""

from __future__ import annotations

import ast
import email
import inspect
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import Message
from importlib import import_module
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import aiohttp_store
from aiohttp_store import storages

from ..conftest import PATIENCE, Servers
from ..support.pages import PAGES, ROOT, blocks

PACKAGE = Path(aiohttp_store.__file__).parent
ABOUT = f"aiohttp_store-{aiohttp_store.__version__}"
STRAYS = (
    *(".coverage", ".hypothesis/tmp", ".mypy_cache/x.json", ".venv/lib/x.py", "demo.db", "demo.db-wal", "notes.txt"),
    *("aiohttp_store/__pycache__/url.cpython-311.pyc", "aiohttp_store/notes.txt", "build/lib/aiohttp_store/old.py"),
    *("benchmarks/node_modules/redis/index.js", "benchmarks/package-lock.json", "benchmarks/results.json"),
    *("dist/old.whl", "docs/_build/html/index.html", "examples/demo.db", "tests/__pycache__/app.cpython-311.pyc"),
)


def run(*command: str | Path, cwd: Path) -> str:
    """Run a program that sees nothing of this run of pytest, or of the checkout."""
    hidden = ("PYTHONPATH", "PYTEST_", "COV_", "COVERAGE_")
    done = subprocess.run(
        command,
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if not name.startswith(hidden)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def tracked() -> set[str]:
    """Give the files that git tracks; in an sdist, those that it was made of."""
    if (ROOT / ".git").exists():
        return set(run("git", "-c", "safe.directory=*", "ls-files", cwd=ROOT).splitlines())
    sources = (ROOT / "aiohttp_store.egg-info/SOURCES.txt").read_text().splitlines()
    return {name for name in sources if not name.startswith("aiohttp_store.egg-info/")}


def place(name: str) -> Path:
    """Give a tracked file; the package may be the installed one."""
    return PACKAGE.parent / name if name.startswith("aiohttp_store/") else ROOT / name


@dataclass(frozen=True)
class Built:
    """What was built."""

    sdist: Path
    wheel: Path

    def unpack(self, folder: Path) -> Path:
        # Python's own way has a filter in 3.11.4 and later alone, and warns without one in later ones.
        subprocess.run(["tar", "-xzf", str(self.sdist), "-C", str(folder)], check=True)
        return folder / ABOUT

    def metadata(self) -> Message:
        with zipfile.ZipFile(self.wheel) as archive:
            return email.message_from_bytes(archive.read(f"{ABOUT}.dist-info/METADATA"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    tree, dist = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for name in tracked():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(place(name), tree / name)
    for name in STRAYS:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("stray")
    # An environment of its own would need a network.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, cwd=tree)
    return Built(next(dist.glob("*.tar.gz")), next(dist.glob("*.whl")))


def make_environment(folder: Path, *wheels: Path) -> Path:
    """Install wheels where all else that is installed here is seen as well, and give the interpreter."""
    venv.create(folder, with_pip=False)
    python = folder / "bin/python"
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "others.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "--quiet")
    run(*pip, "install", "--no-deps", "--no-index", "--ignore-installed", *wheels, cwd=folder)
    return python


def test_an_index_would_take_both(built: Built) -> None:
    assert run(sys.executable, "-m", "twine", "--no-color", "check", "--strict", built.sdist, built.wheel, cwd=ROOT)


def test_the_sdist_holds_what_git_tracks_and_the_wheel_the_package_alone(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        names = {name.removeprefix(f"{ABOUT}/") for name in archive.getnames() if archive.getmember(name).isfile()}
    made = {"PKG-INFO", "setup.cfg", *(name for name in names if name.startswith("aiohttp_store.egg-info/"))}
    assert names == tracked() | made
    about = ("METADATA", "RECORD", "WHEEL", "licenses/LICENSE", "top_level.txt")  # and no entry points
    with zipfile.ZipFile(built.wheel) as wheel:
        assert set(wheel.namelist()) == {
            *(name for name in names if re.fullmatch(r"aiohttp_store/.*\.py|aiohttp_store/py\.typed", name)),
            *(f"{ABOUT}.dist-info/{name}" for name in about),
        }


def test_the_metadata_tell_what_setup_py_and_the_package_know(built: Built) -> None:
    metadata = built.metadata()
    words = [node for node in ast.walk(ast.parse((ROOT / "setup.py").read_text())) if isinstance(node, ast.keyword)]
    (extras,) = (word.value for word in words if word.arg == "extras_require")
    assert isinstance(extras, ast.Dict)
    assert metadata.get_all("Provides-Extra") == [ast.literal_eval(key) for key in extras.keys if key]
    assert {*storages._EXTRAS.values(), "speedups", "all"} == set(metadata.get_all("Provides-Extra", []))
    assert metadata["Version"] == aiohttp_store.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Description-Content-Type"] == "text/x-rst"
    assert metadata.get_payload(decode=True) == (ROOT / "README.rst").read_bytes()
    oldest = metadata["Requires-Python"].removeprefix(">=")
    classifiers = metadata.get_all("Classifier", [])
    assert "Typing :: Typed" in classifiers
    assert oldest == next(line.rpartition(" ")[2] for line in classifiers if ":: 3." in line)
    assert f'target-version = "py{oldest.replace(".", "")}"' in (ROOT / "pyproject.toml").read_text()


def test_the_version_stands_in_one_place() -> None:
    version = re.compile(rf"(?<![\w.]){re.escape(aiohttp_store.__version__)}(?![\w.])")
    others = {
        "CHANGES.rst",
        "constraints.txt",  # other packages' versions
        "constraints-oldest.txt",
        "docs/comparison.rst",  # whose test compares it
        "docs/performance.rst",  # other numbers
        "docs/performance.svg",
        "requirements-dev-alone.txt",
    }
    texts = {name: place(name).read_bytes().decode(errors="ignore") for name in tracked() - others}
    assert [name for name, text in texts.items() if version.search(text)] == ["aiohttp_store/__init__.py"]


def pinned(name: str) -> dict[str, Version]:
    _, *lines = (ROOT / name).read_text().splitlines()
    pairs = [line.split("==") for line in lines]  # and nothing else, as an address
    return {canonicalize_name(package): Version(version) for package, version in pairs}


def needed(pins: dict[str, Version], *wanted: str) -> set[str]:
    """Return the names of these packages and of all that they need; what has another version here may need others."""
    waiting, found = [Requirement(one) for one in wanted], set()
    while waiting:
        requirement = waiting.pop()
        package = canonicalize_name(requirement.name), *sorted(requirement.extras)
        if package not in found:
            found.add(package)
            if package[0] in pins and Version(version(package[0])) != pins[package[0]]:
                continue
            needs = [Requirement(one) for one in requires(package[0]) or ()]
            extras = [{"extra": extra} for extra in ("", *requirement.extras)]
            waiting += [one for one in needs if one.marker is None or any(map(one.marker.evaluate, extras))]
    return {name for name, *_ in found}


@pytest.mark.parametrize("constraints", ["constraints.txt", "constraints-oldest.txt"])
def test_all_that_make_installs_is_pinned(constraints: str) -> None:
    lists = [(ROOT / name).read_text() for name in ("requirements-dev.txt", "requirements-dev-alone.txt")]
    asked = [line for listed in lists for line in listed.splitlines() if not line.startswith("#")]
    server = re.findall(r"PIP install --quiet (\S+);", (ROOT / "tests/install-servers").read_text())
    pins = pinned(constraints)
    names = needed(pins, "aiohttp_store[all]", *asked) | {*server, "wheel"}
    assert names - {"aiohttp-store"} - pins.keys() == set()
    assert len(server) == 1


def test_the_oldest_versions_that_are_pinned_are_those_that_setup_py_allows(built: Built) -> None:
    oldest = pinned("constraints-oldest.txt")
    texts = built.metadata().get_all("Requires-Dist", [])
    assert len(texts) > 10
    for requirement in map(Requirement, texts):
        (bound,) = (one.version for one in requirement.specifier if one.operator == ">=")
        assert oldest[canonicalize_name(requirement.name)] == Version(bound), requirement


@pytest.mark.parametrize(
    ("choice", "environment", "constraints"),
    [
        ("", ".venv", "constraints.txt"),
        ("LATEST=1", ".venv-latest", None),
        ("OLDEST=1", ".venv-oldest", "constraints-oldest.txt"),
    ],
)
def test_make_installs_pinned_versions_once_and_others_on_request_and_apart(
    choice: str, environment: str, constraints: str | None, tmp_path: Path
) -> None:
    for name in ("Makefile", "setup.py", "tests", *(path.name for path in ROOT.glob("*.txt"))):
        (tmp_path / name).symlink_to(ROOT / name)
    outside = ("env", "--unset=MAKEFLAGS", "--unset=MAKELEVEL")  # of the make that runs these tests
    make = (*outside, "make", "--dry-run", "test", "LATEST=", "OLDEST=", "ARGS=", *choice.split())
    said = run(*make, cwd=tmp_path)
    installing = [line for line in said.splitlines() if "/python -m pip" in line]
    assert len(installing) == 4
    for line in installing:
        assert f" {environment}/bin/python -m pip" in line
        held = {*re.findall(r"PIP_(?:BUILD_)?CONSTRAINT=([^\s']+)", line)}
        assert held == ({constraints} if constraints else set())
    for made in re.findall(r"^touch (.+)", said, re.MULTILINE):
        (tmp_path / made).parent.mkdir(exist_ok=True)
        (tmp_path / made).touch()
    again = run(*make, cwd=tmp_path).splitlines()
    assert len(again) == 2
    assert "install-servers" in again[0]  # which looks whether they are there
    assert again[1].startswith(f"{environment}/bin/pytest ")


def test_the_tests_of_the_sdist_pass_against_the_installed_wheel(built: Built, tmp_path: Path) -> None:
    tests = built.unpack(tmp_path)
    shutil.rmtree(tests / "aiohttp_store")
    python = make_environment(tmp_path / "environment", built.wheel)
    said = run(python, "-c", "import aiohttp_store; print(aiohttp_store.__file__)", cwd=tests)
    assert Path(said).is_relative_to(tmp_path / "environment")
    some = ("tests/specification/test_session.py", "tests/units/test_cookie.py", "tests/specification/test_requests.py")
    said = run(python, "-m", "pytest", "-q", "-pno:cacheprovider", *some, "-k", "memory or test_cookie", cwd=tests)
    assert re.search(r"^\d{2,} passed", said, re.MULTILINE), said


def test_type_checkers_see_the_types_of_the_installed_wheel(built: Built, tmp_path: Path) -> None:
    python = make_environment(tmp_path / "environment", built.wheel)
    (tmp_path / "app.py").write_text(
        "from aiohttp import web\nimport aiohttp_store\nreveal_type(aiohttp_store.setup(web.Application()))\n"
    )
    cache = ("--config-file", os.devnull, "--cache-dir", tmp_path / "cache")
    said = run(python, "-m", "mypy", "--strict", *cache, tmp_path / "app.py", cwd=tmp_path)
    assert 'Revealed type is "None"' in said


def test_a_built_package_of_somebody_else_adds_a_scheme(built: Built, servers: Servers, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (block,) = blocks(PAGES["docs/writing-a-storage.rst"], "toml")
    (other / "pyproject.toml").write_text(block.code)
    (module,) = re.findall(r'py-modules = \["(\w+)"\]', block.code)
    source = (ROOT / "examples/postgresql_storage.py").read_text()
    (other / f"{module}.py").write_text(source.replace('aiohttp_store.register("postgresql", PostgreSQLStorage)', ""))
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path, cwd=other)
    python = make_environment(tmp_path / "environment", built.wheel, *tmp_path.glob("*.whl"))
    program = (
        "import asyncio, sys, aiohttp_store\n"
        "async def main():\n"
        "    async with aiohttp_store.open_storage(sys.argv[1]) as storage:\n"
        "        await storage.save([aiohttp_store.Write('key', None, b'kept', 60)])\n"
        "        print(type(storage).__module__, (await storage.load(['key']))[0].data)\n"
        f"assert {module!r} not in sys.modules\n"
        "asyncio.run(main())\n"
    )
    url = f"{servers.url('postgresql')}?table=packaged&timeout={PATIENCE}"
    assert run(python, "-c", program, url, cwd=tmp_path).split() == [module, "b'kept'"]


def test_importing_the_package_imports_no_driver_and_little_else() -> None:
    # orjson at once, since whether it is there decides how every session is written
    loaded = "import sys, aiohttp.web, orjson; before = set(sys.modules); import aiohttp_store"
    program = f"{loaded}; print(*set(sys.modules) - before)"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    said = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, env=environment).stdout
    imported = set(said.decode().split())
    ours = {name for name in imported if name.partition(".")[0] == "aiohttp_store"}
    assert not {name for name in ours if re.search(r"compat|testing|cookie_manager|storages\.(?!memory)", name)}
    assert imported - ours <= {"dataclasses", "hmac", "secrets"}


def test_make_clean_removes_all_that_git_ignores(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for ignored in (ROOT / ".gitignore").read_text().replace("*", "x").split():
        for folder in ("", "tests/deep") if ignored == "__pycache__/" else ("",):
            made = tmp_path / folder / ignored
            made = made / "file" if ignored.endswith("/") else made
            made.parent.mkdir(parents=True, exist_ok=True)
            made.touch()
    run("make", "clean", cwd=tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "Makefile"]


def layer_of(name: str, layers: Sequence[Sequence[str]]) -> int:
    """Return the number of the layer that names a file, or otherwise its folder."""
    for wanted in (name, f"{name.partition('/')[0]}/"):
        for number, layer in enumerate(layers):
            if wanted in layer:
                return number
    raise AssertionError(f"no row of LAYERS in docs/tables.py names {name}")


def imported_by(name: str) -> set[str]:
    """Give the files that one imports when it is itself imported."""
    found = set()
    for node in ast.parse((PACKAGE / name).read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = (PACKAGE / name).parents[node.level - 1]
            for module in [node.module] if node.module else [alias.name for alias in node.names]:
                path = folder.joinpath(*module.split("."))
                path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
                found.add(str(path.relative_to(PACKAGE)))
    return found


def test_each_file_imports_only_what_stands_above_it_in_the_guide() -> None:
    layers = runpy.run_path(str(ROOT / "docs/tables.py"))["LAYERS"]
    for path in PACKAGE.rglob("*.py"):
        name = str(path.relative_to(PACKAGE))
        for other in imported_by(name):
            assert layer_of(other, layers) <= layer_of(name, layers), f"{name} imports {other}"


def test_no_class_overrides_another_ones_private_method() -> None:
    classes: set[type] = set()
    for path in PACKAGE.rglob("*.py"):
        module = import_module(".".join((PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts)))
        classes |= {one for _, one in inspect.getmembers(module, inspect.isclass) if one.__module__ == module.__name__}
    for one in classes:
        for base in one.__mro__[1:]:
            if base in classes:
                shared = {name for name, value in vars(one).items() if callable(value)} & vars(base).keys()
                assert not {name for name in shared if name.startswith("_") and not name.endswith("_")}, one


def test_a_session_knows_nothing_of_storages_and_a_storage_nothing_of_sessions() -> None:
    assert not [name for name in imported_by("session.py") if name.startswith("storage")]
    for path in (PACKAGE / "storages").glob("*.py"):
        assert not imported_by(f"storages/{path.name}") & {"session.py", "_engine/manager.py"}, path


def test_what_runs_before_a_commit_is_make_lint() -> None:
    (recipe,) = re.findall(r"^lint:.*\n((?:\t.+\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    hooks = re.findall(r"^ +entry: (.+)$", (ROOT / ".pre-commit-config.yaml").read_text(), re.MULTILINE)
    assert hooks == recipe.replace("$(BIN)", ".venv/bin").replace("\t", "").splitlines()
    assert run(sys.executable, "-m", "pre_commit", "validate-config", ".pre-commit-config.yaml", cwd=ROOT) == ""
