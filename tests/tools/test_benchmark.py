import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "--depth",
    "2",
    "--width",
    "32",
    "--heads",
    "2",
    "--side",
    "4",
    "--steps",
    "2",
    "--warmup",
    "1",
]


def test_it_measures_every_method_and_writes_the_result_file(tmp_path):
    out = tmp_path / "new" / "result.json"
    command = [sys.executable, ROOT / "tools" / "benchmark.py", *SMALL, "--out", out]
    printed = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=tmp_path
    ).stdout
    result = json.loads(out.read_text())
    rows = {row["method"]: row for row in result["rows"]}
    assert all(method in printed for method in rows)
    assert {"command", "date", "hardware", "versions"} <= set(result)
    for pair, kept in (("(0, 1)", "8.0"), ("(0.5, 0.5)", "8.5"), ("(1, 0.1)", "10.0")):
        row = rows[f"Dr²Net, exact {pair}"]
        assert row["gradient error against stored"] == "0"
        assert row["bytes kept per element"] == kept
    assert [path.name for path in out.parent.iterdir()] == ["result.json"]
