import sys

from secex_firstboot.cli import main

sys.exit(main())
