"""The table of docs/optimizers.md, from what the tests found on each backend.

KERAS_BACKEND=tensorflow pytest tests/test_optimizers_every.py --support-table tf.json
KERAS_BACKEND=jax pytest tests/test_optimizers_every.py --support-table jax.json
KERAS_BACKEND=torch pytest tests/test_optimizers_every.py --support-table torch.json
python docs/support_table.py tf.json jax.json torch.json          # writes the table
python docs/support_table.py tf.json jax.json torch.json --check  # or tells whether it is true
"""

import argparse
import json
import sys
from pathlib import Path

PAGE = Path(__file__).parent / "optimizers.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
BACKENDS = ("tensorflow", "jax", "torch")


def read(paths):
    """Cells by optimizer and way: for each backend None for passed, or a reason."""
    cells = {}
    for path in paths:
        result = json.loads(path.read_text())
        for kind, way, reason in result["cells"]:
            cells.setdefault(kind, {}).setdefault(way, {})[result["backend"]] = reason
    return cells


def render(cells):
    """The Markdown table, with the reasons under it."""
    ways = list(next(iter(cells.values())))
    reasons = []

    def cell(found):
        marks = []
        for backend in BACKENDS:
            reason = found.get(backend, "not tested")
            if reason is None:
                marks.append("✓")
            else:
                reasons.extend([reason] if reason not in reasons else [])
                marks.append(f"({reasons.index(reason) + 1})")
        return " ".join(marks)

    rows = [["optimizer", *ways], ["---"] * (len(ways) + 1)]
    rows += [[kind, *(cell(found.get(way, {})) for way in ways)] for kind, found in cells.items()]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines += ["", *(f"{number}. {reason}" for number, reason in enumerate(reasons, start=1))]
    return "\n".join(lines)


def main():
    """Writes or checks the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", type=Path, help="files of --support-table")
    parser.add_argument("--check", action="store_true", help="change nothing, fail if it differs")
    options = parser.parse_args()
    page = PAGE.read_text()
    head, tail = page.partition(BEGIN)[0], page.partition(END)[2]
    new = f"{head}{BEGIN}\n\n{render(read(options.results))}\n\n{END}{tail}"
    if options.check and new != page:
        sys.exit(f"{PAGE.name} differs from what the tests found; run {Path(__file__).name}.")
    PAGE.write_text(new)


if __name__ == "__main__":
    main()
