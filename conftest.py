"""What all tests share: notebooks under test show no progress bars and find qpatch, installed or not."""

import os
from pathlib import Path

os.environ["QPATCH_PROGRESS"] = "off"
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))

import qpatch  # noqa: E402, F401  (before timm: see qpatch/_torchvision.py)
