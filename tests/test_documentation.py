"""What runs the code blocks of README and docs fails where a block is wrong."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]

PAGE = """
<!-- invisible-code-block: python
x = 1
-->

```python
y = x + 1
```

```python
>>> y
{printed}
```

```sh
{command}
```

```{language}
what a command prints
```

```python
{code}
```
"""

RIGHT = {"printed": "2", "command": "make test", "language": "text", "code": "assert y == 2"}
WRONG = {
    "printed": "3",
    "command": "pyronorm compare --bogus 3",
    "language": "",
    "code": "pn.convert(x)",
}


def run(folder: Path, **page: str) -> str:
    for name in ("conftest.py", "Makefile"):
        shutil.copy(ROOT / name, folder)
    (folder / "README.md").write_text(PAGE.format(**page))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    return subprocess.run(
        [*command, "README.md"], cwd=folder, capture_output=True, text=True, check=False
    ).stdout


def test_right_blocks_pass(tmp_path: Path) -> None:
    # The output block is no test: nothing to run.
    assert "5 passed" in run(tmp_path, **RIGHT)


def test_each_wrong_block_fails(tmp_path: Path) -> None:
    printed = run(tmp_path, **WRONG)
    assert "4 failed, 2 passed" in printed, printed
    for problem in ("Expected:", "No such option: --bogus", "say python, sh", "name 'pn' is not"):
        assert problem in printed, printed


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/own_*.md")), ids=lambda path: path.stem)
def test_pages_on_ones_own_run_as_pasted(page: Path) -> None:
    """What a reader sees is whole: nothing is defined in a block that is not shown."""
    shown = re.sub(r"<!--.*?-->", "", page.read_text(), flags=re.DOTALL)
    blocks = re.findall(r"```python\n(.*?)```", shown, flags=re.DOTALL)
    assert blocks
    names = {"__name__": "__main__"}
    with torch.random.fork_rng():
        for block in blocks:
            assert len([line for line in block.splitlines() if line.strip()]) <= 30
            exec(compile(block, page.name, "exec"), names)
