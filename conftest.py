"""What all tests share: notebooks under test show no progress bars and find qpatch, installed or not."""

import os
from pathlib import Path

os.environ["QPATCH_PROGRESS"] = "off"
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))

# one core for each test process, the kernels of the notebooks included: threads that wait for a core that another
# process holds make everything two or three times as slow
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    for name in ("OMP_NUM_THREADS", "QPATCH_THREADS"):
        os.environ.setdefault(name, "1")

import qpatch  # noqa: E402, F401  (before timm: see qpatch/_torchvision.py)
