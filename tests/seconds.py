"""Where the time of a test run goes, by file: ``make seconds`` writes it into docs/testing.md."""

import re
import sys
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

PAGE = Path(__file__).resolve().parents[1] / "docs" / "testing.md"
BEGIN, END = "<!-- seconds: made by make seconds -->", "<!-- end of seconds -->"
ROWS = 25


def seconds_by_file(junit: Path) -> dict[str, list[tuple[float, str]]]:
    """Of each file its tests as (seconds, name); set-up and tear-down counted."""
    found: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for case in ElementTree.parse(junit).iter("testcase"):
        module = re.match(r".*\.test_\w+", case.attrib["classname"])
        name = module.group().replace(".", "/") if module else case.attrib["classname"]
        found[f"{name}.py"].append((float(case.attrib["time"]), case.attrib["name"]))
    return found


def table(found: dict[str, list[tuple[float, str]]]) -> str:
    """The files that take longest, in Markdown."""
    whole = {name: sum(seconds for seconds, _ in tests) for name, tests in found.items()}
    lines = ["| file | seconds | tests | its longest test | seconds |", "|---|--:|--:|---|--:|"]
    for name in sorted(whole, key=lambda name: -whole[name])[:ROWS]:
        seconds, longest = max(found[name])
        longest = longest.partition("[")[0]
        lines.append(
            f"| `{name}` | {whole[name]:.1f} | {len(found[name])} | `{longest}` | {seconds:.1f} |"
        )
    tests = sum(map(len, found.values()))
    lines.append(f"| all {len(found)} files | {sum(whole.values()):.1f} | {tests} | | |")
    return "\n".join(lines)


def main() -> None:
    """Put the table of a junit file in the place of the one in the page."""
    text = PAGE.read_text()
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    made = table(seconds_by_file(Path(sys.argv[1])))
    PAGE.write_text(f"{head}{BEGIN}\n{made}\n{END}{tail}")


if __name__ == "__main__":
    main()
