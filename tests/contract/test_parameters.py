"""The kernel parameters: each row with what it takes and refuses; units, scripts and manual have the same."""

from __future__ import annotations

import ast
import re
import runpy
from typing import Any

import pytest
from support import REPOSITORY

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.contract import parameters
from secex_firstboot.contract.command_line import before_init, loosely, name, value_of
from secex_firstboot.contract.parameters import Grow, Parameter, check, is_there, of_ours, value

BOOT, ROOT_HASH = parameters.ROOT_HASHES.values()
HASH = "0f" * 32
NEEDED = " ".join(map(str, parameters.NEEDED))
# Of each row: what it takes, the value of that, and what it does not take.
ROWS: list[tuple[Parameter[Any], str, Any, list[str]]] = [
    (BOOT, f"={HASH}", HASH, ["", "=", f"={HASH[:-1]}", f"={HASH}0", f"={HASH.upper()}", f"=0x{HASH[2:]}"]),
    (ROOT_HASH, f"={HASH}", HASH, ["", "=", f"={'g' * 64}"]),
    (
        parameters.OSTREE,
        f"=/ostree/boot.1/debian/{HASH}/0",
        f"/ostree/boot.1/debian/{HASH}/0",
        ["", "=", "=/etc", f"=/ostree/boot.1/debian/{HASH}", f"=/ostree/boot.1/../../{HASH}/0"],
    ),
    (
        parameters.ROOT,
        "=/dev/mapper/root",
        "/dev/mapper/root",
        ["", "=", "=LABEL=root", "=/dev/mapper/boot"],
    ),
    (parameters.ZEROED, "=1", "1", ["", "=", "=0", "=on"]),
    (parameters.NO_GPT_AUTO, "=0", "0", ["", "=1", "=no"]),
    (parameters.NO_FSCK, "=skip", "skip", ["", "=force", "=auto"]),
    (parameters.HEADROOM, "=12", 12, ["", "=", "=-1", "=1.5", "=1G", "=1_0", "=1234567890"]),
    (parameters.HOSTKEY_VERIFY, "=no", "no", ["", "=", "=yes", "=No"]),
    (parameters.GROW, "=firstboot", Grow.FIRSTBOOT, ["", "=", "=yes", "=OFF"]),
    (parameters.NETWORK, "=always", True, ["", "=", "=yes"]),
    (parameters.IDENTITY, "=replace", True, ["", "=", "=keep"]),
    (parameters.EMERGENCY, "=shell", True, ["", "=", "=shell-not"]),
    (parameters.LOGIN, "=allowed", True, ["", "=", "=yes"]),
    (parameters.GENERATION, "=12", 12, ["", "=", "=-1", "=x"]),
]
ONCE = [BOOT, ROOT_HASH, *parameters.OURS]


def ids(row: object) -> str | None:
    return row.name if isinstance(row, Parameter) else None


def test_every_row_that_is_judged_has_its_cases() -> None:
    judged = [row for row in parameters.ALL if row not in (parameters.FIRSTBOOT, parameters.PLATFORM)]
    assert [row for row, *_ in ROWS] == judged


@pytest.mark.parametrize(("row", "written", "expected", "wrong"), ROWS, ids=ids)
def test_a_row_takes_its_values_and_refuses_others(
    row: Parameter[Any], written: str, expected: object, wrong: list[str]
) -> None:
    assert value(f"quiet {row.name}{written} rw", row) == expected
    check(f"quiet {row.name}{written}", [row])
    for other in wrong:
        with pytest.raises(Refusal) as refusal:
            value(f"quiet {row.name}{other} rw", row)
        assert str(refusal.value).startswith(f"{row.name}{other} is not {row.is_not or row}")
        assert "build the image with" in refusal.value.cure


@pytest.mark.parametrize("row", [row for row, *_ in ROWS], ids=ids)
def test_what_is_not_there_has_its_default_or_is_refused(row: Parameter[Any]) -> None:
    others = f"x{row.name}=1 {row.name}x=1 x={row.name}=1"
    if row.default is not None:
        assert value(others, row) == row.default
        (right,) = (written.removeprefix("=") for each, written, *_ in ROWS if each is row)
        assert type(row.default) is type(row.read(right))
    else:
        with pytest.raises(Refusal, match=re.escape(f"the kernel command line has no {row}")):
            value(others, row)


@pytest.mark.parametrize(
    ("command_line", "says"),
    [
        (
            "secex.grow=yes",
            "secex.grow=firstboot or secex.grow=off: build the image with one of them, or without",
        ),
        (
            "secex.login=yes",
            "=yes is not secex.login=allowed: build the image with that, or without it",
        ),
        (
            "secex.headroom=1G",
            "=1G is not a number of MiB: build the image with that, or without it",
        ),
        (
            "init_on_free=0",
            "=0 is not init_on_free=1, so the image's private key would stay in memory",
        ),
    ],
)
def test_a_refusal_says_what_it_should_be(command_line: str, says: str) -> None:
    (row,) = (row for row in parameters.ALL if row.name == command_line.partition("=")[0])
    with pytest.raises(Refusal, match=re.escape(says)):
        value(command_line, row)


@pytest.mark.parametrize("row", ONCE, ids=ids)
def test_one_that_is_there_twice_is_refused_whichever_is_right(row: Parameter[Any]) -> None:
    written = next(f"{row.name}{taken}" for each, taken, *_ in ROWS if each is row)
    with pytest.raises(Refusal, match=f"has {row.name} more than once: build the image with one of them"):
        value(f"{written} quiet {written}", row)


@pytest.mark.parametrize("row", parameters.NEEDED, ids=ids)
def test_what_an_image_needs_may_be_there_twice_but_right_each_time(row: Parameter[Any]) -> None:
    """The last would count for the kernel, the first for others."""
    value(f"{row} quiet {row}", row)
    for wrong in (f"{row} {row.name}=x", f"{row.name}=x {row}", f"{row} {row.name}"):
        with pytest.raises(Refusal, match=f"{row.name}.* is not {row}"):
            value(wrong, row)


@pytest.mark.parametrize(
    "word",
    [
        "secex.hedroom=64",
        "secex.grow.now=off",
        "secex.",
        "secex.Grow=off",
        '"secex.x"',
        "-- secex.x",
        'a="b secex.x"',
    ],
)
def test_a_parameter_of_ours_that_does_not_exist_is_refused(word: str) -> None:
    with pytest.raises(Refusal, match=r"has no kernel parameter secex\..*none but secex\.headroom, "):
        check(f"{NEEDED} {word}", parameters.NEEDED)


@pytest.mark.parametrize(
    "word", ["secex-test.fail", "secex", "secexgrow=off", "x.secex.grow=off", "a=secex.b"]
)
def test_what_only_looks_like_one_of_ours_is_not_ours(word: str) -> None:
    check(f"{NEEDED} {word}", [*parameters.NEEDED, *parameters.OURS])


@pytest.mark.parametrize(
    "words",
    [
        'secex.grow="off"',
        '"secex.grow=off"',
        "'secex.grow=off'",
        "secex.gr\\ow=off",
        'sec"ex.grow=off"',
        'x="a secex.grow=off b"',
        "-- secex.grow=off",
        '"root=/dev/mapper/root"',
        "-- root=/dev/vdb",
        'x="a root=/dev/vdb"',
        "-- root",
        "-- systemd.gpt_auto",
        '"rd.systemd.gpt_auto"',
        "-- ignition.firstboot",
        '"ignition.firstboot"',
        f'bootfs.roothash="{HASH}"',
        f"-- bootfs.roothash={HASH}",
        'secex.grow=off x="y secex.grow=off"',
    ],
)
def test_what_only_some_readers_would_find_is_refused(words: str) -> None:
    with pytest.raises(Refusal, match="is in quotes or behind -- on the kernel command line"):
        check(f"{NEEDED} {words}", [*parameters.NEEDED, *parameters.OURS])


def test_quotes_and_what_is_for_init_do_not_matter_elsewhere() -> None:
    line = (
        f"""{NEEDED} secex.grow=off dyndbg="file a.c +p; func b rootfs" x='y' ignition.firstboot -- --log=x"""
    )
    check(line, [*parameters.NEEDED, *parameters.OURS])
    assert value(line, parameters.GROW) is Grow.OFF


@pytest.mark.parametrize("line", ["a=\xe4", "a=\0", 'a="b'])
def test_a_line_that_cannot_be_told_apart_is_refused(line: str) -> None:
    with pytest.raises(Refusal):
        check(f"{NEEDED} {line}", [])


def test_systemds_other_name_does_not_take_it_back() -> None:
    row = parameters.NO_GPT_AUTO
    assert value(f"{row} rd.{row}", row) == "0"
    for wrong in (f"{row} rd.systemd.gpt_auto=1", f"rd.systemd.gpt-auto {row}"):
        with pytest.raises(Refusal, match=f"rd.systemd.gpt.auto.* is not {row}"):
            value(wrong, row)
    with pytest.raises(Refusal, match=f"has no {row}"):
        value(f"rd.{row}", row)


def test_dashes_are_underscores_in_names() -> None:
    assert value("secex.hostkey-verify=no", parameters.HOSTKEY_VERIFY) == "no"
    assert of_ours("secex.hostkey-verify=no quiet") == of_ours('rw secex.hostkey_verify="no"')


@pytest.mark.parametrize("line", ["{}", "a {}=1", '"{}"', "-- {}"])
def test_a_first_boot_is_one_wherever_the_units_see_it(line: str) -> None:
    assert is_there(line.format("ignition.firstboot"), parameters.FIRSTBOOT)
    assert not is_there(line.format("ignition.first"), parameters.FIRSTBOOT)


def test_the_kernel_and_others_tell_words_apart_in_their_ways() -> None:
    line = """a "b c" d="e f" 'g h' i\\j -- k"""
    assert before_init(line) == ["a", '"b c"', 'd="e f"', "'g", "h'", "i\\j"]
    assert loosely(line) == ["a", "b", "c", "d=e", "f", "g", "h", "ij", "--", "k"]
    words = ["a=1", "b", "c=", "d=x=y", '"e=f g"', 'h="i"', "j-k=l"]
    assert [(name(word), value_of(word)) for word in words] == [
        ("a", "1"), ("b", None), ("c", ""), ("d", "x=y"), ("e", "f g"), ("h", "i"), ("j_k", "l"),
    ]  # fmt: skip


# --- the same elsewhere ---


def test_the_manual_page_has_each_row_with_its_default() -> None:
    manual = runpy.run_path(str(REPOSITORY / "docs/manual.py"))
    page = manual["PAGE"].read_text(encoding="utf-8")
    assert manual["written"](page) == page, "make manual writes it anew"
    for row in parameters.ALL:
        _, found, item = page.partition(f"\n.It Cm {row.name}")
        item = item.partition("\n.It ")[0]
        assert found, row.name
        assert row.meaning.split()[0] in item
        if row.default not in (None, "", False):
            assert f"The default is\n.Cm {row.default} ." in item


def test_units_scripts_and_documents_name_no_other_parameter() -> None:
    """Such as one that was renamed in the table alone."""
    known = {row.name for row in parameters.ALL}
    files = [
        *REPOSITORY.glob("systemd/*"),
        *REPOSITORY.glob("dracut/*"),
        *REPOSITORY.glob("*.md"),
        *REPOSITORY.glob("docs/**/*.md"),
        REPOSITORY / "docs/secex-firstboot.8",
        *REPOSITORY.glob("vm-tests/**/*.py"),
    ]
    for path in files:
        if path.is_file():
            named = re.findall(
                r"(?<![\w.-])secex\.[a-z_]+|(?:boot|root)fs\.\w+", path.read_text(encoding="utf-8")
            )
            assert set(named) <= known, path


def test_the_code_names_each_parameter_once() -> None:
    wrong = [
        f"{path.relative_to(REPOSITORY)}:{node.lineno}: {node.value}"
        for path in REPOSITORY.glob("secex_firstboot/**/*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.match(
            r"(secex\.[a-z]|ignition\.(firstboot|platform)|(boot|root)fs\.roothash|root=)", node.value
        )
        and path.name != "parameters.py"
    ]
    assert not wrong
