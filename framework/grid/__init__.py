"""Ablations: a grid file describes training runs (cells); one command trains them anywhere and ends in a table.

file.py reads the file; axes.py, space.py and make.py make the cells. scheduler.py starts them through an executor
plugin, and cell_process.py trains each. The state of a cell is in its folder (cell_folder.py). rows.py
compares the results; table.py and page.py show them.
"""
