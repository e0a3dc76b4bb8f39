"""`python -m lt_train` is `lt-train`."""

import sys

from lt_train.cli.app import main

sys.exit(main())
