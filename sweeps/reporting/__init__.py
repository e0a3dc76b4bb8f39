"""Presentation of results: reports (`write`), terminal output (`terminal`, `progress`), and files for trackers.

`sections`, `verdict`, `tables` and the `*_figures` modules build the content of a report as plain data (`model`, which
also renders tables as Markdown, LaTeX and CSV); `svg` and `write` render figures and the HTML page.
"""
