"""Fill README's tables from docs/results/*.csv, or check that they are up to date.

README marks a table by ``<!-- table: docs/results/name.csv -->`` and ``<!-- end of table -->``; everything between the
two is made here. A file that is not there leaves its table empty.

    python docs/readme_tables.py            # rewrite README.md
    python docs/readme_tables.py --check    # exit status 1 if that would change it
"""

import csv
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
MARKED = re.compile(r"(<!-- table: (\S+\.csv) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def markdown(path: Path) -> str:
    """A CSV file, first row the header, as a Markdown table."""
    if not path.is_file():
        return "\n"
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    lines = [" | ".join(line) for line in (header, ["---"] * len(header), *rows)]
    return "\n" + "".join(f"| {line} |\n" for line in lines) + "\n"


def main() -> int:
    """Rewrite or check; returns the exit status."""
    old = README.read_text("utf-8")
    new = MARKED.sub(lambda match: match[1] + markdown(ROOT / match[2]) + match[3], old)
    if new == old:
        return 0
    if "--check" in sys.argv[1:]:
        print("README.md's tables are not those of docs/results: run `make format`", file=sys.stderr)
        return 1
    README.write_text(new, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
