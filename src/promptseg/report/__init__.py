"""What people look at after a run: one HTML page that works offline, a sheet of pictures, charts.

The score stage calls `page.build_report` and `page.render_report`: start reading there. `gallery` picks the best,
median and worst phrases, `charts` draws SVG, `overlay` lays masks over a picture (`predict` and the demo use it, too,
so it imports neither pandas nor matplotlib). May import scoring, metrics and datasets; knows no network and no hub:
what they said comes as the contents of their JSON files.
"""
