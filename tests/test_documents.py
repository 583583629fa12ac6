"""The documents name what there is: links, files, and every message that a user can meet."""

from __future__ import annotations

import ast
import importlib
import json
import re
import runpy
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import REPOSITORY

from secex_firstboot.cli import secex
from secex_firstboot.owner import domain
from secex_firstboot.owner.draft import Draft

DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")])
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(#[^)\s]*)?\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
OUR_PATH = re.compile(r"`((?:secex_firstboot|tests|vm-tests|dracut|systemd|docs)/[\w./-]*)`")
FUNCTION_IN = re.compile(r"`(\w+)\(\)` in `([\w/.]+\.py)`")
ERRORS = {"Refusal", "FirstbootError", "DeviceMissing", "NoCrl", "Revoked", "Unreachable"}
ID = re.compile(r"SX-[A-Z]+-\d\d")
TROUBLESHOOTING = REPOSITORY / "docs/troubleshooting.md"
_LEAST = 8  # letters of a piece of a message that are worth looking for


def anchors(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    return {"#" + re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in HEADING.findall(text)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_link_leads_somewhere(document: Path) -> None:
    for path, anchor in LINK.findall(document.read_text(encoding="utf-8")):
        target = document.parent / path if path else document
        assert target.exists(), path
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{path}{anchor}"


@pytest.mark.parametrize(
    "document",
    [path for path in DOCUMENTS if path.name != "SECURITY.md"],  # see test_security_claims
    ids=lambda path: str(path.relative_to(REPOSITORY)),
)
def test_every_file_of_ours_that_is_named_exists(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for path in OUR_PATH.findall(text):
        assert (REPOSITORY / path).exists(), path
    for function, path in FUNCTION_IN.findall(text):
        assert f"def {function}(" in (REPOSITORY / path).read_text(encoding="utf-8"), function


def errors() -> Iterator[tuple[str, ast.Call]]:
    """Where each error is made, and the call."""
    for path in sorted(REPOSITORY.glob("secex_firstboot/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ERRORS:
                yield f"{path.relative_to(REPOSITORY)}:{node.lineno}", node


def messages() -> Iterator[tuple[str, str, list[str]]]:
    """Where each error with an ID of its own is made, the ID, and the pieces of its message in the code."""
    for place, call in errors():
        match call.args[0]:
            case ast.Constant(value=str(id)):
                pieces = [" ".join(piece.split()) for piece in texts(call.args[1])]
                yield place, id, [piece for piece in pieces if len(piece) >= _LEAST]


def ids_in_code() -> list[str]:
    paths = [*REPOSITORY.glob("secex_firstboot/**/*.py"), *REPOSITORY.glob("dracut/*.sh")]
    return [id for path in paths for id in ID.findall(path.read_text(encoding="utf-8"))]


def texts(node: ast.expr) -> Iterator[str]:
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.JoinedStr(values=values):
            for value in values:
                yield from texts(value)
        case ast.BinOp(left=left, right=right):
            yield from texts(left)
            yield from texts(right)


def reasons() -> Iterator[tuple[str, str]]:
    """What is put into a message elsewhere: yielded with place and cure, or kept beside a cure."""
    for path in sorted(REPOSITORY.glob("secex_firstboot/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Yield(value=ast.Tuple(elts=[_, ast.Constant(value=str(what)), _])):
                    yield f"{path.relative_to(REPOSITORY)}:{node.lineno}", what
                case ast.Assign(value=ast.Tuple(elts=[ast.Constant(value=str(what)), ast.Constant()])):
                    yield f"{path.relative_to(REPOSITORY)}:{node.lineno}", what
                case ast.Call(func=ast.Name(id="_refusal"), args=[_, ast.Constant(value=str(what)), *_]):
                    yield f"{path.relative_to(REPOSITORY)}:{node.lineno}", what
                case ast.Call(func=ast.Name(id="_Kind"), args=[_, ast.Constant(value=str(what)), *_]):
                    yield f"{path.relative_to(REPOSITORY)}:{node.lineno}", what
                case ast.Call(
                    func=ast.Name(id="ContentError" | "_Transient")
                    | ast.Attribute(attr="ContentError" | "_Transient"),
                    args=[ast.Constant(value=str(what))],
                ):
                    yield f"{path.relative_to(REPOSITORY)}:{node.lineno}", what


def test_there_are_messages() -> None:
    assert len(list(messages())) > 100
    assert len(list(reasons())) > 50


def test_every_error_has_an_id_of_its_own_or_that_of_the_error_it_explains() -> None:
    firsts = {place: ast.unparse(call.args[0]).strip("'") for place, call in errors()}
    assert [
        place
        for place, first in firsts.items()
        if not (ID.fullmatch(first) or re.match(r"\w+\.id$|\*", first))
    ] == []
    code = ids_in_code()
    assert sorted(code) == sorted(set(code))


def test_the_tables_have_every_id_and_no_other() -> None:
    assert set(ID.findall(TROUBLESHOOTING.read_text(encoding="utf-8"))) == set(ids_in_code())


@pytest.mark.parametrize("name", ["image", "evidence"])
def test_a_schema_has_what_its_model_has(name: str) -> None:
    """By names: how else the schema is written changes with pydantic."""
    manual = runpy.run_path(str(REPOSITORY / "docs/manual.py"))
    ((path, model),) = (each for each in manual["SCHEMAS"].items() if each[0].name == f"{name}.schema.json")
    kept, made = (json.loads(text) for text in (path.read_text(encoding="utf-8"), manual["schema"](model)))
    parts = [part for part, what in made["$defs"].items() if what["type"] == "object"]
    for one, other in ((kept, made), *((kept["$defs"][part], made["$defs"][part]) for part in parts)):
        assert one["properties"].keys() == other["properties"].keys(), "make manual writes it anew"
        assert one["required"] == other["required"]


def test_the_manual_page_of_messages_has_the_tables_rows() -> None:
    manual = runpy.run_path(str(REPOSITORY / "docs/manual.py"))
    page = manual["MESSAGES"].read_text(encoding="utf-8")
    assert manual["listed"](page) == page, "make manual writes it anew"
    for id in ids_in_code():
        assert page.count("\n.It Cm " + id.replace("-", "\\-") + "\n") == 1
    assert "\nthe same" not in page


def test_the_package_has_the_tables_rows() -> None:
    manual = runpy.run_path(str(REPOSITORY / "docs/manual.py"))
    assert manual["EXPLAINED"].read_text(encoding="utf-8") == manual["explained"](), (
        "make manual writes it anew"
    )


def test_every_message_is_in_troubleshooting() -> None:
    """In the row of its ID, word by word."""
    rows = [line for line in TROUBLESHOOTING.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    missing = {
        place: pieces
        for place, id, pieces in messages()
        if not any(id in row and all(piece.strip(" :,(") in row for piece in pieces) for row in rows)
    }
    missing |= {
        place: [what] for place, what in reasons() if " " in what and not any(what in row for row in rows)
    }
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_what_an_example_imports_is_there(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for module, names in re.findall(r"^ +from (secex_firstboot[\w.]*) import ([\w, ]+)$", text, re.MULTILINE):
        for name in names.split(", "):
            found = importlib.import_module(module)
            assert hasattr(found, name) or importlib.import_module(f"{module}.{name}")


def example(document: str, begin: str, end: str) -> str:
    """The indented lines of a document from one to another."""
    text = (REPOSITORY / "docs" / document).read_text(encoding="utf-8")
    found = re.search(rf"^ +{re.escape(begin)}.*?^ +{re.escape(end)}$", text, re.MULTILINE | re.DOTALL)
    assert found
    return textwrap.dedent(found[0])


def test_the_example_of_a_config_is_what_secex_config_writes() -> None:
    written = Draft(
        {"/etc/se-hostkeys/ibm-z-hostkey-HKD-3932-0123456": "-----BEGIN CERTIFICATE-----\n...\n"},
        ["ssh-ed25519 AAAA..."],
        "core",
    )
    assert example("run-a-guest.md", "variant: fcos", "...") == written.butane().rstrip("\n")


def test_commands_of_the_guide_are_ones_that_secex_knows() -> None:
    text = (REPOSITORY / "docs/run-a-guest.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = re.findall(r"^    (?:\$ )?secex (.*)$", text, re.MULTILINE)
    assert {command.split()[0] for command in commands} >= {"config", "check", "encrypt"}
    for command in commands:
        secex.parser().parse_args(command.split())


def test_the_example_of_a_domain_is_what_secex_writes() -> None:
    images = Path("/var/lib/libvirt/images")
    log = Path("/var/log/libvirt/qemu/guest-console.log")
    guest = domain.Guest("guest", images / "my-linux.qcow2", "qcow2", images / "config.asc", log)
    assert example("run-a-guest.md", '<domain type="kvm">', "</domain>") + "\n" == domain.xml(guest)


def test_the_commands_that_build_an_image_are_shell(tmp_path: Path) -> None:
    text = (REPOSITORY / "docs/build-an-image.md").read_text(encoding="utf-8")
    steps = re.split(r"^\d+\. ", text.split("## Disk")[0], flags=re.MULTILINE)[1:]
    script = tmp_path / "steps.sh"
    for step in steps:
        lines = [line for line in step.splitlines()[1:] if re.match(" {7}|$", line)]
        script.write_text(textwrap.dedent("\n".join(lines)) + "\n")
        subprocess.run(["bash", "-n", script], check=True)
