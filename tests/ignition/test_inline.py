"""Content in a config itself: read, unpacked and compared as Ignition does."""

from __future__ import annotations

import base64
import gzip
import hashlib
from typing import Any

import pytest

from secex_firstboot.ignition import inline
from secex_firstboot.ignition.config import Resource

PLAIN = b"from the user\n" * 100


def resource(source: str, **more: Any) -> Resource:
    return Resource.model_validate({"source": source} | more)


def packed(raw: bytes) -> str:
    return f"data:;base64,{base64.b64encode(raw).decode()}"


@pytest.mark.parametrize(
    ("url", "content"),
    [
        ("data:,", b""),
        ("data:,a%20b%0a", b"a b\n"),
        ("data:,a,b;c?d=e", b"a,b;c?d=e"),
        ("data:;base64,", b""),
        ("data:;base64,YQ==", b"a"),
        ("data:;base64,YR==", b"a"),  # Go does not look at the bits that are left over
        ("data:text/plain;charset=utf-8;base64,YWI=", b"ab"),
        ('data:text/plain;name="a b";base64,YWI=', b"ab"),
        ("data:x-what/ever,a", b"a"),
        ("data:application/,a", b"a"),
    ],
)
def test_a_data_url_is_read(url: str, content: bytes) -> None:
    assert inline.content(resource(url), 1000) == content


@pytest.mark.parametrize(
    "url",
    [
        *("data:", "data:a", "DATA:,a", "data:;base64;x=y,YQ==", "data:;BASE64,YQ==", "data:base64,YQ=="),
        *(
            "data:;base64,YQ",
            "data:;base64,YQ=",
            "data:;base64,Y===",
            "data:;base64,YQ==YQ==",
            "data:;base64,Y_==",
        ),
        *("data:;base64,Y%51==", "data:;base64,YQ==\n", "data:font/ttf,a", "data:/plain,a", "data:;x,a"),
        *("data:,a b", "data:,%", "data:,%4", "data:,%4g", "data:,é", "data:,a#b", "data:,{}"),
    ],
)
def test_a_url_that_ignition_does_not_read_is_refused(url: str) -> None:
    with pytest.raises(inline.ContentError, match="malformed data URL"):
        inline.verify(resource(url), 1000)


def test_gzip_is_unpacked_member_by_member() -> None:
    members = gzip.compress(PLAIN) + gzip.compress(b"more")
    assert inline.content(resource(packed(members), compression="gzip"), 10_000) == PLAIN + b"more"
    assert inline.content(resource(packed(gzip.compress(b"")), compression="gzip"), 0) == b""


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        PLAIN,
        gzip.compress(PLAIN)[:-1],
        gzip.compress(PLAIN)[:-9] + bytes(9),
        gzip.compress(PLAIN) + b"\0",
        gzip.compress(PLAIN) + b"junk",
    ],
    ids=["empty", "not packed", "cut", "wrong checksum", "padded", "junk behind"],
)
def test_broken_gzip_is_refused(broken: bytes) -> None:
    with pytest.raises(inline.ContentError, match="no valid gzip"):
        inline.verify(resource(packed(broken), compression="gzip"), 10_000)


@pytest.mark.parametrize("function", ["sha256", "sha512"])
def test_the_hash_is_that_of_the_unpacked_content(function: str) -> None:
    for digest in (
        hashlib.new(function, PLAIN).hexdigest(),
        hashlib.new(function, PLAIN).hexdigest().upper(),
    ):
        given = {"verification": {"hash": f"{function}-{digest}"}}
        assert inline.verify(resource(packed(PLAIN), **given), 10_000) == len(PLAIN)
        inline.verify(resource(packed(gzip.compress(PLAIN)), compression="gzip", **given), 10_000)
        with pytest.raises(inline.ContentError, match="does not have the hash"):
            inline.verify(resource(packed(PLAIN[1:]), **given), 10_000)


@pytest.mark.parametrize(
    "malformed", ["", "sha256", "sha256-", "md5-" + "0" * 32, "sha256-" + "g" * 64, "sha512-00"]
)
def test_a_hash_that_is_none_is_refused(malformed: str) -> None:
    with pytest.raises(inline.ContentError, match="neither sha256-HEX nor sha512-HEX"):
        inline.verify(resource("data:,a", verification={"hash": malformed}), 10_000)


def test_what_unpacks_to_more_than_the_limit_is_refused_and_not_kept_in_memory() -> None:
    bomb = resource(packed(gzip.compress(bytes(64 << 20))), compression="gzip")
    assert inline.verify(bomb, 64 << 20) == 64 << 20
    with pytest.raises(inline.ContentError, match="larger, unpacked"):
        inline.verify(bomb, (64 << 20) - 1)


def test_another_compression_is_refused() -> None:
    with pytest.raises(inline.ContentError, match="not gzip"):
        inline.verify(resource("data:,a", compression="xz"), 1000)
