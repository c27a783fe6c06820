"""What ``python -m ding_ebm.cli`` runs."""

import sys

from ding_ebm.cli import main

sys.exit(main())
