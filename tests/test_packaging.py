"""What an installation holds, what it asks for, and the scripts at the root of the project."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("txsimplex", "smpd", "torcfg")
SCRIPTS = ("run", "test", "tools/environment.sh", ".ci/run")

MODULES = {
    "Twisted[tls]": {"twisted", "zope"},
    "pyOpenSSL": {"OpenSSL"},
    "service-identity": {"service_identity"},
    "cryptography": {"cryptography"},
    "PyNaCl": {"nacl"},
    "qrcode": {"qrcode"},
    "txtorcon": {"txtorcon"},
    "psycopg": {"psycopg"},
}
"""The modules that each dependency brings; zope.interface is Twisted's own language."""

OPTIONAL = ("postgres",)
"""The extras that add something to an installation; the others are for its development."""

BEHIND_ANOTHER = {"service-identity"}
"""Dependencies that no module imports: Twisted does, to verify names in certificates."""


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """The table `project` of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def requirements(project: dict[str, Any]) -> dict[str, str]:
    """The dependencies, with the lower bound of each."""
    return dict(requirement.split(">=") for requirement in project["dependencies"])


def optional_requirements(project: dict[str, Any]) -> dict[str, str]:
    """The dependencies of `OPTIONAL`, without their extras, with the lower bound of each."""
    extras = project["optional-dependencies"]
    texts = [re.sub(r"\[.*\]", "", each) for extra in OPTIONAL for each in extras[extra]]
    return dict(text.split(">=") for text in texts)


def imported_packages() -> set[str]:
    """The top-level packages that the installed code imports, without the standard library.

    Names with an underscore are parts of the standard library that this Python may not have.
    """
    names: set[str] = set()
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Import):
                    names.update(alias.name.partition(".")[0] for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    names.add(node.module.partition(".")[0])
    public = {name for name in names if not name.startswith("_")}
    return public - set(sys.stdlib_module_names) - set(PACKAGES)


def test_every_import_is_a_declared_dependency(project: dict[str, Any]) -> None:
    names = {**requirements(project), **optional_requirements(project)}
    declared = set().union(*(MODULES[name] for name in names))
    assert imported_packages() <= declared


def test_tests_have_the_optional_dependencies_too(project: dict[str, Any]) -> None:
    extra = project["optional-dependencies"]["test"]
    bounds = {f"{name}>={bound}" for name, bound in optional_requirements(project).items()}
    assert bounds <= set(extra)


def test_every_declared_dependency_is_used(project: dict[str, Any]) -> None:
    imported = imported_packages()
    unused = {name for name in requirements(project) if not MODULES[name] & imported}
    assert unused == BEHIND_ANOTHER


debian_only = pytest.mark.skipif(
    os.environ.get("SIMPLEXD_DEPENDENCIES") != "debian", reason="for Debian's packages only"
)


@debian_only
@pytest.mark.parametrize("module", sorted({*set().union(*MODULES.values()), "_cffi_backend"}))
def test_debian_run_uses_the_packages_of_debian(module: str) -> None:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    place = spec.origin or next(iter(spec.submodule_search_locations or ()))
    assert place.startswith("/usr/lib/python3/dist-packages/")


@debian_only
def test_debian_run_has_no_libpq_of_a_wheel() -> None:
    assert importlib.util.find_spec("psycopg_binary") is None


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a clean copy of the project, built by the setuptools at hand."""
    copy = tmp_path_factory.mktemp("source")
    for folder in (*PACKAGES, "twisted", "tests"):
        ignore = shutil.ignore_patterns("__pycache__", "dropin.cache")
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    wheels = tmp_path_factory.mktemp("wheels")
    build = "import sys, setuptools.build_meta as b; b.build_wheel(sys.argv[1])"
    run = subprocess.run(
        [sys.executable, "-c", build, str(wheels)],
        cwd=copy,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    (built,) = wheels.glob("simplexd-*.whl")
    return built


def test_wheel_holds_the_code_and_its_data(wheel: Path) -> None:
    expected = {"twisted/plugins/smpd_dropin.py", "twisted/plugins/torcfg_dropin.py"}
    for package in PACKAGES:
        for suffix in ("*.py", "*.sql", "*.ini", "py.typed"):
            expected |= {str(file.relative_to(ROOT)) for file in (ROOT / package).rglob(suffix)}
    with ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == expected


def test_wheel_says_what_it_is_and_needs(wheel: Path, project: dict[str, Any]) -> None:
    with ZipFile(wheel) as archive:
        names = archive.namelist()
        texts = {
            kind: archive.read(next(name for name in names if name.endswith(f"/{kind}"))).decode()
            for kind in ("METADATA", "entry_points.txt", "LICENSE")
        }
    lines = texts["METADATA"].splitlines()
    assert "License: AGPL-3.0-or-later" in lines
    assert "Requires-Python: >=3.11" in lines
    needed = [line.partition(": ")[2] for line in lines if line.startswith("Requires-Dist:")]
    plain = {re.sub(r"[ ()]", "", each).lower() for each in needed if "extra ==" not in each}
    assert plain == {each.lower() for each in project["dependencies"]}
    assert "smpctl = smpd.ctl:main" in texts["entry_points.txt"].splitlines()
    assert texts["LICENSE"] == (ROOT / "LICENSE").read_text()


def test_commands_can_be_called(project: dict[str, Any]) -> None:
    assert project["scripts"]
    for place in project["scripts"].values():
        module, _, name = place.partition(":")
        assert callable(getattr(importlib.import_module(module), name))


def test_twisted_folder_is_no_package_of_its_own() -> None:
    assert not list((ROOT / "twisted").rglob("__init__.py"))


def test_twistd_finds_the_plugin_without_loading_the_relay(tmp_path: Path) -> None:
    find = (
        "import sys\n"
        "from twisted.application.service import IServiceMaker\n"
        "from twisted.plugin import getPlugins\n"
        "found = {p.tapname: p.module for p in getPlugins(IServiceMaker)}\n"
        "print(found['smpd'], 'smpd' in sys.modules)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", find],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout.split() == ["smpd.tap", "False"], run.stderr


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_is_accepted_by_its_shell(name: str) -> None:
    script = ROOT / name
    first = script.read_text().splitlines()[0]
    shell = "bash" if "bash" in first else "sh"
    assert subprocess.run([shell, "-n", script], check=False).returncode == 0
    assert name.endswith(".sh") or os.access(script, os.X_OK)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("name", SCRIPTS)
def test_script_passes_shellcheck(name: str) -> None:
    run = subprocess.run(
        ["shellcheck", "-x", name], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize(
    ("command", "environment", "said"),
    [
        (["./run", "a.example", "b.example"], {}, "run: usage: ./run [HOST]\n"),
        (["./run", "--help"], {}, "run: usage: ./run [HOST]\n"),
        (
            ["./test"],
            {"SIMPLEXD_DEPENDENCIES": "oldest"},
            "test: SIMPLEXD_DEPENDENCIES is 'oldest'; it can be 'newest' or 'debian'\n",
        ),
    ],
)
def test_wrong_use_of_a_script_is_one_line_and_status_2(
    command: list[str], environment: dict[str, str], said: str
) -> None:
    run = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stdout, run.stderr) == (2, "", said)


def test_changelog_fragments_are_named_so_that_towncrier_takes_them() -> None:
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    types = [each["directory"] for each in tools["towncrier"]["type"]]
    name = re.compile(rf"(?:\d+|\+[a-z0-9-]+)\.(?:{'|'.join(types)})\.md")
    names = {file.name for file in (ROOT / "changelog.d").iterdir()} - {"README.md"}
    assert not {each for each in names if not name.fullmatch(each)}
