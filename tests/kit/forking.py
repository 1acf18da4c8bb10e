"""What tests of forked stages need."""

import sys

import pytest

needs_forking = pytest.mark.skipif(sys.platform != "linux", reason="nothing is forked elsewhere")
