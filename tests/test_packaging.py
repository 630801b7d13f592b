"""What is published: wheel and sdist hold every file, run from an empty environment, and ask for what they import."""

from __future__ import annotations

import ast
import configparser
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile

import packaged
import pytest
import yaml


ROOT = packaged.ROOT
# import name -> what it is called where it is installed from, where the two differ
DISTRIBUTIONS = {"yaml": "pyyaml", "rouge_score": "rouge-score", "lm_eval": "lm-eval"}
# read through another package: transformers reads GGUF with gguf; lm-eval is a command that reads our task files
INDIRECT = {"gguf", "lm-eval"}
KERNELS = {"flash-attn"}  # built for a card and a torch; used where it is there


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    return packaged.built(packaged.copied(folder / "source"), folder / "dist")


@pytest.fixture(scope="module")
def python(built, tmp_path_factory):
    return packaged.environment(tmp_path_factory.mktemp("environment") / "venv", built[0])


def run(python, *command):
    """In an empty folder's stead: -P keeps the checkout out of sys.path."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    return subprocess.run([python, "-P", *command], capture_output=True, text=True, env=environment, cwd=python.parent)


def files_of_package():
    folder = ROOT / "tuna_trl"
    return {str(path.relative_to(ROOT)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}


def test_wheel_and_sdist_hold_every_file_of_the_package(built):
    wheel, sdist = built
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("tuna_trl/")}
    assert inside == files_of_package()
    names = {name.partition("/")[2] for name in tarfile.open(sdist).getnames()}
    assert files_of_package() | {*packaged.PARTS, "constraints.txt"} <= names
    assert {"tuna_trl/py.typed", "tuna_trl/data/templates/card.md.jinja"} <= inside


def test_the_installed_package_is_the_wheels_and_its_commands_run(python):
    where = run(python, "-c", "import tuna_trl; print(tuna_trl.__file__)")
    assert str(python.parents[1]) in where.stdout, where.stderr
    command = subprocess.run([python.parent / "tuna-trl", "--help"], capture_output=True, text=True)
    assert command.returncode == 0 and "build" in command.stdout, command.stderr
    env = run(python, "-m", "tuna_trl", "env", "--json")
    assert env.returncode == 0 and json.loads(env.stdout)["torch"] != "not installed", env.stderr


def test_a_dataset_and_its_report_are_written_from_the_installed_package(python, tmp_path):
    """Card and report are templates in folders that are no packages: a wheel without them imports well enough."""
    (tmp_path / "d.jsonl").write_text(json.dumps({"prompt": "a", "responses": ["b", "c"], "scores": [1, 0]}) + "\n")
    made = run(python, "-m", "tuna_trl", "import", tmp_path / "d.jsonl", tmp_path / "out")
    assert made.returncode == 0 and (tmp_path / "out" / "README.md").is_file(), made.stderr
    report = run(python, "-m", "tuna_trl", "report", tmp_path / "out")
    assert report.returncode == 0 and (tmp_path / "out" / "report.html").is_file(), report.stderr


def metadata() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg")
    return parser


def lines(text):
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def named(requirement):
    return re.split(r"[\[<>=!~ ]", requirement)[0].lower().replace("_", "-")


def imported():
    """Third-party packages that a module of ours imports, at its top or inside a function, as distributions."""
    found = set()
    for path in (ROOT / "tuna_trl").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                found.add(node.module.partition(".")[0])
    found -= {*sys.stdlib_module_names, "tuna_trl"}
    return {DISTRIBUTIONS.get(name, name).lower().replace("_", "-") for name in found}


def test_what_is_imported_is_asked_for_and_what_is_asked_for_is_used():
    content = metadata()
    required = {named(line) for line in lines(content["options"]["install_requires"])}
    extras = {
        named(line)
        for extra, text in content["options.extras_require"].items()
        if extra != "dev"
        for line in lines(text)
    }
    assert imported() <= required | extras | KERNELS
    assert required - imported() <= {"bitsandbytes"}  # transformers imports it, for 4-bit weights and 8-bit optimizers
    assert extras <= imported() | INDIRECT


def test_an_extra_is_imported_only_where_its_absence_is_met_with_a_message():
    """Naming the package costs no extra: a module's top imports nothing that only an extra brings."""
    optional = {"openai", "ray", "xgrammar", "gguf", "lm_eval", "scipy"}
    for path in (ROOT / "tuna_trl").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not optional & {name.partition(".")[0] for name in names}, path


def test_every_bound_has_a_floor_that_the_pinned_version_reaches():
    from packaging.requirements import Requirement

    pins = dict(line.lower().replace("_", "-").split("==") for line in lines((ROOT / "constraints.txt").read_text()))
    content = metadata()
    every = lines(content["options"]["install_requires"])
    for extra, text in content["options.extras_require"].items():
        every += [line for line in lines(text) if not line.startswith("%") and extra not in ("ray", "lm-eval")]
    for line in every:
        requirement = Requirement(line)
        assert any(one.operator == ">=" for one in requirement.specifier), line
        assert requirement.specifier.contains(pins[named(line)], prereleases=True), line
    by_name = {named(line): str(Requirement(line).specifier) for line in every}
    assert "<2" in by_name["trl"] and "<6" in by_name["transformers"]


def test_the_citation_names_the_paper():
    """The rules of the Citation File Format 1.2.0 for what is in the file."""
    content = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert content["cff-version"] == "1.2.0" and content["type"] == "software" and content["license"] == "Apache-2.0"
    assert {"message", "title", "authors", "references"} <= set(content)
    known = {"cff-version", "message", "title", "abstract", "type", "license", "authors", "keywords", "references"}
    assert set(content) <= known | {"preferred-citation", "version", "repository-code", "url", "date-released"}
    (paper,) = content["references"]
    assert {"type", "title", "authors"} <= set(paper) and paper["title"].startswith("Tuna: Instruction Tuning")
    assert all(set(author) <= {"given-names", "family-names", "orcid"} for author in paper["authors"])
    assert re.fullmatch(r"10\.\d{4,9}/\S+", paper["doi"]) and isinstance(paper["year"], int)
    assert content["preferred-citation"] == paper
