"""seal, at its end: what goes when, so that no power cut and no old boot image, put back, does harm."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import REPOSITORY, plain

from secex_firstboot.agent.steps import encrypt
from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.contract.parameters import ROOT
from secex_firstboot.roots import overlay, remains
from secex_firstboot.sdboot.options import first_boot_command_line
from secex_firstboot.storage import progress_record

TIDY_UNIT = REPOSITORY / "systemd/secex-firstboot-tidy.service"


class PowerCut(Exception):
    pass


@pytest.fixture
def system(tmp_path: Path) -> tuple[Path, Path]:
    """Partition se, and a root with what the overlay left."""
    se, root = tmp_path / "se", tmp_path / "root"
    se.mkdir()
    (root / overlay.TOP / "finished").mkdir(parents=True)
    return se, root


def test_in_the_end_nothing_but_the_mark_is_left(system: tuple[Path, Path]) -> None:
    se, root = system
    for _ in range(2):
        remains.remove(se, plain(root))
        assert [str(path.relative_to(root)) for path in root.rglob("*")] == [
            "etc",
            "etc/luks",
            "etc/luks/sealed",
        ]


def test_an_earlier_boot_image_is_stopped_before_the_overlay_goes(
    system: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With neither mark nor overlay it would let Ignition write once more, to a root that has it all."""
    se, root = system

    def cut(*_: object) -> None:
        raise PowerCut

    with monkeypatch.context() as cut_here:
        cut_here.setattr(overlay, "remove", cut)
        with pytest.raises(PowerCut):
            remains.remove(se, plain(root))
    with pytest.raises(FirstbootError, match="an older boot image was put back"):
        encrypt.refuse_sealed(root)
    assert (root / overlay.TOP).is_dir()
    remains.remove(se, plain(root))
    assert not (root / overlay.TOP).exists()


def test_the_mark_is_not_there_while_se_has_something_of_first_boot(
    system: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    se, root = system

    def cut(*_: object) -> None:
        raise PowerCut

    monkeypatch.setattr(progress_record, "remove", cut)
    with pytest.raises(PowerCut):
        remains.remove(se, plain(root))
    encrypt.refuse_sealed(root)


def test_the_system_tidies_as_long_as_mark_or_overlay_say_so() -> None:
    """systemd.unit(5): of conditions with a pipe one has to hold, of the others all."""
    lines = TIDY_UNIT.read_text().splitlines()
    conditions = [line.partition("=")[2] for line in lines if line.startswith("ConditionPathExistsGlob=|")]
    assert conditions == ["|!/{,sysroot/}etc/luks/sealed", f"|/{{,sysroot/}}{overlay.TOP}"]


def test_no_file_that_the_host_makes_unreadable_keeps_it_from_tidying() -> None:
    """systemd takes a file that it cannot read for an absent one: only what must be absent may be a file."""
    lines = TIDY_UNIT.read_text().splitlines()
    files = [line.partition("=")[2] for line in lines if line.startswith("ConditionPath")]
    assert [path for path in files if not path.startswith("|")] == ["!/etc/initrd-release"]
    assert len([path for path in files if path.startswith("|")]) == 2
    assert f"ConditionKernelCommandLine={ROOT}" in lines
    assert str(ROOT) in first_boot_command_line("root=LABEL=root quiet").split()
