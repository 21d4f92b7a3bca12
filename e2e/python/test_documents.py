"""The documents: their links lead to files and headings that exist, and SPECIFICATION.md to tests that exist."""

import re
from pathlib import Path

import pytest

from bouvet import ROOT

DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "docs/*.md", "images/*.md", "findings/*.md")
    for path in ROOT.glob(pattern)
)
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)|^\[[^\]]+\]:\s*(\S+)", re.MULTILINE)


def text_of(document: str) -> str:
    """Without blocks of code, in which `#` is not a heading and brackets are not links."""
    return FENCED.sub("", (ROOT / document).read_text())


def anchors(document: str) -> set[str]:
    """Those that GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.*)$", text_of(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_what_exists(document: str) -> None:
    dead = []
    for inline, reference in LINK.findall(text_of(document)):
        target = inline or reference
        if ":" in target:
            continue
        path, _, anchor = target.partition("#")
        file = ((ROOT / document).parent / path).resolve() if path else ROOT / document
        if not file.exists():
            dead.append(target)
        elif anchor and file.suffix == ".md" and anchor not in anchors(str(file.relative_to(ROOT))):
            dead.append(target)
    assert dead == []


def test_promises_name_tests_that_exist() -> None:
    text = text_of("SPECIFICATION.md")
    defined = dict(re.findall(r"^\[([^\]]+)\]:\s*(\S+)", text, re.MULTILINE))
    wrong = []
    # Names of tests are followed by the file that they are in.
    for promise in re.split(r"\n(?=- |#)", text):
        names: list[str] = []
        for name, file in re.findall(r"`((?:[a-z0-9]+_){2,}[a-z0-9]+)`|\[((?:crates|e2e)[^\]]*)\](?!:)", promise):
            if name:
                names.append(name)
                continue
            if file not in defined:
                wrong.append(f"[{file}] has no definition")
            path = ROOT / file
            sources = path.rglob("*.rs") if path.is_dir() else [path]
            source = "".join(source.read_text() for source in sources if source.exists())
            wrong += [f"{name} is not in {file}" for name in names if not re.search(rf"\b{name}\b", source)]
            names = []
    assert wrong == []


def test_maps_of_the_code_name_files_that_exist() -> None:
    missing = []
    crate = Path()
    for line in text_of("ARCHITECTURE.md").splitlines():
        if heading := re.match(r"### `(crates/[\w-]+)`", line):
            crate = Path(heading[1])
        elif line.startswith("#"):
            crate = Path()
        row = re.match(r"\| (`[^|]*) \|", line)
        if not row or crate == Path():
            continue
        names = re.findall(r"`([^`]+)`", row[1])
        # After the first one, a path may be relative to the directory of the one before.
        home = Path("src")
        for name in names:
            near = [ROOT / crate / name, ROOT / crate / home / name, ROOT / crate / "src" / name]
            found = next((path for path in near if any(path.parent.glob(path.name))), None)
            if found:
                home = found.parent.relative_to(ROOT / crate)
            else:
                missing.append(f"{crate}: {name}")
    assert missing == []
