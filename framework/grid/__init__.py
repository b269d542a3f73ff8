"""Ablations: one file states the cells of a grid, one command trains them anywhere and ends in a table.

file.py reads the file, cells.py makes recipes of it, scheduler.py starts them through an executor plugin, and
cell_process.py trains each. All that is known of a cell lies in its folder (cell_folder.py), so that whoever looks,
on whatever machine, sees the same.
"""
