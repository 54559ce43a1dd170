"""What README and docs say holds: links lead somewhere, commands parse, the recipes do what they promise."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

from mpdiag.cli.main import commands as cli

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as a Git host makes them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def typed() -> list[str]:
    """Every command of the README: in its indented blocks and in the workflow, without what follows it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"^(?: {4}|.*run: )(mpdiag .+?)(?:\s+#.*|\s+>>.*)?$", text, re.MULTILINE)
    assert len(found) >= 9
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_to_a_heading_in_it(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    for link in links:
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


@pytest.mark.parametrize("command", typed())
def test_every_command_of_the_readme_can_be_typed(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reports").mkdir()
    for name in ("model.py", "ckpt.pt", "reports/model.json"):
        (tmp_path / name).touch()
    _, name, *words = shlex.split(command)
    cli.commands[name].make_context(name, words)  # raises UsageError for an option or a choice that is none


def test_the_options_that_the_docs_name_are_options():
    known = {
        word
        for each in cli.commands.values()
        for option in each.params
        for word in (*option.opts, *option.secondary_opts)
    }
    for page in PAGES:
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page.read_text(encoding="utf-8")))
        assert named <= {*known, "--help"}, page.name


def test_the_recipe_for_schedulers_and_clipping_sees_gradients_without_the_loss_scale():
    text = (ROOT / "docs" / "target.md").read_text(encoding="utf-8")
    recipe = text.split("```python\n")[1].split("```")[0]
    names = {"torch": torch}
    exec(recipe, names)
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    optimizer = names["build_optimizer"](model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    rates, norms = [], []
    optimizer.register_step_pre_hook(lambda *_: norms.append(float(model.weight.grad.norm())))  # after the recipe's
    for _ in range(3):
        scaler.scale(100 * model(torch.ones(8, 4)).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        rates.append(optimizer.param_groups[0]["lr"])
    assert max(norms) <= 1.0
    assert min(norms) > 0.5  # clipped, not scaled down by 2^12
    assert rates == pytest.approx([2e-4, 3e-4, 4e-4])
