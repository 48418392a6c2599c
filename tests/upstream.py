"""Run scvi-tools' own tests with SCVI read as QBMVI, SCANVI as QBMANVI: what a drop-in must pass.

    python tests/upstream.py                                  test_scvi.py and test_scanvi.py
    python tests/upstream.py tests/train tests/criticism      other files or folders of its tests
    python tests/upstream.py --plain ...                      as they are, for comparison
    python tests/upstream.py --sdist FILE ...                 without downloading

The tests are those of the installed release. Whatever else is given goes to pytest, whose exit
status is returned.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEFAULT = ["tests/model/test_scvi.py", "tests/model/test_scanvi.py"]
OURS = {"SCVI": "QBMVI", "SCANVI": "QBMANVI"}

# Tests that cannot hold for our models: a text in the source of each, and why.
EXEMPT = {
    "def test_backwards_compatible_loading(": "downloads weights of SCVI, which QBMVI cannot load",
    "def test_backup_url(": "downloads weights of SCVI, which QBMVI cannot load",
    "module.classifier.classifier": "looks into the layers of SCANVI's classifier, ours has one",
    "def test_scanvi_logits_backwards_compat(": "is about SCANVI's classifier, as above",
    "def test_scanvi_pre_logits_fix_load(": "loads a saved SCANVI, which QBMANVI cannot load",
    "def test_scvi_mlflow(": "needs an MLflow server of the scvi-tools developers",
}


def sdist() -> Path:
    """The source distribution of the installed scvi-tools; downloaded once."""
    release, folder = version("scvi-tools"), ROOT / "build" / "upstream"
    file = folder / f"scvi_tools-{release}.tar.gz"
    if not file.exists():
        command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps"]
        command += ["--no-binary", "scvi-tools", "--dest", str(folder), f"scvi-tools=={release}"]
        if subprocess.run(command).returncode or not file.exists():
            sys.exit(f"pip could not download scvi-tools {release}; name its sdist with --sdist.")
    return file


def unpack(file: Path, folder: Path) -> None:
    """Its tests and their configuration, made to run with any supported Python and rich."""
    with tarfile.open(file) as archive:
        for member in archive.getmembers():
            member.name = member.name.partition("/")[2]
            if re.match(r"(tests/|pyproject\.toml$|conftest\.py$)", member.name):
                archive.extract(member, folder, filter="data")
    conftest = folder / "tests" / "conftest.py"
    text = conftest.read_text().replace(  # Python 3.12 has no distutils
        "from distutils.dir_util import copy_tree",
        "from functools import partial\n"
        "copy_tree = partial(shutil.copytree, dirs_exist_ok=True)\n",
    )
    conftest.write_text("import rich.pretty  # scvi-tools 1.4.2 forgets to\n" + text)


def read_as_ours(source: str) -> str:
    """``source`` with our models under the names of theirs; every line keeps its number."""
    lines = source.splitlines()
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or node.module != "scvi.model":
            continue
        ours = [a for a in node.names if a.name in OURS]
        theirs = [ast.unparse(a) for a in node.names if a.name not in OURS]
        if not ours:
            continue
        statements = [f"from scqbm import {OURS[a.name]} as {a.asname or a.name}" for a in ours]
        if theirs:
            statements.append(f"from scvi.model import {', '.join(theirs)}")
        first, last = node.lineno - 1, node.end_lineno - 1
        before, after = lines[first][: node.col_offset], lines[last][node.end_col_offset :]
        lines[first : last + 1] = [""] * (last - first + 1)
        lines[first] = before + "; ".join(statements) + after
    text = "\n".join(lines)
    for theirs, ours in OURS.items():
        text = re.sub(rf"\bscvi\.model\.{theirs}\b", f'__import__("scqbm").{ours}', text)
    text = text.replace('"VAE.loss"', '"QBVAE.loss"')  # the module's name in an error message
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test"):
            body = ast.get_source_segment(source, node)
            for reason in (why for what, why in EXEMPT.items() if what in body):
                skip = f"__import__('pytest').mark.skip(reason={reason!r})"
                text += f"\n{node.name} = {skip}({node.name})\n"
    return text + "\n"


def main() -> int:
    """Unpack, rewrite and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sdist", type=Path, help="source distribution of scvi-tools")
    parser.add_argument("--plain", action="store_true", help="leave their models as they are")
    options, arguments = parser.parse_known_args()
    file = options.sdist or sdist()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        unpack(file, folder)
        if not any((folder / a.partition("::")[0]).exists() for a in arguments):
            arguments += DEFAULT
        if not options.plain:
            for argument in arguments:
                path = folder / argument.partition("::")[0]
                for test in [path] if path.is_file() else path.rglob("*.py"):
                    test.write_text(read_as_ours(test.read_text()))
        paths = [str(ROOT / "src"), str(folder), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:warnings", *arguments]
        return subprocess.run(command, cwd=folder, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
