"""Writes the expected requests anew: `python -m tests.golden`, then look at the difference."""

from tests.golden import CASES, render

for case in CASES:
    if case.lacks:
        print(f"{case.file.name}: kept, for the package {case.lacks} is not installed")
        continue
    case.file.write_text(render(case))
    print(case.file.name)
