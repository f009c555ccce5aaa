"""What `benchmarks.routing` prints."""

import io

from rich.console import Console

from benchmarks.routing import table


def test_the_table_fits_80_columns_uncut() -> None:
    widest = {
        "eligible": "one excluded", "batch": 64, "route_jobs_ms": 1234.56, "bare_ms": 1234.56, "ratio": 10.25,
        "measured_ms": 1234.56, "measured_ratio": 12.25, "recall": 0.999,
    }  # fmt: skip
    console = Console(width=80, file=io.StringIO())
    console.print(table([widest], 1_000_000, 10_000))
    printed = console.file.getvalue()
    assert max(map(len, printed.splitlines())) <= 80
    assert all(cell in printed for cell in ("one excluded", "1234.56", "10.25", "0.999", "19.29"))
    assert "…" not in printed
