"""`python -m sweeps` is `lt-sweep`."""

import sys

from sweeps.cli.app import main

sys.exit(main())
