import sys

from secex_firstboot.cli.firstboot import main

sys.exit(main())
