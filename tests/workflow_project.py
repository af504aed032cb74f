"""A small project with two notebooks, for the tests of the workflow: the second reads what the first writes.

Its `qpatch` holds only what the workflow itself uses, without torch, so that a run takes seconds.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import yaml

REPOSITORY = Path(__file__).parents[1]
STORE = "def write_atomic(path, text):\n    path.write_text(text)\n"
HEAD = "import os, time\nfrom pathlib import Path\nfolder = Path(os.environ['QPATCH_FIGURES'])"
MAKE = [HEAD + "\nfrom qpatch import tool",
        "time.sleep(pause)",
        "if fail:\n    raise tool.ToolError('as the parameter says')",
        "(folder / '01_make' / 'made.csv').write_text(f'kind,rate\\n{kind},{tool.rate(seed)}\\n')",
        "if both:\n    (folder / '01_make' / 'made.tex').write_text('made')"]
READ = [HEAD + "\nwhile Path('../hold').exists():\n    time.sleep(0.02)",
        "text = (folder / '01_make' / 'made.csv').read_text()",
        "(folder / '02_read' / 'read.csv').write_text(text.upper())"]
TOOL = "class ToolError(ValueError):\n    pass\n\n\ndef rate(seed):\n    return seed / 10\n"


def write_notebook(path: Path, parameters: str, cells: list[str], **metadata) -> None:
    """Write a notebook with a title, a parameters cell and these code cells; `metadata` goes under `qpatch`."""
    title = nbformat.v4.new_markdown_cell("# The title\nand more")
    first = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    body = [nbformat.v4.new_code_cell(cell) for cell in cells]
    content = nbformat.v4.new_notebook(cells=[title, first, *body], metadata={"qpatch": metadata})
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(content, path)


class Project:
    """The project in the folder `root`: this repository's workflow, with notebooks and modules of its own."""

    def __init__(self, root: Path):
        self.root = root
        shutil.copytree(REPOSITORY / "workflow", root / "workflow", ignore=shutil.ignore_patterns("__pycache__"))
        modules = {name: (REPOSITORY / "qpatch" / name).read_text() for name in ("errors.py", "parameters.py")}
        modules |= {"__init__.py": "", "store.py": STORE, "tool.py": TOOL, "unused.py": "x = 1\n"}
        for name, source in modules.items():
            (root / "qpatch").mkdir(exist_ok=True)
            (root / "qpatch" / name).write_text(source)
        shutil.copy(REPOSITORY / "requirements.txt", root)
        write_notebook(root / "notebooks" / "01_make.ipynb",
                       "seed = 0  # of the run\nkind = 'a'\npause = 0.0\nfail = False\nboth = True\nretrain = False",
                       MAKE, figures=["made.csv", "made.tex"])
        write_notebook(root / "notebooks" / "02_read.ipynb", "seed = 0", READ, figures=["read.csv"], reads=["01_make"])
        self.profile()

    def profile(self, **parameters) -> None:
        """Give notebook 01 these parameters in the laptop profile."""
        content = {"threads": 1, "figures": "figures", "notebooks": {"01": parameters}}
        (self.root / "workflow" / "profiles" / "laptop.yaml").write_text(yaml.safe_dump(content))

    @property
    def environment(self) -> dict[str, str]:
        return {k: v for k, v in os.environ.items() if not k.startswith("QPATCH_") and k != "PYTHONPATH"}

    def popen(self, *arguments: str, module: str = "workflow.run", **options) -> subprocess.Popen:
        """Start a module of the workflow in the project."""
        return subprocess.Popen([sys.executable, "-m", module, *arguments], cwd=self.root, env=self.environment,
                                text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)

    def run(self, *arguments: str, module: str = "workflow.run") -> tuple[int, str]:
        """Run a module of the workflow to its end: exit status, and all that it printed."""
        process = self.popen(*arguments, module=module)
        output, _ = process.communicate(timeout=600)
        return process.returncode, output

    def record(self, name: str) -> dict:
        return json.loads((self.root / "build" / "laptop" / f"{name}.json").read_text())
