"""Results for people: words for the terminal, and the report of a run as a page, figures and scripts.

``densemble.report.writing.write_report`` makes the latter of ``result.json`` and the files beside it.
"""

from densemble.report.words import state_summary, summary, table

__all__ = ["state_summary", "summary", "table"]
