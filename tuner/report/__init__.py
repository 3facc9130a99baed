"""Shows a study to people: in a terminal or notebook, as a web page, tables and JSON."""
