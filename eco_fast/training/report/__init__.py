"""report.html: everything about a run on one page that needs nothing else, no network and no other file."""
