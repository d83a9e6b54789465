"""The measurements, one file a step: `measure(device, item)` yields rows, dicts that start with the item's name.

A row with "failed" says why something is wrong, one with "skipped" why it was not run. What is raised fails the item.
"""
