"""Check the house rules that no linter knows: who may import whom, how long a file may be, what an `__init__.py` holds.

    python scripts/check_structure.py [REPOSITORY]

Prints warnings and problems, a line each; exits 1 where there is a problem. Reads source only, imports nothing of it.
"""

from __future__ import annotations

import argparse
import ast
import io
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "cosmos_predict"
MAX_FILE_LINES = 600  # code lines: comments, docstrings and blank lines are not counted
AIM_FILE_LINES = 400
MAX_PACKAGE_LINES = 20_000

_BASE = {"errors", "randomness", "io", "config"}
_PARTS = {"networks", "diffusion", "tokenizers", "text_encoders", "data"}
_MODELS = _BASE | _PARTS | {"conditions", "models"}
_TOP = _MODELS | {"checkpoint", "parallel"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "randomness": set(),
    "io": {"errors", "randomness"},
    "config": {"errors", "randomness", "io"},
    **dict.fromkeys(_PARTS, _BASE),  # which know none of each other
    "conditions": _BASE | {"networks"},
    "models": _BASE | _PARTS | {"conditions"},
    "parallel": _MODELS,
    "checkpoint": _MODELS | {"parallel"},
    "training": _TOP,
    "pipelines": _TOP,
    "curate": _BASE | {"data", "text_encoders"},
    "evaluation": _BASE | {"data", "text_encoders"},
    "cli": _TOP | {"training", "pipelines", "curate", "evaluation"},
}
# Folders and modules of the repository that use the package and are never used by it.
OUTSIDE = {"experiments", "inference", "scripts", "tests", "benchmarks", "train"}


def main(arguments: list[str] | None = None) -> int:
    """Check the repository; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("repository", nargs="?", type=Path, default=Path(__file__).resolve().parent.parent)
    root = parser.parse_args(arguments).repository
    if not (root / PACKAGE).is_dir():
        parser.error(f"{root} has no folder {PACKAGE}")
    problems, warnings, package_lines = [], [], 0
    for path in _sources(root):
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        name, lines = path.relative_to(root), code_lines(path.read_text(encoding="utf-8"), tree)
        if lines > MAX_FILE_LINES:
            problems.append(f"{name}: {lines} lines of code, at most {MAX_FILE_LINES}; split it")
        elif lines > AIM_FILE_LINES:
            warnings.append(f"{name}: {lines} lines of code, the aim is {AIM_FILE_LINES}")
        if name.parts[0] == PACKAGE:
            package_lines += lines
            problems += import_problems(root, name, tree)
            if name.name == "__init__.py":
                problems += init_problems(name, tree)
    problems += [
        f"{folder.relative_to(root)}: no __init__.py (with a docstring: what lives here, what may import it)"
        for folder in sorted({path.parent for path in (root / PACKAGE).rglob("*.py")})
        if not (folder / "__init__.py").is_file()
    ]
    if package_lines >= MAX_PACKAGE_LINES:
        problems.append(f"{PACKAGE}: {package_lines} lines of code, fewer than {MAX_PACKAGE_LINES} allowed")
    for line in [f"warning: {line}" for line in warnings] + problems:
        print(line)
    print(f"structure: {package_lines} of {MAX_PACKAGE_LINES} lines of code, {len(problems)} problems")
    return 1 if problems else 0


def code_lines(source: str, tree: ast.Module) -> int:
    """Count the lines that hold code: not blank, not only a comment, not part of a docstring."""
    lines: set[int] = set()
    no_code = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in no_code:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                lines.difference_update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return len(lines)


def import_problems(root: Path, name: Path, tree: ast.Module) -> list[str]:
    """Return what is wrong with the imports of one file of the package, wherever in the file they stand."""
    problems = []
    own = name.parts[1].removesuffix(".py")
    if own != "__init__" and own not in MAY_IMPORT:
        return [f"{name}: {own} has no place in the import order; add it to scripts/check_structure.py and DESIGN"]
    for node, module in _imports(name, tree):
        top, _, rest = module.partition(".")
        if top in OUTSIDE:
            problems.append(f"{name}:{node.lineno}: imports {module}; {top} uses the package, never the reverse")
        other = rest.split(".")[0]
        if top != PACKAGE or other.startswith("__") or not other:  # cosmos_predict.__version__ is free
            continue
        if own == "__init__" or (other != own and other not in MAY_IMPORT[own]):
            allowed = ", ".join(sorted(MAY_IMPORT.get(own, ()))) or "nothing"
            problems.append(f"{name}:{node.lineno}: {own} imports {module}, but may import {allowed} of {PACKAGE}")
        if not _exists(root, module):
            problems.append(f"{name}:{node.lineno}: imports {module}, which does not exist")
    return problems


def init_problems(name: Path, tree: ast.Module) -> list[str]:
    """Return what is wrong with an `__init__.py`: it has a docstring and imports nothing, to keep starting light."""
    problems = [] if ast.get_docstring(tree) else [f"{name}: no docstring (what lives here, what may import it)"]
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    return problems + [
        f"{name}:{node.lineno}: an __init__.py imports nothing; import where it is used" for node in imports
    ]


def _imports(name: Path, tree: ast.Module) -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    """Yield (node, absolute module name) of every import; `from cosmos_predict import x` counts as cosmos_predict.x."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                package = name.parts[: -node.level]
                module = ".".join([*package, *filter(None, [module])])
            yield from ((node, f"{module}.{alias.name}" if module == PACKAGE else module) for alias in node.names)


def _exists(root: Path, module: str) -> bool:
    path = root.joinpath(*module.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir()


def _sources(root: Path) -> list[Path]:
    folders = [PACKAGE, *sorted(OUTSIDE - {"train"})]
    found = [path for folder in folders for path in sorted((root / folder).rglob("*.py"))]
    return found + [path for path in (root / "train.py", root / "setup.py") if path.is_file()]


if __name__ == "__main__":
    sys.exit(main())
