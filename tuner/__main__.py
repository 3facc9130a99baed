"""`python -m tuner` is the command `tune`."""

import sys

from tuner.cli.main import main

sys.exit(main())
