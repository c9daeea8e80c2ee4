"""The pages are right: links and anchors lead somewhere, options exist, examples run."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from intruscope.cli.main import app

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
LINK = re.compile(r"\]\(([^)#\s]+)|srcset=\"([^\"]+)\"|src=\"([^\"]+)\"")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page):
    for found in LINK.findall(page.read_text(encoding="utf-8")):
        target = next(part for part in found if part)
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), target


def slug(heading):
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_anchors_lead_to_a_heading(page):
    for file, anchor in re.findall(r"\]\(([^)#\s:]*)#([^)\s]+)\)", page.read_text(encoding="utf-8")):
        target = (page.parent / file if file else page).read_text(encoding="utf-8")
        assert anchor in map(slug, re.findall(r"^#+ (.+)$", target, re.MULTILINE)), f"{file}#{anchor}"


def test_every_option_that_a_page_names_exists():
    known = set()
    for command in app.commands.values():
        for parameter in command.params:
            known |= set(parameter.opts) | set(parameter.secondary_opts)
    elsewhere = {"--help", "--version"}
    for page in (
        ROOT / "README.md",
        *(ROOT / "docs" / f"{n}.md" for n in ("certificates", "controls", "exit-codes")),
    ):
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page.read_text(encoding="utf-8")))
        assert named <= known | elsewhere, page.name


def test_the_example_of_the_readme_runs(tmp_path, capsys):
    generator = torch.Generator().manual_seed(0)
    name = "model.layers.0.mlp.up_proj.weight"
    for folder, scale in (("base", 1.0), ("adapter", 1.1)):
        (tmp_path / folder).mkdir()
        matrix = torch.randn(24, 16, generator=generator.manual_seed(0)) * scale
        save_file({name: matrix}, tmp_path / folder / "model.safetensors")
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    source = example.replace("path/to", str(tmp_path))
    exec(compile(source, "README.md", "exec"), {"__name__": "example"})
    printed = capsys.readouterr().out
    assert "model.layers.0.mlp.up_proj 0 ('aligned'" in printed
