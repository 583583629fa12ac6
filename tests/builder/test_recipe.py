"""A recipe says everything about a build; what it does not know it refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support import REPOSITORY

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.builder import recipe


def write(directory: Path, text: str) -> Path:
    path = directory / "linux.toml"
    path.write_text(text)
    return path


def test_what_the_documents_show_is_a_recipe_with_the_defaults(tmp_path: Path) -> None:
    text = (REPOSITORY / "docs/build-an-image.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    wanted = recipe.make("test", {"source": tmp_path / "tree", "sizes": {"root-free": 64}})
    assert recipe.read(write(tmp_path, shown), {}) == wanted
    fields = [*recipe.Recipe.model_fields, *recipe.Trust.model_fields, *recipe.Sizes.model_fields]
    names = [field.replace("_", "-") for field in fields]
    missing = [name for name in names if not re.search(rf"^(?:# )?\[?{name}\]?(?: |$)", shown, re.M)]
    assert missing == []


def test_paths_lie_beside_the_recipe_and_those_of_the_command_line_where_it_says(tmp_path: Path) -> None:
    trust = '[trust]\nroots = ["r.crt"]\nverify = false\n'
    path = write(tmp_path, f'source = "tree"\nhost-keys = ["a.crt"]\n{trust}')
    found = recipe.read(path, {"host-keys": [Path("/b.crt")], "trust": {"offline": True}})
    assert found.source == tmp_path / "tree"
    assert found.host_keys == (Path("/b.crt"),)
    assert found.trust.roots == (tmp_path / "r.crt",)
    assert (found.trust.verify, found.trust.offline) == (False, True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("source = ", "is no TOML"),
        ('source = "a"\nsauce = 1\n', "sauce: Extra inputs are not permitted"),
        ("options = ''\n", "source: Field required"),
        ('source = "a"\n[sizes]\nse = -1\n', "sizes.se: Input should be greater than or equal to 0"),
        ('source = "a"\n[sizes]\nse = "1"\n', "sizes.se: Input should be a valid integer"),
        ('source = "a"\nfile-system = "btrfs"\n', "file-system: Input should be 'ext4' or 'xfs'"),
        ('source = ""\n', "source: Value error, this is no path"),
        ('source = "a\\u0000b"\n', "source: "),
    ],
)
def test_what_is_no_recipe_is_refused_with_its_place(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=re.escape(says)):
        recipe.read(write(tmp_path, text), {})


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="cannot be read: No such file"):
        recipe.read(tmp_path / "missing.toml", {})
    with pytest.raises(Refusal, match="is larger than a recipe may be"):
        recipe.read(write(tmp_path, "#" * (2 << 20)), {})
    path = tmp_path / "bytes.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(Refusal, match="is no TOML"):
        recipe.read(path, {})
