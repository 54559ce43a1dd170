"""How a training job gets in: a file, file.py:attr or package.module:attr becomes a Job."""

from mpdiag.target.job import Job, Start
from mpdiag.target.load import load_job

__all__ = ["Job", "Start", "load_job"]
