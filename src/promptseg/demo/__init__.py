"""A page on this machine to try phrases on pictures: `server.py` serves `page.html` and answers with one model.

May import inference, datasets and report.overlay.
"""
