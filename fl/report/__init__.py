"""What people see of runs: one page that needs nothing beside it, made of the files that a run has."""

from fl.report.orbit import draw_contacts_or_say
from fl.report.write import renew, write_report, write_report_or_say

__all__ = ["draw_contacts_or_say", "renew", "write_report", "write_report_or_say"]
