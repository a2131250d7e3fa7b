"""The table of public layouts that are read: where each is documented, how many rows its example has,
what was read from them, and with which option.

python benchmarks/data_layouts.py
"""

import argparse
import json

from reward_kit.beside import published_layouts
from reward_kit.data.preferences import load_preferences

LAYOUTS = published_layouts._LAYOUTS


def read(layout):
    "The preferences of a layout's example."
    rows = layout.example if isinstance(layout.example, list) else [layout.example]
    return load_preferences(rows, progress=False, **layout.options)


def main():
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    print("| layout | documented at | rows | read as | records | option |\n|---|---|--:|---|--:|---|")
    for layout in LAYOUTS:
        found = read(layout)
        option = json.dumps(layout.options) if layout.options else ""
        print(
            f"| {layout.name} | {layout.source} | {found.report.rows_read} |"
            f" {found.report.format} ({found.kind}) | {len(found)} | {option} |"
        )


if __name__ == "__main__":
    main()
