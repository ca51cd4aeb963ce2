"""AI Hub, Qualcomm's cloud, as a hub: it compiles, measures and runs graphs on real devices; each job is paid once.

Start with `hub.py`. `service.py` alone talks to Qualcomm's client; `jobs.py` submits, finds again and waits;
`journal.py` names jobs and remembers them; `inference.py` cuts samples into jobs and keeps their masks; `preflight.py`
refuses before anything is sent. May import hubs (base and contract), datasets, params, files, and download for the
words of its errors.
"""
