"""Figures, tables and pages from sweeps; `sweeps.report("runs/mine")` writes the report of one.

`reading` takes a sweep from disk, finished or not; `judgements`, `verdict`, `tables` and the `*_figures` say what is in
a report, as plain data (`content`), `comparing` how sweeps differ; `drawing`, `formats` and `page` turn that into SVG,
Markdown, LaTeX, CSV and HTML; `writing` calls them. `terminal`, `progress`, `markdown`, `artifacts` and `figures` are
what a running sweep shows.
"""
