"""Without the package boltz everything else works, and the priors say how to install it."""

import subprocess
import sys

CODE = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "boltz" else find(name, package)
import densemble.cli
from densemble.errors import InputError
try:
    import densemble.priors.boltz.weights
except InputError as error:
    print(error)
"""


def test_message_without_boltz():
    said = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True).stdout
    assert "pip install 'densemble[boltz]'" in said
    assert "MIT licence" in said
