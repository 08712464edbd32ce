"""`python -m converters`: the command `bridges`."""

import sys

from converters.cli import main

sys.exit(main())
