"""Presentation of results: reports (`write`), terminal output (`terminal`, `progress`), and files for MLflow.

`sections`, `verdict`, `tables` and the `*_figures` modules build the content of a report as plain data (`model`);
`formats`, `svg` and `write` render it as Markdown, LaTeX, CSV, SVG and HTML.
"""
