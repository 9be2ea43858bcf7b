"""pyproject.toml, requirements.lock, environment.yml, package.json: the same environment, said four times."""

import json
import re
import tomllib

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from fgtune.core.project import project_root

ROOT = project_root()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = [Requirement(line) for line in (ROOT / "requirements.lock").read_text().splitlines() if line.strip()]


def test_the_lock_pins_every_line_exactly():
    assert len(LOCK) > 100
    for requirement in LOCK:
        (spec,) = requirement.specifier
        assert spec.operator == "==" and requirement.url is None, requirement


def test_the_lock_satisfies_every_dependency():
    locked = {}
    for requirement in LOCK:
        locked.setdefault(requirement.name.lower(), []).append(next(iter(requirement.specifier)).version)
    for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]:
        wanted = Requirement(text)
        versions = locked.get(wanted.name.lower(), [])
        assert versions and all(wanted.specifier.contains(v) for v in versions), text


def test_no_accelerator_packages_are_forced_on_a_laptop():
    assert not [r.name for r in LOCK if r.name.startswith(("nvidia-", "cuda-", "triton", "mlx-cuda"))]


def test_conda_gives_the_same_environment():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = {re.split("[=<>]", d)[0]: d.partition("=")[2] for d in environment["dependencies"] if isinstance(d, str)}
    (pip,) = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
    assert SpecifierSet(PROJECT["requires-python"]).contains(conda["python"])
    minimum = json.loads((ROOT / "package.json").read_text())["engines"]["node"].removeprefix(">=")
    assert int(conda["nodejs"]) >= int(minimum)
    assert pip == ["-r requirements.lock", "-e ."]


def test_node_packages_are_locked_and_run_no_scripts():
    package = json.loads((ROOT / "package.json").read_text())
    lock = json.loads((ROOT / "package-lock.json").read_text())["packages"]
    for name, version in (package["dependencies"] | package["devDependencies"]).items():
        assert re.fullmatch(r"\d+\.\d+\.\d+", version) and lock[f"node_modules/{name}"]["version"] == version
    assert "ignore-scripts=true" in (ROOT / ".npmrc").read_text()


def test_nothing_large_is_in_git():
    import subprocess

    if not (ROOT / ".git").exists():
        return
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    large = [f for f in files if f and (ROOT / f).is_file() and (ROOT / f).stat().st_size > 2_000_000]
    assert not large and not [f for f in files if f.endswith((".onnx", ".onnx_data", ".safetensors", ".gguf"))]
