"""What is published: the page on PyPI, the citation, and the workflow that uploads."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.version import Version

from dynamicvit import __version__

ROOT = Path(__file__).resolve().parents[1]


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_the_page_on_pypi() -> None:
    """Without links that lead nowhere there, nor what needs a clone; the rest as in the README."""
    pytest.importorskip("hatch_fancy_pypi_readme")
    build = [sys.executable, "-m", "hatch_fancy_pypi_readme", str(ROOT / "pyproject.toml")]
    page = subprocess.run(build, cwd=ROOT, check=True, capture_output=True, encoding="utf-8").stdout
    links = re.findall(r"\]\(([^)]*)\)", page)
    assert links
    assert all(link.startswith("https://") for link in links)
    assert page.startswith('# dynamicvit\n\n```\npip install "dynamicvit[plots]"\n```\n')
    for of_a_clone in ("make demo", "not on PyPI", 'install "."', 'install ".[', "picture is"):
        assert of_a_clone not in page
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.compile(r"^```python\n.*?^```$", re.DOTALL | re.M)
    assert blocks.findall(page) == blocks.findall(readme)
    sections = re.compile(r"^## (.*)$", re.M)
    assert sections.findall(page) == sections.findall(readme)[:-1]
    assert page.rstrip().endswith("MIT license.")


def test_the_citation_is_of_this_version() -> None:
    citation = read("CITATION.cff")
    assert Version(citation["version"]) == Version(__version__)
    assert citation["license"] == "MIT"


def test_the_release_needs_no_secret() -> None:
    """The job that may ask for an upload's token runs nothing of ours, after the tries."""
    workflow = read(".github/workflows/release.yml")
    jobs = workflow["jobs"]
    assert "secrets" not in str(workflow)
    assert [name for name, job in jobs.items() if "permissions" in job] == ["publish"]
    assert jobs["publish"]["needs"] == ["build", "test", "try"]
    assert all("run" not in step for step in jobs["publish"]["steps"])
