"""The tutorials run as a newcomer runs them, and say what they are stored to say."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys
from typing import Any

import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "tutorials").glob("*.ipynb"))

#: What the quickstart must have shown, in this order.
CLAIMS = (
    "ok  the network has learned: more than 95% of the test digits are right",
    "left on disk: step_0050.ckpt, step_0100.ckpt, step_0150.ckpt",
    "loaded step_0150.ckpt: at step 150",
    "leaves of the resumed run are identical, bit for bit",
    "ok  among them the random generator of dropout and shuffling",
    "ok  metadata and units are known before any data is read",
    "Array shape mismatch: expected float32[64, 96], got float32[64, 128] at path network/",
    "ok  'error' reports all three mismatches at once and changes nothing",
    "ok  'warn' gives three warnings and loads what fits",
    "ok  'ignore' loads what fits without a word",
    "All claims hold",
)


def environment() -> dict[str, str]:
    """Let a child process find the package of this checkout, installed or not."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "PYDEVD_DISABLE_FILE_VALIDATION": "1"}


def test_the_quickstart_shows_what_it_claims(tmp_path: pathlib.Path) -> None:
    command = [sys.executable, str(ROOT / "tutorials" / "quickstart.py")]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    position = 0
    for claim in CLAIMS:
        position = done.stdout.find(claim, position)
        assert position >= 0, f"{claim!r} is missing in:\n{done.stdout}"
    assert "FAILED" not in done.stdout
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir()), "nothing is left in the working directory"


def read(path: pathlib.Path) -> Any:
    return nbformat.read(path, as_version=4)


def outputs(cell: Any) -> str:
    """Give what a code cell printed and returned, as text."""
    text = ""
    for output in cell.outputs:
        assert output.output_type != "error", f"{cell.source}\n\n" + "\n".join(output.traceback)
        if output.output_type == "stream":  # one text may arrive in pieces
            text += output.text
        else:
            text += output.data.get("text/plain", "") + "\n"
    return text


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_gives_its_stored_outputs(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    stored, fresh = read(path), read(path)
    for cell in code_cells(fresh):
        cell.outputs = []
    client = nbclient.NotebookClient(
        fresh, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute(env=environment())
    for before, after in zip(code_cells(stored), code_cells(fresh), strict=True):
        got = outputs(after)
        if "varies" not in before.metadata.get("tags", ()):
            assert got == outputs(before), after.source
    assert not list(tmp_path.iterdir()), "nothing is left in the working directory"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_is_stored_as_a_reader_should_see_it(path: pathlib.Path) -> None:
    cells = code_cells(read(path))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "run once, in order"
    for cell in cells:
        assert not any(output.get("name") == "stderr" for output in cell.outputs), cell.source
        assert not re.search(r"(/tmp|/home|/root|/Users|/work)\b|[A-Z]:\\", outputs(cell)), "a machine's path"


def test_there_is_a_notebook() -> None:
    assert [path.name for path in NOTEBOOKS[:1]] == ["01_msgpack_checkpointing.ipynb"]
