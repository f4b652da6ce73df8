"""Self-contained HTML pages: templates with one style, charts as SVG, no script and no request to anywhere."""
