"""The Markdown report, parsed back: its parts, and text of the user that stays text."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from mpdiag.diagnosis import Advice, Diagnosis
from mpdiag.report import markdown
from mpdiag.report.digest import digest_of
from text_samples import SCALE, flat, full, on_a_laptop

# Markdown, as a reader of CommonMark with tables sees it


def blocks(source: str) -> list[tuple[str, str]]:
    """(element, text) of each block; inline markup that came out of the text is marked in the element's name."""
    found, stack = [], []
    for token in MarkdownIt("commonmark").enable("table").parse(source):
        if token.type == "inline":
            inside = {t.type for t in token.children or ()} - {"text", "softbreak"}
            words = "".join(t.content for t in token.children or () if t.type in ("text", "code_inline"))
            found.append((" ".join([stack[-1], *sorted(inside)]), words))
        elif token.nesting == 1 and token.tag not in ("p", "tr", "thead", "tbody"):
            stack.append(token.tag)
        elif token.nesting == -1 and token.tag not in ("p", "tr", "thead", "tbody"):
            stack.pop()
        elif token.type == "fence":
            found.append(("code", token.content))
        elif token.type in ("html_block", "hr", "code_block"):
            found.append((token.type, token.content))
        if not stack:
            stack.append("")
    return found


def with_text(words: str) -> Diagnosis:
    """A diagnosis whose first finding says `words` and whose first metric is called so."""
    diagnosis = full()
    finding = replace(diagnosis.advice.findings[0], message=words)
    target = replace(diagnosis.target, name=words, notes=(words,))
    return replace(diagnosis, target=target, advice=Advice("FP16", SCALE, (finding,), ()))


def test_markdown_has_a_heading_a_verdict_lists_and_a_table():
    found = blocks(markdown.render(full()))
    assert found[0] == ("h1", "mpdiag: gpt_tiny")
    assert [words for element, words in found if element == "h2"] == ["Why", "Findings", "Next", "Not done"]
    cells = [words for element, words in found if element in ("th", "td")]
    assert cells[:3] == ["severity", "code", "finding"]
    assert cells[6:9] == ["error", "MP101", full().advice.findings[1].message]


def test_markdowns_snippet_is_the_advices():
    code = next(words for element, words in blocks(markdown.render(full())) if element == "code")
    assert code.rstrip() == full().advice.loss_scale.snippet.rstrip()


HOSTILE = [
    "a | b",
    "<b>evil</b>",
    "</script>",
    "<!-- x -->",
    "`code`",
    "*a* **b**",
    "_a_ __b__",
    "[a](http://x)",
    "![a](x)",
    "\\| back\\",
    "a\n\nb",
    "a\n# b",
]


@pytest.mark.parametrize("words", HOSTILE)
def test_text_of_the_user_stays_text_in_markdown(words):
    found, shown = blocks(markdown.render(with_text(words))), " ".join(words.split())
    assert found[0] == ("h1", f"mpdiag: {shown}")
    assert ("td", shown) in found
    assert ("li", shown) in found


@pytest.mark.parametrize("words", ["&lt;b&gt;", "&amp;", "AT&T &copy; 2026"])
def test_an_entity_in_a_name_stays_as_it_is_written_in_markdown(words):
    assert ("td", words) in blocks(markdown.render(with_text(words)))


@pytest.mark.parametrize("words", ["# tokens", "- a", "+ a", "> a", "1. a", "1) a", "---", "===", "~~~"])
def test_text_that_begins_like_a_block_stays_text_in_a_markdown_list(words):
    assert ("li", words) in blocks(markdown.render(with_text(words)))


@settings(max_examples=60, deadline=None)
@given(st.text("|<>`*_[]()!\\ab .", min_size=1, max_size=12).map(lambda s: f"x {s} y"))
def test_any_text_inside_a_finding_comes_back_from_markdown(words):
    assert ("td", " ".join(words.split())) in blocks(markdown.render(with_text(words)))


def test_markdown_shows_what_the_terminal_shows():
    found = [words for _, words in blocks(markdown.render(on_a_laptop()))]
    parts = digest_of(on_a_laptop())
    why = [f"{topic}: {words}" for topic, words in parts.why]
    assert [line for line in (*parts.heading, *why, *parts.not_done) if flat(line) not in found] == []
    assert len(why) > 5
