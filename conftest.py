"""What all tests share: notebooks under test show no progress bars and find qpatch, installed or not."""

import os
from pathlib import Path

os.environ["QPATCH_PROGRESS"] = "off"
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))

# two test processes share the cores, the kernels of the notebooks included
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    cores = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores)))

import qpatch  # noqa: E402, F401  (before timm: see qpatch/_torchvision.py)
