"""The documentation's site: it builds without a warning, and the generated pages say what the code says."""

import re
import subprocess
import sys

import pytest
import yaml

from docs import generate, reference
from tests.conftest import REPOSITORY
from vit_jax import models

PAGES = {path.name for path in (REPOSITORY / "docs").glob("*.md")}


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason='mkdocs is not installed: pip install -e ".[docs]"')
    pytest.importorskip("material", reason='mkdocs-material is not installed: pip install -e ".[docs]"')
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(build, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "batch_size" in (tmp_path / "site" / "configuration" / "index.html").read_text()
    page = (tmp_path / "site" / "models" / "index.html").read_text()
    assert "86,567,656" in page  # vit/B16
    assert all(f"<code>{name}</code>" in page for name in models.names())


def test_every_page_is_in_the_navigation():
    text = (REPOSITORY / "mkdocs.yml").read_text()
    nav = re.findall(r": ([\w-]+\.md)$", text[text.index("\nnav:") :], re.MULTILINE)
    assert len(nav) == len(set(nav)) and PAGES | set(generate.PAGES) == set(nav)
    assert not PAGES & set(generate.PAGES), "a generated page is not committed"
    assert yaml.safe_load(text)["hooks"] == ["docs/generate.py"]


@pytest.mark.parametrize("page", ["README.md", "launch/README.md", *(f"docs/{name}" for name in sorted(PAGES))])
def test_links_within_the_repository_lead_somewhere(page):
    path = REPOSITORY / page
    for target in re.findall(r"\]\(([^)#:]+)[^)]*\)", path.read_text()):
        generated = path.parent.name == "docs" and target in generate.PAGES
        assert generated or (path.parent / target).exists(), f"{page}: {target}"


def test_the_page_of_machines_links_within_the_site():
    targets = re.findall(r"\]\(([^)#:]+)[^)]*\)", generate.PAGES["machines.md"]())
    assert targets and set(targets) <= PAGES | set(generate.PAGES)


def test_the_configuration_page_is_the_reference():
    assert generate.configuration().endswith(reference.markdown())


def test_a_family_has_its_source_and_models_their_parameters():
    assert "arXiv:2010.11929" in generate.source("vit", models.module_class("vit"))
    for name, count in {"vit/Ti16": 5_717_416, "cnn/conv3": 257_162}.items():
        assert generate.parameters(name) == count
