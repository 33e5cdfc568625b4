"""Shared fixtures: one Ray cluster a session, and tests/ itself on the path for the helper modules."""

import sys
from pathlib import Path

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))
