"""The story of a first boot: every step, in order."""

from __future__ import annotations

from secex_firstboot.step import Step
from secex_firstboot.steps.config import Config
from secex_firstboot.steps.encrypt import EncryptBoot, EncryptRoot
from secex_firstboot.steps.files import Files
from secex_firstboot.steps.hostkeys import HostKeys
from secex_firstboot.steps.mount import Mount
from secex_firstboot.steps.partition import Partition
from secex_firstboot.steps.personalise import Personalise
from secex_firstboot.steps.platform import Platform
from secex_firstboot.steps.seal import Seal
from secex_firstboot.steps.verity import Verity
from secex_firstboot.steps.volumes import Volumes

STEPS: tuple[Step, ...] = (
    Platform(),
    Config(),
    HostKeys(),
    Verity(),
    Personalise(),
    Partition(),
    EncryptBoot(),
    EncryptRoot(),
    Mount(),
    Volumes(),
    Files(),
    Seal(),
)
