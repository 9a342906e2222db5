"""Makes the notebooks of the tutorials: `examples/*.ipynb` from `*.py`.

    pip install nbformat
    python examples/make_notebooks.py

A tutorial is in the form of keras.io: a header, then strings of Markdown and
the code between them. Change the `.py`, then run this. The same tutorial gives
the same bytes: no outputs, no counters, and cells that are numbered.
"""

import ast
import pathlib

import nbformat
from nbformat import v4

EXAMPLES = pathlib.Path(__file__).resolve().parent
HEADER = (
    "Title",
    "Author",
    "Date created",
    "Last modified",
    "Description",
    "Accelerator",
)
# The first cell of code. It is plain Python, so that a failure stops here.
SETUP = """\
import importlib.util
import os
import pathlib
import subprocess
import sys

# Only needed on a fresh machine, such as Colab or Kaggle (switch its Internet
# access on): the address to clone this repository from.
REPOSITORY = ""  # @param {type: "string"}

installed = importlib.util.find_spec("keras_audiolm")
if pathlib.Path("../examples/recordings").is_dir():  # opened in a clone
    os.chdir("..")
elif not pathlib.Path("examples/recordings").is_dir():
    if not pathlib.Path("audiolm/examples").is_dir():
        assert REPOSITORY, "Fill in REPOSITORY above, and run this cell again."
        subprocess.run(["git", "clone", REPOSITORY, "audiolm"], check=True)
    os.chdir("audiolm")
if not installed:
    pip = [sys.executable, "-m", "pip", "install", "-q"]
    subprocess.run([*pip, "-e", ".[jax]", "matplotlib"], check=True)"""


def main():
    for path in tutorials():
        notebook = path.with_suffix(".ipynb")
        notebook.write_text(make_notebook(path.read_text()), encoding="utf-8")
        print(f"Wrote {notebook}")


def tutorials():
    """Paths of the scripts that begin with a header."""
    return [
        path
        for path in sorted(EXAMPLES.glob("*.py"))
        if path.read_text().startswith('"""\nTitle: ')
    ]


def make_notebook(source):
    """The notebook of a tutorial.

    Args:
        source: str, the text of a script.

    Returns:
        str, the text of an `.ipynb` file.

    Raises:
        ValueError: on a script without the header of keras.io.
    """
    (_, first), *rest = split(source)
    header = read_header(first)
    cells = [
        v4.new_markdown_cell(title(header)),
        v4.new_code_cell(SETUP),
        *(
            v4.new_markdown_cell(text)
            if kind == "markdown"
            else v4.new_code_cell(text)
            for kind, text in rest
        ),
    ]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    metadata = {
        "kernelspec": {
            "display_name": "Python 3",
            "language": "python",
            "name": "python3",
        },
        "language_info": {"name": "python"},
    }
    if header["Accelerator"] != "None":
        metadata["accelerator"] = header["Accelerator"]  # Colab reads it
    notebook = v4.new_notebook(cells=cells, metadata=metadata)
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


def split(source):
    """The cells of a script: pairs of `"markdown"` or `"code"` and text."""
    lines = source.splitlines()
    cells, done = [], 0
    for node in ast.parse(source).body:
        if not is_text(node):
            continue
        cells.append(("code", "\n".join(lines[done : node.lineno - 1])))
        cells.append(("markdown", node.value.value))
        done = node.end_lineno
    cells.append(("code", "\n".join(lines[done:])))
    cells = [(kind, text.strip()) for kind, text in cells]
    return [(kind, text) for kind, text in cells if text]


def is_text(node):
    """Whether a statement is a string alone."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def read_header(text):
    """Dictionary of what stands at the top of a tutorial."""
    lines = [line.partition(": ") for line in text.splitlines()]
    header = {name: value for name, _, value in lines}
    if tuple(header) != HEADER:
        raise ValueError(
            f"A tutorial begins with {', '.join(HEADER)}, in this order. "
            f"Received: {', '.join(header)}"
        )
    return header


def title(header):
    """The header in Markdown, as keras.io shows it."""
    lines = [f"**{name}:** {header[name]}" for name in HEADER[1:5]]
    return f"# {header['Title']}\n\n" + "<br>\n".join(lines)


if __name__ == "__main__":
    main()
