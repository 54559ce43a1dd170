"""A source distribution has no benchmarks, so nothing here can be imported in one."""

from pathlib import Path

collect_ignore_glob = [] if (Path(__file__).resolve().parents[2] / "benchmarks").is_dir() else ["test_*.py"]
