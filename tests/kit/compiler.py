"""What tests of torch.compile on a processor need."""

from shutil import which

import pytest

needs_compiler = pytest.mark.skipif(which("g++") is None, reason="torch.compile needs a C++ compiler")
