"""DVC's own records of experiments, compared: a table of points, the front that none beats, a sweep's picture.

Start with `records.comparable_points`, which says what may be compared with what, and what is left out. The only
package that imports dvc. May import scoring and the report's charts.
"""
